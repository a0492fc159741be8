//! The releases of transformers on the package index that uv uses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use bounds::limits::{CONFIG_BYTES, HUB_JSON_BYTES};
use pep440_rs::Version;
use serde::Deserialize;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::error::BisectError;

/// The package whose releases are listed.
const PACKAGE: &str = "transformers";
/// The index if none is configured.
const PYPI: &str = "https://pypi.org/simple";
/// Prefers PEP 691's JSON over the HTML of PEP 503, which every mirror serves.
const ACCEPT: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";
/// Files of trusted certificates on Debian, Fedora, SUSE and macOS.
const CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Longest wait for the whole list.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Maximum size of a list in bytes; PyPI's is 0.2 MB.
const LARGEST: u64 = 64 << 20;

/// A release and whether it was yanked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) version: Version,
    /// Whether every file was yanked.
    pub(crate) is_yanked: bool,
}

/// Which kinds of releases to include besides stable ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReleaseKinds {
    pub(crate) pre: bool,
    pub(crate) yanked: bool,
}

/// Every release on the index, oldest first.
pub(crate) fn releases() -> Result<Vec<Release>, BisectError> {
    let index = index();
    let address = format!("{}/{PACKAGE}/", index.trim_end_matches('/'));
    let failed = |reason: String| BisectError::Index { index: without_credentials(&index), reason };
    let text = fetched(&address).map_err(failed)?;
    listed(&text).map_err(failed)
}

/// The releases in an index's answer, oldest first.
pub(crate) fn listed(text: &str) -> Result<Vec<Release>, String> {
    let found = if text.trim_start().starts_with('{') { from_json(text) } else { Ok(from_html(text)) };
    let found = found.map_err(|error| format!("the list is malformed: {error}"))?;
    if found.is_empty() { Err("it lists no file of a release".to_owned()) } else { Ok(found) }
}

/// The versions from `good` to `bad`, oldest first. Both ends are included even if `kinds` excludes them.
pub(crate) fn between(
    releases: &[Release],
    good: &str,
    bad: &str,
    kinds: ReleaseKinds,
) -> Result<Vec<String>, BisectError> {
    let known = |text: &str| {
        let version = text.parse::<Version>().ok();
        let listed =
            version.as_ref().and_then(|version| releases.iter().find(|known| known.version == *version));
        listed.map(|known| &known.version).ok_or_else(|| {
            let nearest = version.as_ref().and_then(|version| {
                let newer = releases.iter().find(|known| known.version > *version);
                newer.or(releases.last()).map(|known| known.version.to_string())
            });
            BisectError::UnknownRelease {
                version: text.to_owned(),
                nearest,
                hint: "pip index versions transformers lists them; a commit or tag needs --repository".into(),
            }
        })
    };
    let (from, to) = (known(good)?, known(bad)?);
    let sides = || (good.to_owned(), bad.to_owned());
    if from == to {
        let (good, bad) = sides();
        return Err(BisectError::Same { good, bad });
    }
    if from > to {
        let (good, bad) = sides();
        return Err(BisectError::Reversed { good, bad });
    }
    let counts = |release: &&Release| {
        let version = &release.version;
        let is_end = version == from || version == to;
        let is_wanted = (kinds.pre || !version.any_prerelease()) && (kinds.yanked || !release.is_yanked);
        from <= version && version <= to && (is_end || is_wanted)
    };
    Ok(releases.iter().filter(counts).map(|release| release.version.to_string()).collect())
}

/// The index that uv would use: its environment variables, then its configuration files.
fn index() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    variable("UV_DEFAULT_INDEX")
        .or_else(|| variable("UV_INDEX_URL"))
        .map(|value| unnamed(&value))
        .or_else(configured)
        .unwrap_or_else(|| PYPI.to_owned())
}

/// The URL of `NAME=URL` or `URL`.
fn unnamed(index: &str) -> String {
    match index.split_once('=') {
        Some((name, url)) if !name.contains(['/', ':']) => url.trim().to_owned(),
        _ => index.trim().to_owned(),
    }
}

