//! Files of the command line, each with a cap.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Error;

/// Reads a file, or standard input where it is `-`.
pub(super) fn read(path: &Path, cap: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut bytes = Zeroizing::new(Vec::new());
    let most = cap as u64 + 1;
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().take(most).read_to_end(&mut bytes),
        false => File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
    };
    read.map_err(|cause| failed(path, cause))?;
    if bytes.len() > cap {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            cap,
        });
    }
    Ok(bytes)
}

/// The same as text.
pub(super) fn read_text(path: &Path, cap: usize) -> Result<Zeroizing<String>, Error> {
    let bytes = read(path, cap)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::Text {
        path: path.to_owned(),
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Writes a file that its owner alone reads, and that was not there.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|cause| failed(path, cause))
}

fn failed(path: &Path, cause: io::Error) -> Error {
    Error::File {
        path: PathBuf::from(path),
        cause,
    }
}
