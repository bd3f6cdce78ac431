//! Why a layer cannot be unpacked; each names the entry.

use std::io;

use rustix::io::Errno;

use super::path::shown;

/// A layer that was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The decoded stream broke.
    #[error("the layer cannot be read")]
    Read(#[source] io::Error),
    /// Not a tar archive.
    #[error("the layer is not a valid tar archive: {0}")]
    Archive(String),
    /// It ends too early.
    #[error("the layer is not a whole tar archive: it ends within {0}")]
    Truncated(&'static str),
    /// A header that was altered, or is none.
    #[error("the layer is not a valid tar archive: a header's checksum is wrong")]
    Checksum,
    /// A field that is no number, or one that cannot be, such as a negative size.
    #[error("the layer is not a valid tar archive: a header's {0} is not a possible number")]
    Number(&'static str),
    /// A sparse file whose map does not fit it.
    #[error("sparse file {entry:?} is refused: {reason}")]
    Sparse {
        /// Which entry.
        entry: String,
        /// What is wrong with its map.
        reason: &'static str,
    },
    /// An absolute name.
    #[error("entry {0:?} is refused: its name is absolute")]
    Absolute(String),
    /// `..` in a name.
    #[error("entry {0:?} is refused: its name contains \"..\"")]
    Parent(String),
    /// A name that no file system takes.
    #[error("entry {0:?} is refused: its name or target is empty, too long, or has a NUL byte")]
    Name(String),
    /// A whiteout of nothing, or with something below it.
    #[error("entry {0:?} is refused: it is no valid whiteout")]
    Whiteout(String),
    /// Symbolic links in a circle.
    #[error("entry {0:?} is refused: too many symbolic links on its way")]
    Loop(String),
    /// A file on the way.
    #[error("entry {0:?} is refused: what should be a directory on its way is none")]
    NotDirectory(String),
    /// A hard link to nothing.
    #[error("hard link {entry:?} is refused: its target {target:?} is not in the image")]
    LinkTarget {
        /// Which entry.
        entry: String,
        /// What it links to.
        target: String,
    },
    /// A hard link to a directory.
    #[error("hard link {entry:?} is refused: its target {target:?} is a directory")]
    LinkDirectory {
        /// Which entry.
        entry: String,
        /// What it links to.
        target: String,
    },
    /// A device, against the policy.
    #[error("entry {0:?} is refused: it is a device node")]
    Device(String),
    /// An attribute of the kernel's own, against the policy.
    #[error("entry {entry:?} is refused: it has the extended attribute {name:?}")]
    Trusted {
        /// Which entry.
        entry: String,
        /// Which attribute.
        name: String,
    },
    /// An attribute that the file system does not keep; without it, the file is another.
    #[error(
        "the image store cannot keep the extended attribute {name:?} of entry {entry:?}: {source}; \
         a store on another file system may"
    )]
    Xattr {
        /// Which entry.
        entry: String,
        /// Which attribute.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// An attribute where the kernel lets none be.
    #[error(
        "entry {entry:?} is refused: it has the extended attribute {name:?}, but of what is neither a file nor a \
         directory Linux keeps no \"user.\" attributes"
    )]
    UserXattr {
        /// Which entry.
        entry: String,
        /// Which attribute.
        name: String,
    },
    /// An access list in a writing that is not read.
    #[error(
        "entry {0:?} is refused: it has an access list as text (SCHILY.acl), which would be lost; pack it as the \
         attribute that it is, with tar's --xattrs in place of --acls"
    )]
    AccessList(String),
    /// A directory with bytes of its own.
    #[error("entry {0:?} is refused: its name is a directory's, but it has content")]
    Content(String),
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
    /// Hardly any memory is left, in which a store may be.
    #[error("{left} bytes of memory are left, and {kept} are kept for the system")]
    NoMemory {
        /// Bytes that are available.
        left: u64,
        /// Bytes that no image gets.
        kept: u64,
    },
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

    /// Whether bytes that were altered on their way may look like this.
    pub(crate) fn may_be_damage(&self) -> bool {
        match self {
            Self::Read(_)
            | Self::Archive(_)
            | Self::Truncated(_)
            | Self::Checksum
            | Self::Number(_)
            | Self::Sparse { .. }
            | Self::Kind { .. } => true,
            Self::Absolute(_)
            | Self::Parent(_)
            | Self::Name(_)
            | Self::Whiteout(_)
            | Self::Content(_)
            | Self::AccessList(_)
            | Self::UserXattr { .. }
            | Self::Loop(_)
            | Self::NotDirectory(_)
            | Self::LinkTarget { .. }
            | Self::LinkDirectory { .. }
            | Self::Device(_)
            | Self::Trusted { .. }
            | Self::Xattr { .. }
            | Self::Limit { .. }
            | Self::Ratio { .. }
            | Self::NoSpace(_)
            | Self::NoMemory { .. }
            | Self::System { .. } => false,
        }
    }

    /// Tells want of room from everything else that the system says.
    pub(super) fn system(step: &'static str, entry: &[u8], errno: Errno) -> Self {
        let entry = shown(entry);
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace(entry),
            errno => Self::System {
                step,
                entry,
                source: errno.into(),
            },
        }
    }
}
