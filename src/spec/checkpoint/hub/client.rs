//! Requests to a hub. The server is untrusted: redirects are bounded and followed here, the token goes to the configured
//! endpoint alone, and a transfer ends when it stalls or when the user asks to stop.
//!
//! The socket is read in a thread of its own, because a blocking read cannot be interrupted; a transfer that is given up
//! leaves its thread behind, which ends with its connection.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bounds::limits::{HUB_REDIRECTS, HUB_STALL_SECONDS, LINE, TOKEN_BYTES};
use bounds::shown;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

/// Bytes that a transfer must bring in [`HUB_STALL_SECONDS`].
const LEAST_PROGRESS: usize = 1024;
/// Bytes of a piece of a body.
const PIECE: usize = 64 << 10;
/// Pieces that may wait for the reader, which bounds the memory of a transfer.
const WAITING: usize = 8;
/// Interval at which a wait checks the stop flag.
const SLICE: Duration = Duration::from_millis(50);

/// Why a request has no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The server cannot be reached, broke the connection or stalled.
    #[error("{0}")]
    Network(String),
    /// The server sends nothing, or too little for too long.
    #[error("only {bytes} bytes arrived in {} s", HUB_STALL_SECONDS.most)]
    Stalled {
        /// Bytes that arrived in that time.
        bytes: usize,
    },
    /// The server's answer breaks the protocol or a limit.
    #[error("{0}")]
    Answer(String),
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// The status and the headers that matter, of the last answer of a chain of redirects.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) status: u16,
    /// `x-error-code` and `x-error-message`.
    pub(super) error_code: String,
    pub(super) error_message: String,
    /// `x-linked-etag` or `etag` of the first answer that has one, without quotes. Untrusted: it is no path.
    pub(super) etag: Option<String>,
    /// First byte and total size by `content-range`.
    pub(super) range: Option<(u64, u64)>,
    /// `content-length`.
    pub(super) length: Option<u64>,
}

/// Sends requests to one endpoint.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
}

/// A body that arrives.
pub(super) struct Transfer<'a> {
    pub(super) head: Head,
    pieces: Receiver<Piece>,
    stop: &'a AtomicBool,
    /// When the current window of [`HUB_STALL_SECONDS`] began, and the bytes since.
    window: (Instant, usize),
}

enum Piece {
    Head(Head),
    Bytes(Vec<u8>),
    End,
    Failed(Failure),
}

