//! Why a layer cannot be unpacked; each names the entry.

use std::io;

use rustix::io::Errno;

/// A layer that was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The decoded stream broke.
    #[error("the layer cannot be read")]
    Read(#[source] io::Error),
    /// Not a tar archive.
    #[error("the layer is not a valid tar archive: {0}")]
    Archive(String),
    /// An absolute name.
    #[error("entry {0:?} is refused: its name is absolute")]
    Absolute(String),
    /// `..` in a name.
    #[error("entry {0:?} is refused: its name contains \"..\"")]
    Parent(String),
    /// A name that no file system takes.
    #[error("entry {0:?} is refused: its name is empty, too long, or has a NUL byte")]
    Name(String),
    /// A symbolic link on the way leads above the root.
    #[error(
        "entry {entry:?} is refused: the symbolic link {link:?} on its way leads out of the root"
    )]
    Escape {
        /// Which entry.
        entry: String,
        /// Which link.
        link: String,
    },
    /// Symbolic links in a circle.
    #[error("entry {0:?} is refused: too many symbolic links on its way")]
    Loop(String),
    /// A hard link to nothing.
    #[error("hard link {entry:?} is refused: its target {target:?} is not in the image")]
    LinkTarget {
        /// Which entry.
        entry: String,
        /// What it links to.
        target: String,
    },
    /// A device, against the policy.
    #[error("entry {0:?} is refused: it is a device node")]
    Device(String),
    /// A kind of entry that we do not know.
    #[error("entry {entry:?} is refused: {kind} entries are not supported")]
    Kind {
        /// Which entry.
        entry: String,
        /// What it is.
        kind: String,
    },
    /// A cap.
    #[error("the image has more than {cap} {setting}; raise the limit {setting:?} if you trust it")]
    Limit {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        cap: u64,
    },
    /// A bomb.
    #[error(
        "the layer has {unpacked} bytes, more than {ratio} times its {compressed} compressed ones; \
         raise the limit \"ratio\" if you trust it"
    )]
    Ratio {
        /// Bytes so far.
        unpacked: u64,
        /// Bytes of the blob.
        compressed: u64,
        /// The cap.
        ratio: u64,
    },
    /// No room.
    #[error("no space left for entry {0:?}")]
    NoSpace(String),
    /// The system refused a step.
    #[error("{step} {entry:?}: {source}")]
    System {
        /// Which step.
        step: &'static str,
        /// Which entry.
        entry: String,
        /// What the system said.
        source: io::Error,
    },
}

impl UnpackError {
    pub(super) fn limit(setting: &'static str, cap: u64) -> Self {
        Self::Limit { setting, cap }
    }

    /// Tells want of room from everything else that the system says.
    pub(super) fn system(step: &'static str, entry: &str, errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace(entry.to_owned()),
            errno => Self::System {
                step,
                entry: entry.to_owned(),
                source: errno.into(),
            },
        }
    }
}
