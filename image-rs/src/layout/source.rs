//! Where a layout's files are: below a directory, or in a tar archive. Both may be another's, so nothing leads out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::{LayoutError, failed};
use crate::unpack::{Archive, Limits, UnpackError};

/// Cap on the members of an archive: some for each layer of many images.
const MEMBERS_MAX: usize = 65_536;

/// The files of a layout.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Directory(PathBuf),
    Archive {
        path: PathBuf,
        /// Found out when the first file is asked for.
        members: Arc<OnceLock<Members>>,
    },
}

/// An open archive, and where its members are.
#[derive(Debug)]
pub(super) struct Members {
    file: Arc<File>,
    by_name: HashMap<Vec<u8>, (u64, u64)>,
}

impl Source {
    pub(super) fn directory(path: PathBuf) -> Self {
        Self::Directory(path)
    }

    pub(super) fn archive(path: PathBuf) -> Self {
        Self::Archive {
            path,
            members: Arc::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }

    /// What stands before the path in a name.
    pub(super) fn transport(&self) -> &'static str {
        match self {
            Self::Directory(_) => "oci",
            Self::Archive { .. } => "oci-archive",
        }
    }

    /// How an error names a file of it.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Opens a file; `None` when there is none.
    pub(super) fn open(&self, name: &str) -> Result<Option<Part>, LayoutError> {
        match self {
            Self::Directory(path) => open_below(path, name)
                .map_err(|errno| failed("open", &path.join(name), errno.into())),
            Self::Archive { path, members, .. } => {
                let members = match members.get() {
                    Some(members) => members,
                    None => {
                        let found = Members::find(path)?;
                        members.get_or_init(|| found)
                    }
                };
                let found = members.by_name.get(name.as_bytes());
                Ok(found.map(|(position, length)| Part {
                    file: Arc::clone(&members.file),
                    position: *position,
                    end: position + length,
                }))
            }
        }
    }
}

/// A link may stand for a blob, but not lead out of the layout; what is no file would be waited for without end.
fn open_below(directory: &Path, name: &str) -> Result<Option<Part>, Errno> {
    let top = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match openat(CWD, directory, top, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = loop {
        match openat2(&directory, name, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => break File::from(opened?),
        }
    };
    let meta = rustix::fs::fstat(&file)?;
    if !rustix::fs::FileType::from_raw_mode(meta.st_mode).is_file() {
        return Err(Errno::INVAL);
    }
    Ok(Some(Part {
        file: Arc::new(file),
        position: 0,
        end: u64::try_from(meta.st_size).unwrap_or(0),
    }))
}

impl Members {
    fn find(path: &Path) -> Result<Self, LayoutError> {
        let archive = |source| LayoutError::Archive {
            path: path.to_owned(),
            source,
        };
        let io = |source| failed("read", path, source);
        let file = File::open(path).map_err(|source| failed("open", path, source))?;
        let length = file.metadata().map_err(io)?.len();
        let reader = file.try_clone().map_err(io)?;
        let mut members = Archive::new(Sought {
            file: reader,
            position: 0,
        });
        let (limits, mut by_name) = (Limits::default(), HashMap::new());
        while let Some(entry) = members.next_entry(&limits).map_err(archive)? {
            let (position, size) = members.seek_behind().map_err(archive)?;
            let Some(name) = entry.file_name() else {
                continue;
            };
            if position.checked_add(size).is_none_or(|end| end > length) {
                return Err(archive(UnpackError::Truncated("a file")));
            }
            if by_name.len() == MEMBERS_MAX {
                let (setting, cap) = ("members of an archive", MEMBERS_MAX as u64);
                return Err(archive(UnpackError::Limit { setting, cap }));
            }
            if by_name.insert(name.to_vec(), (position, size)).is_some() {
                // Two readers could see two images.
                let name = String::from_utf8_lossy(name);
                let twice = format!("it has {name:?} twice");
                return Err(archive(UnpackError::Archive(twice)));
            }
        }
        Ok(Self {
            file: Arc::new(file),
            by_name,
        })
    }
}

/// A file that knows where it stands.
#[derive(Debug)]
struct Sought {
    file: File,
    position: u64,
}

impl Read for Sought {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Sought {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// A stretch of an open file.
#[derive(Debug)]
pub(super) struct Part {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Part {
    pub(super) fn left(&self) -> u64 {
        self.end - self.position
    }

    /// The next bytes, as many as wanted where there are so many; none at the end.
    pub(super) fn read(&mut self, wanted: usize) -> io::Result<Vec<u8>> {
        let wanted = usize::try_from(self.left()).map_or(wanted, |left| left.min(wanted));
        let mut bytes = vec![0; wanted];
        self.file.read_exact_at(&mut bytes, self.position)?;
        self.position += wanted as u64;
        Ok(bytes)
    }

    /// All that is left, when it is not too much.
    pub(super) fn read_all(mut self, path: &Path, cap: usize) -> Result<Vec<u8>, LayoutError> {
        if self.left() > cap as u64 {
            return Err(LayoutError::TooLarge {
                path: path.to_owned(),
                cap,
            });
        }
        self.read(cap)
            .map_err(|source| failed("read", path, source))
    }
}
