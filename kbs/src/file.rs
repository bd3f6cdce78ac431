//! Files of the operator and of ours: read whole under a cap, and replaced whole.
//!
//! A file system may not answer, and a pipe waits for who writes to it: what reads a file while the
//! broker runs does it aside.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};
use zeroize::Zeroizing;

/// Bytes of a file that holds keys, certificates or an address.
pub(crate) const SMALL: usize = 64 * 1024;
/// In the name of a file that is being written.
pub(crate) const NEW: &str = ".new-";
const PRIVATE: u32 = 0o600;

/// After which a file that does not answer is told of.
const PATIENCE: Duration = Duration::from_secs(5);

/// A regular file of at most `cap` bytes, for who runs already and waits for nobody.
///
/// # Errors
/// As [`read`]; [`io::ErrorKind::InvalidInput`] where it is another kind of file.
pub(crate) fn read_regular(path: &Path, cap: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // A pipe without a writer is opened at once.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    read_open(file, cap)
}

/// Does what reads files on a thread of its own, and waits for it: whoever waits is held up, and
/// nobody else, and the end of the program waits for neither. Nothing where there is no thread to be
/// had.
pub(crate) async fn aside<T: Send + 'static>(
    what: &'static str,
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, mut wait) = oneshot::channel();
    let started = thread::Builder::new().spawn(move || drop(done.send(read())));
    if let Err(error) = started {
        tracing::error!(%error, what, "there is no thread to read them");
        return None;
    }
    if let Ok(read) = timeout(PATIENCE, &mut wait).await {
        return read.ok();
    }
    tracing::error!(what, "they cannot be read: the file system does not answer");
    wait.await.ok()
}

/// A file of at most `cap` bytes, which may be a key: the memory is wiped.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] where there are more, and what the system says.
pub(crate) fn read(path: &Path, cap: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    read_open(File::open(path)?, cap)
}

fn read_open(file: File, cap: usize) -> io::Result<Zeroizing<Vec<u8>>> {
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
    text(&read(path, cap)?)
}

/// A regular file as text.
///
/// # Errors
/// As [`read_regular`]; [`io::ErrorKind::InvalidData`] where it is not UTF-8.
pub(crate) fn read_regular_text(path: &Path, cap: usize) -> io::Result<Zeroizing<String>> {
    text(&read_regular(path, cap)?)
}

fn text(bytes: &[u8]) -> io::Result<Zeroizing<String>> {
    let text = std::str::from_utf8(bytes)
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
    fn a_pipe_is_no_regular_file_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [pipe.as_path(), dir.path()] {
            let error = read_regular(path, 8).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[tokio::test]
    async fn who_reads_aside_holds_up_nobody_else() {
        let (go, wait) = std::sync::mpsc::channel();
        let read = aside("a test", move || wait.recv().unwrap());
        let other = async {
            tokio::task::yield_now().await;
            go.send(7).unwrap();
        };
        assert_eq!(tokio::join!(read, other).0, Some(7));
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
