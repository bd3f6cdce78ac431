//! What must be taken away in a pod's namespace when the pod is gone: a file in the sandbox's directory,
//! written before anything is made, and read by whoever cleans up.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::NetworkError;
use crate::state_dir::StateDir;

const FILE: &str = "network.json";
/// The largest record, in bytes: a path and a few numbers.
const MAX: u64 = 16 * 1024;

/// What tells a namespace from a later one at the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The namespace.
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    /// The interfaces that may have a qdisc of ours.
    pub(super) links: Vec<u32>,
}

impl Record {
    pub(super) fn write(&self, directory: &StateDir) -> Result<(), NetworkError> {
        directory
            .write_json(FILE, self)
            .map_err(NetworkError::Record)
    }

    /// The record; none where nothing was made.
    pub(super) fn read(directory: &StateDir) -> Option<Self> {
        directory.read_json(FILE, MAX)
    }

    pub(super) fn remove(directory: &StateDir) {
        // Gone with the directory already, or with it soon.
        let _ = std::fs::remove_file(directory.path().join(FILE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_until_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(root.path());
        assert_eq!(Record::read(&directory), None);
        let record = Record {
            path: "/run/netns/a".into(),
            identity: Identity {
                device: 4,
                inode: 7,
            },
            links: vec![2, 3],
        };
        record.write(&directory).unwrap();
        assert_eq!(Record::read(&directory), Some(record));
        Record::remove(&directory);
        assert_eq!(Record::read(&directory), None);
    }
}
