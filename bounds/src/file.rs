//! Opening and reading files that a config, a checkpoint, a worker or a run folder names.
//!
//! Only regular files are opened: a FIFO would block for ever and a device would never end. A file is read up to a limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path};

use rustix::fs::OFlags;

use crate::limits::{Exceeded, Limit};

/// Opens a regular file to read it; symbolic links are followed.
///
/// # Errors
/// If it cannot be opened or is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    regular(OpenOptions::new().read(true).custom_flags(flags(OFlags::NONBLOCK)).open(path)?)
}

/// As [`open`], but a path whose last part is a symbolic link is refused.
///
/// # Errors
/// As [`open`], or if it is a link.
pub fn open_unlinked(path: &Path) -> io::Result<File> {
    let options = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    regular(OpenOptions::new().read(true).custom_flags(flags(options)).open(path).map_err(named)?)
}

/// Opens a file to append to it, and creates it if it does not exist. A symbolic link is refused, so that nothing outside
/// the folder is written.
///
/// # Errors
/// If it cannot be opened, is a link or is no regular file.
pub fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).custom_flags(flags(OFlags::NONBLOCK | OFlags::NOFOLLOW));
    regular(options.open(path).map_err(named)?)
}

/// Opens a file to lock it, and creates it if it does not exist. What it holds stays, and a symbolic link is refused.
///
/// # Errors
/// As [`append`].
pub fn lockable(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(false);
    options.custom_flags(flags(OFlags::NONBLOCK | OFlags::NOFOLLOW));
    regular(options.open(path).map_err(named)?)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// If it cannot be read, is no regular file, or is larger.
pub fn read(path: &Path, limit: Limit) -> io::Result<Vec<u8>> {
    read_open(&open(path)?, limit)
}

/// As [`read`], of a file that is no symbolic link.
///
/// # Errors
/// As [`read`], or if it is a link.
pub fn read_unlinked(path: &Path, limit: Limit) -> io::Result<Vec<u8>> {
    read_open(&open_unlinked(path)?, limit)
}

/// As [`read`], as text.
///
/// # Errors
/// As [`read`], or if the file is not UTF-8 text; for UTF-16 the error names that encoding.
pub fn read_text(path: &Path, limit: Limit) -> io::Result<String> {
    text(read(path, limit)?)
}

/// Reads an open file of at most `limit` bytes from where it is.
///
/// # Errors
/// If it cannot be read or is larger.
pub fn read_open(file: &File, limit: Limit) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    limit.check(length).map_err(too_large)?;
    let mut bytes = Vec::with_capacity(length as usize);
    // A file may grow while it is read, and files of /proc have no length.
    file.take(limit.most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit.most {
        return Err(too_large(Exceeded { found: None, limit }));
    }
    Ok(bytes)
}

/// Bytes as UTF-8 text without a byte order mark.
///
/// # Errors
/// If they are not UTF-8.
pub fn text(bytes: Vec<u8>) -> io::Result<String> {
    let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        invalid(if is_utf16 {
            "it is UTF-16 text, not UTF-8; save it as UTF-8".to_owned()
        } else {
            format!("it is not UTF-8 text: byte {place} begins no character")
        })
    })?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

/// Whether a foreign name is one component of a path, and nothing else.
pub fn is_component(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_normal = matches!(components.next(), Some(Component::Normal(component)) if component == name);
    is_normal && components.next().is_none() && name.len() <= 255 && !name.chars().any(char::is_control)
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// `file`, unless it is something other than a regular file.
fn regular(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    let found = if kind.is_file() {
        return Ok(file);
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(invalid(format!("it is {found}, not a regular file")))
}

/// The system's error for a link that is not followed, in words.
fn named(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        invalid("it is a symbolic link, which tfcheck does not follow here".to_owned())
    } else if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) {
        invalid("it is a FIFO or a device, not a regular file".to_owned())
    } else {
        error
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

fn too_large(exceeded: Exceeded) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has {exceeded}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const SMALL: Limit = Limit { of: "bytes of a test", most: 4 };

    #[test]
    fn only_regular_files_are_read_and_only_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("fits"), "four").unwrap();
        std::fs::write(at("larger"), "fifth").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RWXU).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(at("fits"), at("link")).unwrap();
        assert_eq!(read(&at("fits"), SMALL).unwrap(), b"four");
        assert_eq!(read(&at("link"), SMALL).unwrap(), b"four");
        let check = |name: &str, expected: &str| {
            let error = read(&at(name), SMALL).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        };
        check("larger", "5 bytes of a test");
        check("fifo", "a FIFO, not a regular file");
        check("zero", "a device, not a regular file");
        check(".", "a folder, not a regular file");
    }

    #[test]
    fn a_link_is_not_followed_where_something_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, link) = (folder.path().join("victim"), folder.path().join("link"));
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, &link).unwrap();
        for opened in [append(&link), lockable(&link), open_unlinked(&link)] {
            assert!(opened.unwrap_err().to_string().contains("symbolic link"));
        }
        lockable(&victim).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn text_of_another_encoding_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        let check = |bytes: &[u8], expected: Result<&str, &str>| {
            std::fs::write(&path, bytes).unwrap();
            let limit = Limit { most: 100, ..SMALL };
            match (read_text(&path, limit), expected) {
                (Ok(text), Ok(expected)) => assert_eq!(text, expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, expected) => panic!("{found:?} where {expected:?} was expected"),
            }
        };
        check("\u{feff}ä".as_bytes(), Ok("ä"));
        check(b"\xff\xfea\0", Err("UTF-16"));
        check(b"ab\xe9", Err("byte 2"));
    }
}
