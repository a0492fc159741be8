//! SHA-256 of what is read.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::machine::hex;

/// Lower-case hex SHA-256 of everything that `reader` gives. `proceed` is told the number of bytes of each piece.
///
/// # Errors
/// When it cannot be read; and the errors of `proceed`, which end the reading.
pub(crate) fn sha256(
    reader: &mut impl Read,
    mut proceed: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        proceed(read as u64)?;
        hasher.update(&buffer[..read]);
    }
}
