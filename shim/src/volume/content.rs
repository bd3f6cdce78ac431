//! The host's small files, read within bounds, and by descriptors: what a pod puts in their place meanwhile leads
//! nowhere else.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_api::content::ContentFile;
use agent_api::{ErrorCode, limit};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

/// The kubelet's link to the set that holds.
pub(super) const DATA: &str = "..data";
/// How all is opened: nothing that is read here makes a reader wait.
const READING: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);
/// How often a set is read again that the kubelet replaced meanwhile.
const TRIES: usize = 3;

/// Why files cannot be sent.
#[derive(Debug, Error)]
pub enum ContentError {
    /// One cannot be read.
    #[error("{path:?}: {source}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is something else.
    #[error("{0:?} is neither a file nor a directory")]
    Odd(PathBuf),
    /// There is too much.
    #[error(
        "{0:?} is more than goes into a guest that shares no files with the host: {file} bytes a file, {set} bytes and {files} files a volume",
        file = limit::MAX_CONTENT_FILE, set = limit::MAX_CONTENT_SET, files = limit::MAX_CONTENT_FILES
    )]
    TooMuch(PathBuf),
    /// The path is no text.
    #[error("{0:?} is not a name that can be sent")]
    Name(PathBuf),
}

impl ContentError {
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::Read { .. } => ErrorCode::Internal,
            Self::Odd(_) | Self::Name(_) => ErrorCode::InvalidArgument,
            Self::TooMuch(_) => ErrorCode::ResourceExhausted,
        }
    }
}

/// Files that go together.
#[derive(Debug, Default)]
pub struct Set {
    files: Vec<ContentFile>,
    bytes: usize,
}

impl Set {
    pub(super) fn into_files(self) -> Vec<ContentFile> {
        self.files
    }

    /// Parts of at most so many bytes, of which the first may be empty.
    pub(super) fn split(self, most: usize) -> Vec<Self> {
        let mut parts = vec![Self::default()];
        for file in self.files {
            let fits = |part: &Self| part.bytes + file.data.len() <= most || part.files.is_empty();
            match parts.last_mut().filter(|part| fits(part)) {
                Some(part) => part.push(file),
                None => {
                    let mut part = Self::default();
                    part.push(file);
                    parts.push(part);
                }
            }
        }
        parts
    }

    fn push(&mut self, file: ContentFile) {
        self.bytes += file.data.len();
        self.files.push(file);
    }
}

/// Whether a directory's files are replaced as one, by the kubelet's link.
#[must_use]
pub fn is_replaced_as_one(directory: &Path) -> bool {
    fs::symlink_metadata(directory.join(DATA)).is_ok_and(|found| found.is_symlink())
}

/// One file.
///
/// # Errors
/// It cannot be read, or is too large.
pub fn file(path: &Path) -> Result<Set, ContentError> {
    let mut set = Set::default();
    // Where a bind mount would lead, this leads too.
    let open = rustix::fs::open(path, READING, Mode::empty()).map_err(unreadable(path))?;
    read(open, path, String::new(), &mut set)?;
    Ok(set)
}

