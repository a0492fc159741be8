//! Entry points to parsers that are private otherwise, for the targets in `fuzz/src/targets`.

use std::path::{Path, PathBuf};

use ureq::http::{Response, Uri};

use crate::hunt::bisect::index::{self, ReleaseKinds};
use crate::spec::checkpoint::hub;

/// Reads an answer of a package index and lists the releases between its first and its last.
///
/// # Errors
/// What is wrong with the answer.
pub fn releases(text: &str) -> Result<Vec<String>, String> {
    let listed = index::listed(text)?;
    let ends =
        [listed.first(), listed.last()].map(|end| end.map(|end| end.version.to_string()).unwrap_or_default());
    let kinds = ReleaseKinds { pre: true, yanked: true };
    index::between(&listed, &ends[0], &ends[1], kinds).map_err(|error| error.to_string())
}

/// Where a hub's answer redirects to, and whether the token goes there too; `None` for no redirect.
pub type Redirect = Option<(String, bool)>;

/// Reads the headers of a hub's answer to a request of `from`: the paths below `cache` that they name, and where they redirect
/// to, with whether the token goes there too. `None` if they are not headers of HTTP.
pub fn headers(
    cache: &Path,
    from: &str,
    status: u16,
    headers: &[(&[u8], &[u8])],
) -> Option<(Vec<PathBuf>, Redirect)> {
    let from: Uri = from.parse().ok()?;
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    Some(hub::of_headers(cache, &from, &answer.body(()).ok()?))
}
