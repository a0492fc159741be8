//! Targets that read text: a chat template, a config of tfcheck, a worker's reply, a package index, a hub's headers.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use reference::protocol::Reply;
use tfcheck::spec::config::Config;
use tfcheck::spec::inputs::{self, Message};
use tfcheck::spec::plan::Plan;

use super::Parse;

/// Bytes of the stack on which templates are read; the process that reads them has as much (`inputs::serve`).
const STACK: usize = 256 << 20;

pub(super) fn template(folder: &Path) -> Parse {
    let path = folder.to_owned();
    let (requests, waiting) = channel::<(Vec<u8>, Sender<()>)>();
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        let messages = [
            Message { role: "user".to_owned(), content: "a <b> é".to_owned() },
            Message { role: "assistant".to_owned(), content: String::new() },
        ];
        for (bytes, done) in waiting {
            let _ = std::fs::write(path.join("chat_template.jinja"), bytes);
            let _ = inputs::render(&path, &messages);
            let _ = done.send(());
        }
    });
    thread.expect("the thread can be started");
    Box::new(move |bytes| {
        let (done, wait) = channel();
        requests.send((bytes.to_vec(), done)).expect("the thread reads templates until its requests end");
        wait.recv().expect("the thread answers");
    })
}

pub(super) fn toml(_: &Path) -> Parse {
    Box::new(|bytes| {
        let Ok(config) = Config::parse(&String::from_utf8_lossy(bytes), Path::new("tfcheck.toml")) else {
            return;
        };
        let Ok(plan) = Plan::new(&config, "cpu") else { return };
        let _ = plan.text(&config, &vec![None; plan.cells.len()]);
        plan.check(&config).expect("a plan that was just made is one of its config");
    })
}

pub(super) fn reply(_: &Path) -> Parse {
    Box::new(|bytes| {
        let _ = bounds::parse::<Reply>(bytes);
    })
}

pub(super) fn releases(_: &Path) -> Parse {
    Box::new(|bytes| {
        let _ = tfcheck::fuzzing::releases(&String::from_utf8_lossy(bytes));
    })
}

/// The first line is the status, each other one a header.
pub(super) fn headers(folder: &Path) -> Parse {
    const ENDPOINT: &str = "https://hub.invalid:8443/prefix";
    let cache = folder.join("cache");
    Box::new(move |bytes| {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let status =
            lines.next().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok()).unwrap_or(302);
        let headers: Vec<(&[u8], &[u8])> = lines
            .filter_map(|line| {
                let colon = line.iter().position(|byte| *byte == b':')?;
                Some((&line[..colon], line[colon + 1..].trim_ascii()))
            })
            .collect();
        let Some((paths, next)) = tfcheck::fuzzing::headers(&cache, ENDPOINT, status, &headers) else {
            return;
        };
        for path in paths {
            let inside =
                path.strip_prefix(cache.join("models--owner--name")).expect("a path of the model's folder");
            let is_plain = |part| matches!(part, std::path::Component::Normal(_));
            assert!(inside.components().all(is_plain), "{}", path.display());
        }
        if let Some((address, true)) = next {
            // Capitals in the name of a host are the same host.
            let address = address.to_ascii_lowercase();
            let rest = address
                .strip_prefix("https://hub.invalid:8443")
                .expect("the token goes to the endpoint alone");
            assert!(rest.is_empty() || rest.starts_with(['/', '?']), "{address}");
        }
    })
}

pub(super) fn shown(_: &Path) -> Parse {
    Box::new(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let line = bounds::shown(&text, 100);
        assert!(!line.chars().any(char::is_control), "{line:?}");
        // A character becomes at most `\u{10ffff}`.
        assert!(line.chars().count() <= 100 * 10 + 50, "{line:?}");
        let lines = bounds::lines(&text, 100);
        assert!(!lines.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')), "{lines:?}");
        let styled = bounds::styled(&text);
        assert!(!styled.contains("\x1b[2J") && !styled.contains("\x1b]"), "{styled:?}");
    })
}
