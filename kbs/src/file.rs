//! Files of the operator and of ours: read whole under a cap, and replaced whole.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Bytes of a file that holds keys, certificates or an address.
pub(crate) const SMALL: usize = 64 * 1024;
/// In the name of a file that is being written.
pub(crate) const NEW: &str = ".new-";
const PRIVATE: u32 = 0o600;

/// A file of at most `cap` bytes, which may be a key: the memory is wiped.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] where there are more, and what the system says.
pub(crate) fn read(path: &Path, cap: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.min(cap) + 1));
    file.take(cap as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > cap {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {cap} bytes"),
        ));
    }
    Ok(bytes)
}

/// The same as text.
///
/// # Errors
/// As [`read`]; [`io::ErrorKind::InvalidData`] where it is not UTF-8.
pub(crate) fn read_text(path: &Path, cap: usize) -> io::Result<Zeroizing<String>> {
    let bytes = read(path, cap)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Writes a file beside the old one, and puts it in its place when it is on the disk.
///
/// # Errors
/// What the system says; the old file is whole then.
pub(crate) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    replace_as(path, text, None)
}

/// A file that is about to be changed. Whoever else would change it waits, also in another process.
pub(crate) struct Held {
    /// Without links: what they lead to is changed.
    path: PathBuf,
    file: File,
}

impl Held {
    /// Waits for those who hold it.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        loop {
            let file = File::open(&path)?;
            file.lock()?;
            // Who held it before may have put another file in its place.
            let (ours, there) = (file.metadata()?, fs::metadata(&path)?);
            if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
                return Ok(Self { path, file });
            }
        }
    }

    /// What is in it.
    ///
    /// # Errors
    /// As [`read_text`].
    pub(crate) fn text(&self, cap: usize) -> io::Result<Zeroizing<String>> {
        read_text(&self.path, cap)
    }

    /// Puts another in its place, with its owner and mode.
    ///
    /// # Errors
    /// As [`replace`], and where the owner cannot be kept.
    pub(crate) fn replace(self, text: &[u8]) -> io::Result<()> {
        replace_as(&self.path, text, Some(&self.file.metadata()?))
    }
}

fn replace_as(path: &Path, text: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{NEW}{:016x}", rand::random::<u64>()));
    let new = path.with_file_name(name);
    let written = write_new(&new, text, like).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        drop(fs::remove_file(&new));
        return written;
    }
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn write_new(path: &Path, text: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(path)?;
    file.write_all(text)?;
    if let Some(like) = like {
        let ours = file.metadata()?;
        if (ours.uid(), ours.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(like.permissions())?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_cap_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        replace(&path, b"12345678").unwrap();
        assert_eq!(**read(&path, 8).unwrap(), *b"12345678");
        let error = read(&path, 7).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        replace(&path, b"\xff").unwrap();
        let error = read_text(&path, 8).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("absent/a"), b"").is_err());
    }

    #[test]
    fn changes_wait_for_one_another_and_keep_link_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a"), dir.path().join("link"));
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let held = Held::of(&link).unwrap();
                    let text = held.text(8).unwrap();
                    held.replace(format!("{}x", *text).as_bytes()).unwrap();
                });
            }
        });
        assert_eq!(fs::read_to_string(&path).unwrap(), "xxxxxxxx");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    }
}