/// The default index of uv's configuration; the user's file has precedence over the system's.
fn configured() -> Option<String> {
    let named = std::env::var_os("UV_CONFIG_FILE").map(PathBuf::from);
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| dirs::home_dir().map(|home| home.join(".config")))
        .map(|folder| folder.join("uv/uv.toml"));
    let files = match named {
        Some(file) => vec![file],
        None => user.into_iter().chain([PathBuf::from("/etc/uv/uv.toml")]).collect(),
    };
    files.iter().find_map(|file| default_index(&bounds::file::read_text(file, CONFIG_BYTES).ok()?))
}

/// The default index in the text of a `uv.toml`.
fn default_index(text: &str) -> Option<String> {
    let document: toml::Table = text.parse().ok()?;
    let url = |table: &toml::Value, key: &str| table.get(key)?.as_str().map(str::to_owned);
    let is_default = |table: &&toml::Value| table.get("default").and_then(toml::Value::as_bool) == Some(true);
    let listed = document.get("index").and_then(toml::Value::as_array);
    let listed =
        listed.and_then(|indexes| indexes.iter().find(is_default)).and_then(|index| url(index, "url"));
    let pip = document.get("pip").and_then(|pip| url(pip, "index-url"));
    let older = document.get("index-url").and_then(toml::Value::as_str).map(str::to_owned);
    listed.or(older).or(pip)
}

/// As [`fetch`], in a thread of its own, which a request to stop leaves behind.
fn fetched(address: &str) -> Result<String, String> {
    let (sender, answer) = channel();
    let address = address.to_owned();
    std::thread::spawn(move || sender.send(fetch(&address)));
    loop {
        match answer.recv_timeout(Duration::from_millis(50)) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Timeout) if !reference::is_stopped() => {}
            Err(_) => return Err("interrupted".to_owned()),
        }
    }
}

fn fetch(address: &str) -> Result<String, String> {
    let mut config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(true);
    if let Some(roots) = roots() {
        config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    let agent = ureq::Agent::new_with_config(config.build());
    let mut answer = agent.get(address).header("Accept", ACCEPT).call().map_err(|error| error.to_string())?;
    answer.body_mut().with_config().limit(LARGEST).read_to_string().map_err(|error| error.to_string())
}

/// The certificates that this system trusts. uv and pip use the same ones, because a mirror may have a private
/// certificate authority.
fn roots() -> Option<RootCerts> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let mut files = named.into_iter().chain(CERTIFICATES.map(PathBuf::from));
    let pem = files.find_map(|file| bounds::file::read(&file, HUB_JSON_BYTES).ok())?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    (!certificates.is_empty()).then(|| RootCerts::Specific(Arc::new(certificates)))
}

fn without_credentials(address: &str) -> String {
    match address.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => address.to_owned(),
    }
}

#[derive(Deserialize)]
struct Listing {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    filename: String,
    /// `false`, `true`, or the reason.
    #[serde(default)]
    yanked: serde_json::Value,
}

fn from_json(text: &str) -> Result<Vec<Release>, serde_json::Error> {
    let listing: Listing = serde_json::from_str(text)?;
    Ok(folded(listing.files.iter().map(|file| {
        let is_yanked = !matches!(file.yanked, serde_json::Value::Null | serde_json::Value::Bool(false));
        (file.filename.as_str(), is_yanked)
    })))
}

/// The releases behind the anchors of a PEP 503 page.
fn from_html(text: &str) -> Vec<Release> {
    let anchors = text.split("<a ").skip(1).filter_map(|rest| {
        let (attributes, rest) = rest.split_once('>')?;
        let name = rest.split('<').next()?.trim();
        Some((name, attributes.contains("data-yanked")))
    });
    folded(anchors)
}

/// Groups files by release, oldest first. A release is yanked if all of its files are.
fn folded<'a>(files: impl Iterator<Item = (&'a str, bool)>) -> Vec<Release> {
    let mut found: BTreeMap<Version, bool> = BTreeMap::new();
    for (name, is_yanked) in files {
        if let Some(version) = version_of(name) {
            *found.entry(version).or_insert(true) &= is_yanked;
        }
    }
    found.into_iter().map(|(version, is_yanked)| Release { version, is_yanked }).collect()
}