/// The files of a directory: of the set that holds, where there is one.
///
/// # Errors
/// One cannot be read, or there is too much.
pub fn set(directory: &Path) -> Result<Set, ContentError> {
    for _ in 1..TRIES {
        match set_once(directory) {
            // It was replaced.
            Err(ContentError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    set_once(directory)
}

fn set_once(directory: &Path) -> Result<Set, ContentError> {
    let flags = READING | OFlags::DIRECTORY;
    let open = rustix::fs::open(directory, flags, Mode::empty()).map_err(unreadable(directory))?;
    let mut set = Set::default();
    let Some(name) = holding(&open, directory)? else {
        walk(&open, directory, "", 0, &mut set)?;
        return Ok(set);
    };
    let path = directory.join(&name);
    let inner = step(&open, &name, OFlags::DIRECTORY).map_err(unreadable(&path))?;
    walk(&inner, &path, "", 0, &mut set)?;
    Ok(set)
}

/// The name of the set that the kubelet's link leads to, where there is one: a directory beside the link, and
/// nothing elsewhere.
fn holding(open: &OwnedFd, directory: &Path) -> Result<Option<String>, ContentError> {
    let data = || directory.join(DATA);
    let name = match rustix::fs::readlinkat(open, DATA, Vec::new()) {
        Ok(name) => name,
        Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
        Err(error) => return Err(unreadable(&data())(error)),
    };
    let name = name.into_string().map_err(|_| ContentError::Name(data()))?;
    match name.contains('/') || matches!(name.as_str(), "" | "." | "..") {
        true => Err(ContentError::Odd(data())),
        false => Ok(Some(name)),
    }
}

/// Opens what stands under a name, if that is no link. A FIFO that nobody writes to holds nobody up.
fn step(at: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = READING | OFlags::NOFOLLOW | flags;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// Reads a directory that is open, whose `path` is for errors alone.
fn walk(
    open: &OwnedFd,
    path: &Path,
    name: &str,
    depth: usize,
    set: &mut Set,
) -> Result<(), ContentError> {
    if depth >= limit::MAX_CONTENT_DEPTH {
        return Err(ContentError::TooMuch(path.to_owned()));
    }
    for part in entries(open, path)? {
        let below = path.join(&part);
        let found = rustix::fs::statat(open, &part, AtFlags::SYMLINK_NOFOLLOW);
        let kind = FileType::from_raw_mode(found.map_err(unreadable(&below))?.st_mode);
        let name = match name {
            "" => part.clone(),
            above => format!("{above}/{part}"),
        };
        let opened = |flags| step(open, &part, flags).map_err(unreadable(&below));
        match kind {
            FileType::Directory => {
                walk(&opened(OFlags::DIRECTORY)?, &below, &name, depth + 1, set)?;
            }
            FileType::RegularFile => read(opened(OFlags::empty())?, &below, name, set)?,
            _ => return Err(ContentError::Odd(below)),
        }
    }
    Ok(())
}

/// The names in a directory, sorted.
fn entries(open: &OwnedFd, path: &Path) -> Result<Vec<String>, ContentError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(open).map_err(unreadable(path))? {
        let entry = entry.map_err(unreadable(path))?;
        match entry.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(name) => names.push(name.to_owned()),
            Err(_) => {
                let name = entry.file_name().to_string_lossy().into_owned();
                return Err(ContentError::Name(path.join(name)));
            }
        }
        if names.len() > limit::MAX_CONTENT_FILES {
            return Err(ContentError::TooMuch(path.to_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn read(open: OwnedFd, path: &Path, name: String, set: &mut Set) -> Result<(), ContentError> {
    let file = File::from(open);
    let found = file.metadata().map_err(unreadable(path))?;
    if !found.is_file() {
        return Err(ContentError::Odd(path.to_owned()));
    }
    let most = u64::try_from(limit::MAX_CONTENT_FILE).unwrap_or(u64::MAX);
    let mut data = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut data)
        .map_err(unreadable(path))?;
    let is_too_much = data.len() > limit::MAX_CONTENT_FILE
        || set.bytes + data.len() > limit::MAX_CONTENT_SET
        || set.files.len() >= limit::MAX_CONTENT_FILES;
    if is_too_much {
        return Err(ContentError::TooMuch(path.to_owned()));
    }
    set.push(ContentFile {
        path: name,
        mode: found.mode() & 0o777,
        uid: found.uid(),
        gid: found.gid(),
        data,
        ..Default::default()
    });
    Ok(())
}

fn unreadable<E: Into<io::Error>>(path: &Path) -> impl Fn(E) -> ContentError {
    let path = path.to_owned();
    move |source| ContentError::Read {
        path: path.clone(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(set: &Set) -> Vec<(&str, &[u8])> {
        let files = set.files.iter();
        files
            .map(|file| (file.path.as_str(), file.data.as_slice()))
            .collect()
    }

    #[test]
    fn the_set_that_holds_is_read_without_the_kubelets_links() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("..2024_1/sub")).unwrap();
        fs::write(root.join("..2024_1/key"), "1").unwrap();
        fs::write(root.join("..2024_1/sub/two"), "2").unwrap();
        symlink("..2024_1", root.join(DATA)).unwrap();
        symlink("..data/key", root.join("key")).unwrap();
        assert!(is_replaced_as_one(root));
        let set = set(root).unwrap();
        assert_eq!(names(&set), [("key", &b"1"[..]), ("sub/two", b"2")]);
    }

    #[test]
    fn links_and_too_large_files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/etc/shadow", directory.path().join("link")).unwrap();
        let error = set(directory.path()).unwrap_err();
        assert!(error.to_string().contains("link"), "{error}");
        let large = directory.path().join("large");
        fs::write(&large, vec![0; limit::MAX_CONTENT_FILE + 1]).unwrap();
        let error = file(&large).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    }

    #[test]
    fn a_set_is_beside_its_link_and_a_fifo_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("key"), "1").unwrap();
        let data = directory.path().join(DATA);
        for target in [outside.path(), Path::new("../x"), Path::new("..")] {
            symlink(target, &data).unwrap();
            let error = set(directory.path()).unwrap_err();
            assert!(matches!(error, ContentError::Odd(_)), "{error}");
            fs::remove_file(&data).unwrap();
        }
        // A link in the place of the set itself.
        symlink(outside.path(), directory.path().join("..1")).unwrap();
        symlink("..1", &data).unwrap();
        assert!(set(directory.path()).is_err());
        let fifo = outside.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR).unwrap();
        assert!(matches!(set(outside.path()), Err(ContentError::Odd(_))));
        assert!(matches!(file(&fifo), Err(ContentError::Odd(_))));
    }

    #[test]
    fn a_set_goes_in_parts_that_fit() {
        let mut set = Set::default();
        for length in [4, 5, 3, 9, 0] {
            set.push(ContentFile {
                data: vec![0; length],
                ..Default::default()
            });
        }
        let sizes: Vec<_> = set.split(8).iter().map(|part| part.bytes).collect();
        assert_eq!(sizes, [4, 8, 9, 0]);
        assert_eq!(Set::default().split(8).len(), 1);
    }
}
