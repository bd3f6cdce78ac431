//! The names of the snapshots, what stands on what, and the caps.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use crate::record::{Kind, Record, UNFINISHED};
use crate::status::{Code, Status};

/// Cap on the snapshots: a node has some hundreds.
const SNAPSHOTS_MAX: usize = 100_000;
/// Cap on a key or a name, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// Cap on the labels of a snapshot.
const LABELS_MAX: usize = 256;
/// Cap on a label with its value, in bytes: containerd's own.
const LABEL_BYTES_MAX: usize = 4096;
/// Cap on the snapshots below one: overlayfs takes no more.
const DEPTH_MAX: usize = 500;

/// All snapshots.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) by_name: BTreeMap<String, Record>,
    pub(super) next: u64,
}

impl State {
    pub(super) fn load(records: &Path) -> Result<Self, Status> {
        let failed = |error: io::Error| Status::disk("read", records, &error);
        let mut state = Self::default();
        for entry in fs::read_dir(records).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.to_string_lossy().ends_with(UNFINISHED) {
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            let record = Record::read(&path).map_err(|reason| {
                let remedy = "move the file away, and containerd prepares the snapshot anew";
                Status::new(
                    Code::Internal,
                    format!("record {path:?}: {reason}: {remedy}"),
                )
            })?;
            state.next = state.next.max(record.id.saturating_add(1));
            state.by_name.insert(record.name.clone(), record);
        }
        Ok(state)
    }

    pub(super) fn named(&self, key: &str) -> Result<&Record, Status> {
        self.by_name.get(key).ok_or_else(|| Status::not_found(key))
    }

    pub(super) fn check_new(&self, key: &str) -> Result<(), Status> {
        if self.by_name.contains_key(key) {
            return Err(Status::exists(key));
        }
        if self.by_name.len() >= SNAPSHOTS_MAX {
            let reason = format!("{SNAPSHOTS_MAX} snapshots are the most");
            return Err(Status::new(Code::ResourceExhausted, reason));
        }
        Ok(())
    }

    /// A committed snapshot and all below it, from the upper to the lower; none for no name.
    pub(super) fn chain(&self, name: &str) -> Result<Vec<&Record>, Status> {
        let mut chain = Vec::new();
        let mut name = name;
        while !name.is_empty() {
            let record = self.named(name)?;
            if record.kind != Kind::Committed {
                return Err(Status::invalid(format!(
                    "snapshot {name:?} is {}: only a committed one can have others on it",
                    record.kind.name()
                )));
            }
            if chain.len() == DEPTH_MAX {
                let reason = format!("more than {DEPTH_MAX} snapshots one on another");
                return Err(Status::new(Code::ResourceExhausted, reason));
            }
            chain.push(record);
            name = &record.parent;
        }
        Ok(chain)
    }
}

/// Refuses a name that is none.
pub(super) fn check_name(name: &str) -> Result<(), Status> {
    match name.len() {
        0 => Err(Status::invalid("a snapshot without a name")),
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(Status::invalid(format!(
            "a snapshot's name of more than {NAME_BYTES_MAX} bytes"
        ))),
    }
}

/// Refuses labels beyond the caps.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Status> {
    if labels.len() > LABELS_MAX {
        return Err(Status::invalid(format!("more than {LABELS_MAX} labels")));
    }
    let long = |(name, value): &(&String, &String)| name.len() + value.len() > LABEL_BYTES_MAX;
    match labels.iter().find(long) {
        None => Ok(()),
        Some((name, _)) => Err(Status::invalid(format!(
            "label {:?} has more than {LABEL_BYTES_MAX} bytes with its value",
            name.chars().take(64).collect::<String>()
        ))),
    }
}
