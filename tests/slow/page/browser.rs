//! A headless Chromium, driven over its pipe of NUL-separated JSON (the DevTools protocol).

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A browser with one tab.
pub(super) struct Browser {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
    session: String,
    number: u64,
    /// Events of the tab: requests, exceptions, console messages.
    pub(super) events: Vec<Value>,
    _profile: tempfile::TempDir,
}

/// Path of the first Chromium executable in `PATH`; `None` if there is none.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.is_file())
}

impl Browser {
    pub(super) fn start(program: &Path) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // Chromium reads requests from descriptor 3 and answers on descriptor 4.
        let shell = "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null";
        let mut child = Command::new("sh")
            .args(["-c", shell])
            .arg(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take().unwrap();
        let replies = BufReader::new(child.stdout.take().unwrap());
        let mut browser = Self {
            child,
            requests,
            replies,
            session: String::new(),
            number: 0,
            events: Vec::new(),
            _profile: profile,
        };
        let target =
            browser.call("Target.createTarget", &json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        attached["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser.width(1280);
        browser
    }

    /// Calls a protocol method and returns its result; other messages are kept in `events`.
    pub(super) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut request = json!({ "id": self.number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            request["sessionId"] = self.session.as_str().into();
        }
        self.requests.write_all(request.to_string().as_bytes()).unwrap();
        self.requests.write_all(b"\0").unwrap();
        self.requests.flush().unwrap();
        loop {
            let message = self.next();
            if message["id"] == self.number {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn next(&mut self) -> Value {
        let mut message = Vec::new();
        let read = self.replies.read_until(0, &mut message).unwrap();
        assert!(read > 0, "the browser has ended");
        message.pop();
        serde_json::from_slice(&message).unwrap()
    }

    pub(super) fn width(&mut self, width: u32) {
        let metrics = json!({ "width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Emulates a system colour scheme, `light` or `dark`.
    pub(super) fn scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Opens a file with the URL fragment `hash` and waits until the page has loaded.
    pub(super) fn open(&mut self, file: &Path, hash: &str) {
        self.call("Page.navigate", &json!({ "url": "about:blank" }));
        self.call("Page.navigate", &json!({ "url": format!("file://{}{hash}", file.display()) }));
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'");
    }

    /// Evaluates a JavaScript expression and awaits its value.
    pub(super) fn value(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    pub(super) fn wait_for(&mut self, condition: &str) {
        let begun = Instant::now();
        while self.value(condition) != true {
            // A loaded machine takes seconds to start a tab and to lay out a large page.
            assert!(begun.elapsed() < Duration::from_mins(1), "{condition} did not come true");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Clicks the middle of the first element that matches a selector.
    pub(super) fn click(&mut self, selector: &str) {
        let quoted = json!(selector);
        let found = self.value(&format!(
            "(() => {{ const e = document.querySelector({quoted}); e.scrollIntoView({{ block: 'center', inline: 'center' }}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({ "type": kind, "x": found[0], "y": found[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// Presses a key: `Enter`, `Escape`, `ArrowRight`, `Tab`.
    pub(super) fn key(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => panic!("{key}"),
        };
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            self.call("Input.dispatchKeyEvent", &event);
            if (kind, key) == ("rawKeyDown", "Enter") {
                self.call("Input.dispatchKeyEvent", &json!({ "type": "char", "text": "\r" }));
            }
        }
    }

    /// Writes and returns a PNG of the viewport, or of the page up to a height of 8000 pixels if `is_whole`.
    pub(super) fn screenshot(&mut self, file: &Path, is_whole: bool) -> Vec<u8> {
        let asked = json!({ "format": "png", "captureBeyondViewport": is_whole });
        let mut asked = asked;
        if is_whole {
            let size = self.value("[document.documentElement.scrollWidth, Math.min(document.documentElement.scrollHeight, 8000)]");
            asked["clip"] = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        }
        let answer = self.call("Page.captureScreenshot", &asked);
        let bytes = decoded(answer["data"].as_str().unwrap());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, &bytes).unwrap();
        bytes
    }

    /// Prints the page to PDF.
    pub(super) fn pdf(&mut self) -> Vec<u8> {
        let answer = self.call("Page.printToPDF", &json!({ "printBackground": true }));
        decoded(answer["data"].as_str().unwrap())
    }

    /// Requests that are not for local content, exceptions, and console errors.
    pub(super) fn complaints(&self) -> Vec<String> {
        let complaint = |event: &Value| {
            let parameters = &event["params"];
            match event["method"].as_str()? {
                "Network.requestWillBeSent" => {
                    let url = parameters["request"]["url"].as_str()?;
                    let is_own = ["file:", "about:", "data:", "blob:"].iter().any(|own| url.starts_with(own));
                    (!is_own).then(|| format!("requested {url}"))
                }
                "Runtime.exceptionThrown" => Some(parameters["exceptionDetails"].to_string()),
                "Log.entryAdded" if parameters["entry"]["level"] == "error" => {
                    Some(parameters["entry"].to_string())
                }
                "Runtime.consoleAPICalled" if parameters["type"] == "error" => Some(parameters.to_string()),
                _ => None,
            }
        };
        self.events.iter().filter_map(complaint).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Decodes base64 (RFC 4648, section 4).
fn decoded(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let word = chunk.iter().fold(0_u32, |word, byte| (word << 6) | u32::from(value(*byte)))
            << (6 * (4 - chunk.len()));
        bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    bytes
}
