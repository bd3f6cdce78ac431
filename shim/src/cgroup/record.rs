//! What must be taken away when a pod is gone: a file in the sandbox's directory, written before anything
//! is made, and read by whoever cleans up.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state_dir::StateDir;

const FILE: &str = "cgroup.json";
/// The largest record, in bytes: as many paths as there are controllers, and those above them.
const MAX: u64 = 4 << 20;

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The process that entered.
    pub(super) shim: u32,
    /// Where it was.
    pub(super) origins: Vec<PathBuf>,
    /// The pod's cgroups and those that were made above them, each after the one in which it lies.
    pub(super) directories: Vec<PathBuf>,
}

impl Record {
    pub(super) fn write(&self, directory: &StateDir) -> io::Result<()> {
        directory.write_json(FILE, self)
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