impl Client {
    /// A client of `endpoint`.
    ///
    /// # Errors
    /// If the endpoint is no HTTP address, or the token holds characters that no token has.
    pub(super) fn new(endpoint: &str, token: Option<&str>) -> Result<Self, Failure> {
        let refused = |reason: &str| Failure::Answer(reason.to_owned());
        let address: Uri =
            endpoint.parse().map_err(|_| refused("HF_ENDPOINT is not an http or https address"))?;
        if !matches!(address.scheme_str(), Some("http" | "https")) || address.authority().is_none() {
            return Err(refused("HF_ENDPOINT is not an http or https address"));
        }
        // The address is shown in messages and reports.
        if address.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(refused("HF_ENDPOINT holds the name of a user; a secret belongs into HF_TOKEN"));
        }
        if let Some(token) = token
            && (token.len() as u64 > TOKEN_BYTES.most || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(refused(
                "HF_TOKEN is not a token: it is too long or holds spaces or control characters",
            ));
        }
        // The transfer itself notices a stall, and a stall is not tried again; these end the thread that it leaves behind.
        let stall = Duration::from_secs(HUB_STALL_SECONDS.most + 5);
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(stall))
            .timeout_per_read(Some(stall))
            .user_agent(concat!("tfcheck/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: Agent::new_with_config(config), endpoint: address, token: token.map(str::to_owned) })
    }

    /// Requests `path` of the endpoint, from byte `range.0` on and up to `range.1` if there is a range.
    ///
    /// # Errors
    /// If no final answer arrives.
    pub(super) fn get<'a>(
        &self,
        path: &str,
        range: Option<(u64, Option<u64>)>,
        stop: &'a AtomicBool,
    ) -> Result<Transfer<'a>, Failure> {
        let address = format!("{}{path}", self.endpoint.to_string().trim_end_matches('/'));
        let range = range
            .map(|(from, to)| format!("bytes={from}-{}", to.map_or_else(String::new, |to| to.to_string())));
        let (sender, pieces) = sync_channel(WAITING);
        let client = self.clone();
        std::thread::spawn(move || {
            let ended = client.send(&address, range.as_deref(), &sender);
            let last = ended.map_or_else(Piece::Failed, |()| Piece::End);
            // Nobody listens any more where the transfer was given up.
            let _ = sender.send(last);
        });
        let mut transfer = Transfer { head: Head::default(), pieces, stop, window: (Instant::now(), 0) };
        match transfer.piece()? {
            Piece::Head(head) => transfer.head = head,
            Piece::Failed(failure) => return Err(failure),
            Piece::Bytes(_) | Piece::End => {
                return Err(Failure::Answer("an answer without a status".to_owned()));
            }
        }
        Ok(transfer)
    }

    /// In the transfer's thread: follows redirects, then sends the head and the body.
    fn send(&self, address: &str, range: Option<&str>, sender: &SyncSender<Piece>) -> Result<(), Failure> {
        let mut address: Uri =
            address.parse().map_err(|_| Failure::Answer("its address is not valid".to_owned()))?;
        let mut etag = None;
        for _ in 0..=HUB_REDIRECTS.most {
            let mut request = self.agent.get(&address);
            if let Some(range) = range {
                request = request.header("Range", range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| is_same_origin(&address, &self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| match error {
                ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::LargeResponseHeader(..) => {
                    Failure::Answer(format!("it is not valid HTTP: {error}"))
                }
                error => Failure::Network(error.to_string()),
            })?;
            etag = etag.or_else(|| etag_of(answer.headers()));
            if answer.status().is_redirection() && answer.status() != 304 {
                address = target(&address, &answer)?;
                continue;
            }
            let _ = sender.send(Piece::Head(head(&answer, etag)));
            return body(answer, sender);
        }
        Err(Failure::Answer(format!("more than {} redirects", HUB_REDIRECTS.most)))
    }
}

fn body(answer: Response<Body>, sender: &SyncSender<Piece>) -> Result<(), Failure> {
    let mut reader = answer.into_body().into_reader();
    loop {
        let mut bytes = vec![0; PIECE];
        let read = reader.read(&mut bytes).map_err(|error| Failure::Network(error.to_string()))?;
        bytes.truncate(read);
        if read == 0 || sender.send(Piece::Bytes(bytes)).is_err() {
            return Ok(());
        }
    }
}

impl Transfer<'_> {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// If the connection breaks or stalls, or the user asks to stop.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.piece()? {
            Piece::Bytes(bytes) => Ok(Some(bytes)),
            Piece::End => Ok(None),
            Piece::Failed(failure) => Err(failure),
            Piece::Head(_) => Err(Failure::Answer("a second status".to_owned())),
        }
    }

    /// The whole body, of at most `most` bytes.
    ///
    /// # Errors
    /// As [`Transfer::next`], or if it is longer.
    pub(super) fn whole(&mut self, most: bounds::Limit) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next()? {
            all.extend_from_slice(&bytes);
            most.check(all.len() as u64).map_err(|error| Failure::Answer(error.to_string()))?;
        }
        Ok(all)
    }

    fn piece(&mut self) -> Result<Piece, Failure> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            let stalled = self.window.0.elapsed() >= Duration::from_secs(HUB_STALL_SECONDS.most);
            if stalled && self.window.1 < LEAST_PROGRESS {
                return Err(Failure::Stalled { bytes: self.window.1 });
            }
            if stalled {
                self.window = (Instant::now(), 0);
            }
            match self.pieces.recv_timeout(SLICE) {
                Ok(piece) => {
                    if let Piece::Bytes(bytes) = &piece {
                        self.window.1 += bytes.len();
                    }
                    return Ok(piece);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Network("the transfer ended without a word".to_owned()));
                }
            }
        }
    }
}