/// The version in the file name of a wheel or source distribution.
fn version_of(file: &str) -> Option<Version> {
    let rest = file.strip_prefix(PACKAGE)?.strip_prefix('-')?;
    let version = match rest.strip_suffix(".whl") {
        Some(wheel) => wheel.split('-').next()?,
        None => rest.strip_suffix(".tar.gz").or_else(|| rest.strip_suffix(".zip"))?,
    };
    version.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"meta": {"api-version": "1.3"}, "name": "transformers", "files": [
        {"filename": "transformers-4.10.0-py3-none-any.whl", "yanked": false},
        {"filename": "transformers-4.9.2.tar.gz", "yanked": false},
        {"filename": "transformers-4.11.0-py3-none-any.whl", "yanked": "broken"},
        {"filename": "transformers-4.11.0.tar.gz", "yanked": true},
        {"filename": "transformers-4.9.2-py3-none-any.whl", "yanked": "one file alone"},
        {"filename": "transformers-5.0.0rc1-py3-none-any.whl"},
        {"filename": "transformers-5.0.0-py3-none-any.whl"},
        {"filename": "transformers-5.1.0-py3.7.egg"}]}"#;

    fn versions(good: &str, bad: &str, kinds: ReleaseKinds) -> Result<Vec<String>, BisectError> {
        between(&from_json(JSON).unwrap(), good, bad, kinds)
    }

    #[test]
    fn releases_follow_pep_440_order_and_are_stable_by_default() {
        let check = |kinds, expected: &[&str]| {
            assert_eq!(versions("4.9.2", "5.0.0", kinds).unwrap(), expected, "{kinds:?}");
        };
        check(ReleaseKinds::default(), &["4.9.2", "4.10.0", "5.0.0"]);
        check(ReleaseKinds { pre: true, yanked: false }, &["4.9.2", "4.10.0", "5.0.0rc1", "5.0.0"]);
        check(ReleaseKinds { pre: true, yanked: true }, &["4.9.2", "4.10.0", "4.11.0", "5.0.0rc1", "5.0.0"]);
        // An end that the user gives is included, pre-release or not.
        assert_eq!(versions("4.10.0", "5.0.0rc1", ReleaseKinds::default()).unwrap(), ["4.10.0", "5.0.0rc1"]);
    }

    #[test]
    fn an_invalid_release_range_is_refused() {
        let none = ReleaseKinds::default();
        assert!(matches!(versions("5.0.0", "4.10.0", none), Err(BisectError::Reversed { .. })));
        assert!(matches!(versions("4.10", "4.10.0", none), Err(BisectError::Same { .. })));
        let Err(BisectError::UnknownRelease { nearest, .. }) = versions("4.9.3", "5.0.0", none) else {
            panic!("4.9.3 is not listed");
        };
        assert_eq!(nearest.as_deref(), Some("4.10.0"));
        assert!(matches!(
            versions("main", "5.0.0", none),
            Err(BisectError::UnknownRelease { nearest: None, .. })
        ));
    }

    #[test]
    fn releases_are_read_from_an_html_index() {
        let html = r#"<html><body><a href="../../x/transformers-4.9.2.tar.gz#sha256=1">transformers-4.9.2.tar.gz</a>
            <a href="x" data-yanked="broken">transformers-4.10.0-py3-none-any.whl</a></body></html>"#;
        let found: Vec<_> = from_html(html)
            .into_iter()
            .map(|release| (release.version.to_string(), release.is_yanked))
            .collect();
        assert_eq!(found, [("4.9.2".to_owned(), false), ("4.10.0".to_owned(), true)]);
    }

    #[test]
    fn the_index_follows_the_uv_configuration() {
        assert_eq!(unnamed("https://mirror.example/simple?a=b"), "https://mirror.example/simple?a=b");
        assert_eq!(unnamed("mirror=https://mirror.example/simple"), "https://mirror.example/simple");
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(default_index(text).as_deref(), expected, "{text}");
        };
        check(
            "[[index]]\nurl = \"https://a.example\"\n[[index]]\nurl = \"https://b.example\"\ndefault = true",
            Some("https://b.example"),
        );
        check("index-url = \"https://c.example\"", Some("https://c.example"));
        check("[[index]]\nurl = \"https://a.example\"", None);
        assert_eq!(without_credentials("https://me:secret@a.example/simple"), "https://a.example/simple");
    }
}
