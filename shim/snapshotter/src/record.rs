//! What is known of a snapshot, and how it stands on the disk: one small file for each, in JSON.
//!
//! A file is replaced by renaming another over it, and never written in place, so that a death at any moment leaves
//! the old one or the new one. Its name is the snapshot's number, which stays when a snapshot is committed under
//! another name: every change of the store is the change of one file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::status::Status;

/// The form of the file.
const VERSION: u32 = 1;
/// Cap on a file, in bytes. Labels within their own caps can be longer in JSON, where a control character takes six
/// bytes; what would not be read again is not written.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What is not yet a record.
pub(crate) const UNFINISHED: &str = ".new";

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// To be read only, and never committed.
    View,
    /// To be written, and perhaps committed.
    Active,
    /// Finished: it may have children.
    Committed,
}

impl Kind {
    /// As filters name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// Where a snapshot's own files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    /// In a directory of the host.
    Host,
    /// Nowhere here: a guest pulls them.
    Guest,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) version: u32,
    /// Its number, which no other has.
    pub(crate) id: u64,
    /// Its key, or its name once it is committed.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) content: Content,
    /// The name of the one below; empty at the bottom.
    pub(crate) parent: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created: Duration,
    pub(crate) updated: Duration,
    /// Bytes and inodes of a committed one, without those below it.
    pub(crate) usage: Usage,
}

/// What files take of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Record {
    /// An active one without name, parent and labels.
    pub(crate) fn new(id: u64) -> Self {
        let now = now();
        Self {
            version: VERSION,
            id,
            name: String::new(),
            kind: Kind::Active,
            content: Content::Host,
            parent: String::new(),
            labels: BTreeMap::new(),
            created: now,
            updated: now,
            usage: Usage::default(),
        }
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| error.to_string())?;
        file.take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| error.to_string())?;
        let record: Self = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        match record.version {
            VERSION => Ok(record),
            other => Err(format!(
                "version {other} is not known; this program writes {VERSION}"
            )),
        }
    }

    /// Writes its file into a directory, in the place of an older one.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), Status> {
        let failed = |error: &io::Error| Status::disk("write a record in", directory, error);
        let bytes = serde_json::to_vec(self).map_err(|error| failed(&io::Error::from(error)))?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= FILE_BYTES_MAX) {
            return self
                .replace(directory, &bytes)
                .map_err(|error| failed(&error));
        }
        Err(Status::invalid(format!(
            "snapshot {:?}: its {} labels make a record of {} bytes, and {FILE_BYTES_MAX} are the most: shorten the \
             labels",
            self.name,
            self.labels.len(),
            bytes.len()
        )))
    }

    fn replace(&self, directory: &Path, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(directory);
        let unfinished = path.with_extension(UNFINISHED.trim_start_matches('.'));
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)?;
        sync(directory)
    }

    /// Removes its file.
    pub(crate) fn erase(&self, directory: &Path) -> io::Result<()> {
        std::fs::remove_file(self.path(directory))?;
        sync(directory)
    }

    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(self.id.to_string())
    }
}

/// Since 1970.
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Makes what was renamed in a directory last.
pub(crate) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Code;

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record {
            name: "k8s.io/1/a".into(),
            content: Content::Guest,
            labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            ..Record::new(7)
        };
        record.write(directory.path()).unwrap();
        let path = directory.path().join("7");
        assert_eq!(Record::read(&path).unwrap(), record);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"id\"", "\"more\":1,\"id\""),
            ("{", ""),
        ] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            Record::read(&path).unwrap_err();
        }
        record.erase(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_would_not_be_read_again_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        // Within the caps on labels.
        let label = |n: u32| (n.to_string(), "\u{1}".repeat(4000));
        let record = Record {
            name: "k8s.io/1/a".into(),
            labels: (0..256).map(label).collect(),
            ..Record::new(7)
        };
        let refused = record.write(directory.path()).unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument);
        for part in ["k8s.io/1/a", "256 labels"] {
            assert!(refused.reason.contains(part), "{refused}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let shorter = Record {
            labels: (0..160).map(label).collect(),
            ..record
        };
        shorter.write(directory.path()).unwrap();
        let path = directory.path().join("7");
        assert_eq!(Record::read(&path).unwrap(), shorter);
    }
}