pub(super) fn head<T>(answer: &Response<T>, etag: Option<String>) -> Head {
    let headers = answer.headers();
    let number = |text: &str| text.trim().parse::<u64>().ok();
    Head {
        status: answer.status().as_u16(),
        error_code: text(headers, "x-error-code").unwrap_or_default(),
        error_message: text(headers, "x-error-message").unwrap_or_default(),
        etag,
        range: text(headers, "content-range").and_then(|range| {
            let (bytes, total) = range.strip_prefix("bytes ")?.split_once('/')?;
            let first = if bytes == "*" { 0 } else { number(bytes.split_once('-')?.0)? };
            Some((first, number(total)?))
        }),
        length: text(headers, "content-length").as_deref().and_then(number),
    }
}

/// A header's text, fit to be shown.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = String::from_utf8_lossy(headers.get(name)?.as_bytes());
    Some(shown(&value, LINE.most).into_owned())
}

pub(super) fn etag_of(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"))?;
    Some(etag.trim_start_matches("W/").trim_matches('"').to_owned()).filter(|etag| !etag.is_empty())
}

/// Where a redirect leads: another address or a path of the same server.
pub(super) fn target<T>(from: &Uri, answer: &Response<T>) -> Result<Uri, Failure> {
    let refused = |what: &str| Failure::Answer(what.to_owned());
    let location =
        answer.headers().get("location").ok_or_else(|| refused("a redirect without a location"))?;
    let location = location.to_str().map_err(|_| refused("a redirect whose location is not printable"))?;
    let bad = || refused(&format!("a redirect to `{}`, which is no HTTP address", shown(location, 200)));
    let is_path = location.starts_with('/') && !location.starts_with("//");
    let address = if is_path {
        format!(
            "{}://{}{location}",
            from.scheme_str().unwrap_or_default(),
            from.authority().map_or("", |authority| authority.as_str())
        )
    } else {
        location.to_owned()
    };
    let address: Uri = address.parse().map_err(|_| bad())?;
    // No hub needs it, and `https://hub@elsewhere` is easily misread.
    if address.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(refused("a redirect to an address that holds the name of a user"));
    }
    match (from.scheme_str(), address.scheme_str()) {
        (Some("https"), Some("http")) => Err(refused("a redirect from https to http")),
        (_, Some("http" | "https")) if address.authority().is_some() => Ok(address),
        _ => Err(bad()),
    }
}

/// Whether two addresses have one scheme, host and port, as browsers define an origin.
pub(super) fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    let of = |address: &Uri| {
        let scheme = address.scheme_str().unwrap_or_default().to_ascii_lowercase();
        let default = if scheme == "https" { 443 } else { 80 };
        let host = address.host().unwrap_or_default().to_ascii_lowercase();
        let has_user = address.authority().is_some_and(|authority| authority.as_str().contains('@'));
        (scheme, host, address.port_u16().unwrap_or(default), has_user)
    };
    of(one) == of(other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]
mod tests {
    use super::*;

    #[test]
    fn the_token_belongs_to_one_scheme_host_and_port() {
        let check = |other: &str, expected: bool| {
            let endpoint: Uri = "https://hub.invalid/prefix".parse().unwrap();
            assert_eq!(is_same_origin(&other.parse().unwrap(), &endpoint), expected, "{other}");
        };
        check("https://HUB.invalid:443/x", true);
        check("http://hub.invalid/x", false);
        check("https://hub.invalid:8443/x", false);
        check("https://hub.invalid.evil/x", false);
        check("https://hub.invalid@evil/x", false);
        check("https://user@hub.invalid/x", false);
    }

    #[test]
    fn a_token_with_control_characters_and_an_address_that_is_none_are_refused() {
        for (endpoint, token) in [
            ("http://h", Some("a\nb")),
            ("http://h", Some("a b")),
            ("file:///etc", None),
            ("not a url", None),
            ("http://user:secret@h", None),
        ] {
            assert!(Client::new(endpoint, token).is_err(), "{endpoint} {token:?}");
        }
        assert!(Client::new("http://h:1/p", Some("hf_x")).is_ok());
    }
}
