//! A Hugging Face hub on loopback: the part of its HTTP interface that tfcheck uses, with optional faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One repository, `owner/model`, at one commit.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Answer everything with this status and `X-Error-Code`.
    pub(crate) refuse: Option<(u16, &'static str)>,
    /// Break the connection after this many bytes of a large file, once.
    pub(crate) cut_once: Option<usize>,
    /// Send content that does not match the digest.
    pub(crate) corrupt: bool,
    /// Answers some requests otherwise, by path and range: a hostile hub.
    pub(crate) hostile: Option<Box<Hostile>>,
    /// Send nothing for this long before each answer.
    pub(crate) pause: std::time::Duration,
    /// Requests as `METHOD path range authorization`, in order.
    pub(crate) log: Vec<String>,
}

/// Status, headers and body of a hostile answer; `None` for the usual one.
pub(crate) type Hostile =
    dyn Fn(&str, Option<&str>) -> Option<(u16, Vec<(&'static str, String)>, Vec<u8>)> + Send;

pub(crate) struct Hub {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub(crate) fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = (state.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, endpoint) = shared.clone();
                std::thread::spawn(move || serve(&stream.unwrap(), &state, &endpoint));
            }
        });
        Self { endpoint, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Requests since the last call.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

fn serve(stream: &TcpStream, state: &Mutex<State>, endpoint: &str) {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    if reader.read_line(&mut request).unwrap_or(0) == 0 {
        return;
    }
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let (mut range, mut authorization) = (None, "-".to_owned());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "range" => range = Some(value.to_owned()),
            "authorization" => value.clone_into(&mut authorization),
            _ => (),
        }
    }
    let pause = state.lock().unwrap().pause;
    std::thread::sleep(pause);
    let answer = {
        let mut state = state.lock().unwrap();
        state.log.push(format!("{path} {} {authorization}", range.as_deref().unwrap_or("-")));
        answer(&mut state, &path, range.as_deref(), endpoint)
    };
    let mut head = format!(
        "HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in answer.headers {
        head += &[name, ": ", &value, "\r\n"].concat();
    }
    let sent = &answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())];
    let mut writer = stream;
    // A client may close the connection early.
    let _ = writer
        .write_all(head.as_bytes())
        .and_then(|()| writer.write_all(b"\r\n"))
        .and_then(|()| writer.write_all(sent));
}

fn answer(state: &mut State, path: &str, range: Option<&str>, endpoint: &str) -> Answer {
    let plain =
        |status, headers, body: &str| Answer { status, headers, body: body.as_bytes().to_vec(), cut: None };
    let hostile = state.hostile.as_ref().and_then(|hostile| hostile(path, range));
    if let Some((status, headers, body)) = hostile {
        return Answer { status, headers, body, cut: None };
    }
    if let Some((status, code)) = state.refuse {
        return plain(
            status,
            vec![("X-Error-Code", code.to_owned()), ("X-Error-Message", "as asked".to_owned())],
            "",
        );
    }
    // The hub answers with a relative redirect for a renamed repository, and for an old name without an owner.
    let moved = ["owner/old-name", "gpt0"].iter().find_map(|name| path.split_once(name));
    if let Some((before, after)) = moved {
        return plain(307, vec![("Location", format!("{before}owner/model{after}"))], "");
    }
    if let Some(revision) = path.strip_prefix("/api/models/owner/model/revision/") {
        if !["main", "v1", COMMIT].contains(&revision) {
            return plain(404, vec![("X-Error-Code", "RevisionNotFound".to_owned())], "");
        }
        let siblings: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        return plain(200, Vec::new(), &json!({"sha": COMMIT, "siblings": siblings}).to_string());
    }
    let resolve = format!("/owner/model/resolve/{COMMIT}/");
    let name = path.strip_prefix(&resolve).or_else(|| path.strip_prefix("/cdn/"));
    let Some((name, bytes)) = name.and_then(|name| state.files.get_key_value(name)) else {
        return plain(404, vec![("X-Error-Code", "RepoNotFound".to_owned())], "");
    };
    let sha256 = format!("{:x}", Hex(&Sha256::digest(bytes)));
    let is_large = name.ends_with(".safetensors");
    if is_large && path.starts_with(&resolve) {
        let headers = vec![
            ("X-Repo-Commit", COMMIT.to_owned()),
            ("X-Linked-Etag", format!("\"{sha256}\"")),
            ("Location", format!("{endpoint}/cdn/{name}")),
        ];
        return plain(302, headers, "");
    }
    let (first, last) =
        range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')).unwrap_or(("0", ""));
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(bytes.len().saturating_sub(1));
    if first >= bytes.len() {
        return plain(416, vec![("Content-Range", format!("bytes */{}", bytes.len()))], "");
    }
    let headers = vec![
        ("X-Repo-Commit", COMMIT.to_owned()),
        ("ETag", format!("\"{}\"", &sha256[..40])),
        ("Content-Range", format!("bytes {first}-{last}/{}", bytes.len())),
    ];
    let mut body = bytes[first..=last].to_vec();
    if state.corrupt && is_large {
        *body.last_mut().unwrap() ^= 1;
    }
    let cut = if is_large && body.len() > 1 { state.cut_once.take() } else { None };
    Answer { status: 206, headers, body, cut }
}

/// Formats bytes as lower-case hexadecimal.
struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
