//! The snapshots: a tree of names, and the rules by which it grows and shrinks.
//!
//! ```text
//! root/lock            held by the one program that serves this store
//! root/records/ID      what is known of a snapshot, see `record.rs`
//! root/snapshots/ID/   its files, see `tree.rs`; a committed layer that a guest pulls has none
//!
//! prepare   make the directory, write the record
//! commit    write the record anew
//! remove    erase the record, remove the directory
//! ```
//!
//! A record is there only while its directory is, and a directory without a record is what a death has left: nobody
//! knows it, and the next start or `Cleanup` removes it.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::filter::Filters;
use crate::image::{self, Whose};
use crate::mounts::Layers;
use crate::record::{self, Content, Kind, Record, Usage};
use crate::status::{Code, Status};
use crate::tree::Tree;

use state::{State, check_labels, check_name};

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    records: PathBuf,
    trees: PathBuf,
    /// Images whose layers are unpacked here.
    unpack: Vec<String>,
    state: Mutex<State>,
    _lock: File,
}

/// A snapshot that can be mounted, and what it stands on.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) layers: Layers,
    /// The layer right below.
    pub(crate) parent: Option<Record>,
    /// Whether some of the layers below are a guest's to pull.
    pub(crate) is_guests: bool,
}

impl Store {
    /// Opens the store below `root`, makes it where there is none, and removes what a death has left.
    pub(crate) fn open(root: &Path, unpack: Vec<String>) -> Result<Self, Status> {
        let [records, trees] = ["records", "snapshots"].map(|name| root.join(name));
        for directory in [root, &records, &trees] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| Status::disk("make", directory, &error))?;
        }
        let lock = lock(&root.join("lock"))?;
        let state = State::load(&records)?;
        let store = Self {
            records,
            trees,
            unpack,
            state: Mutex::new(state),
            _lock: lock,
        };
        store.cleanup()?;
        Ok(store)
    }

    /// Makes a snapshot that can be mounted, above `parent` where that is not empty; or, where the labels say that a
    /// layer is to be fetched which a guest will pull, has it committed at once and answers that it exists.
    pub(crate) fn prepare(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        check_name(key)?;
        check_labels(&labels)?;
        let mut state = self.state();
        state.check_new(key)?;
        let below = state.chain(parent)?;
        let is_guests = below.iter().any(|one| one.content == Content::Guest);
        if kind == Kind::Active {
            match image::whose(&labels, &self.unpack) {
                Whose::Guest(target) => {
                    return Err(self.leave_to_guests(&mut state, target, parent, &labels));
                }
                Whose::Host if is_guests && labels.contains_key(image::TARGET) => {
                    return Err(image::shared_with_guests(&labels, &below));
                }
                Whose::Host => {}
            }
        }
        let model = below
            .first()
            .filter(|one| one.content == Content::Host)
            .map(|one| self.tree(one));
        let record = Record {
            name: key.to_owned(),
            kind,
            parent: parent.to_owned(),
            labels,
            ..Record::new(state.next)
        };
        state.next += 1;
        let tree = self.tree(&record);
        tree.make(model.as_ref())
            .map_err(|error| Status::disk("make", &tree.files(), &error))?;
        self.keep(&mut state, record)
    }

    /// Commits a layer without files, unless there is one on the same parent. The answer is the same.
    fn leave_to_guests(
        &self,
        state: &mut State,
        target: &str,
        parent: &str,
        labels: &BTreeMap<String, String>,
    ) -> Status {
        let is_it = |one: &&Record| {
            one.kind == Kind::Committed
                && one.parent == parent
                && one
                    .labels
                    .get(image::TARGET)
                    .is_some_and(|has| has == target)
        };
        let answer = Status::exists(target);
        if state.by_name.values().any(|one| is_it(&one)) {
            return answer;
        }
        let name = format!("guest/{}/{target}", state.next);
        if let Err(refused) = check_name(&name) {
            return refused;
        }
        let record = Record {
            name,
            kind: Kind::Committed,
            content: Content::Guest,
            parent: parent.to_owned(),
            labels: labels.clone(),
            ..Record::new(state.next)
        };
        state.next += 1;
        self.keep(state, record).err().unwrap_or(answer)
    }

    /// A snapshot as it is to be mounted.
    pub(crate) fn place(&self, key: &str) -> Result<Place, Status> {
        let state = self.state();
        let record = state.named(key)?;
        if record.kind == Kind::Committed {
            return Err(Status::state(format!(
                "snapshot {key:?} is committed: only what is prepared can be mounted"
            )));
        }
        let below = state.chain(&record.parent)?;
        Ok(Place {
            kind: record.kind,
            layers: Layers {
                own: self.tree(record),
                below: below.iter().map(|one| self.tree(one)).collect(),
                writable: record.kind == Kind::Active,
            },
            parent: below.first().map(|one| (*one).clone()),
            is_guests: below.iter().any(|one| one.content == Content::Guest),
        })
    }

    /// Makes an active snapshot a committed one of another name. Above layers of guests there are no files to keep.
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        labels: BTreeMap<String, String>,
        parent: &str,
    ) -> Result<(), Status> {
        check_name(name)?;
        check_labels(&labels)?;
        let active = self.active(key, parent)?;
        let tree = self.tree(&active);
        // It may take a while, and nobody waits for it.
        let usage = tree
            .usage()
            .map_err(|error| Status::disk("count", &tree.files(), &error))?;
        let mut state = self.state();
        if state.named(key)? != &active {
            return Err(Status::state(format!(
                "snapshot {key:?} was changed meanwhile"
            )));
        }
        state.check_new(name)?;
        let below = state.chain(&active.parent)?;
        let is_guests = below.iter().any(|one| one.content == Content::Guest);
        let now = record::now();
        let record = Record {
            name: name.to_owned(),
            kind: Kind::Committed,
            content: if is_guests {
                Content::Guest
            } else {
                Content::Host
            },
            labels,
            created: now,
            updated: now,
            usage: if is_guests { Usage::default() } else { usage },
            ..active
        };
        self.keep(&mut state, record)?;
        state.by_name.remove(key);
        drop(state);
        if is_guests {
            remove(&tree);
        }
        Ok(())
    }

    fn active(&self, key: &str, parent: &str) -> Result<Record, Status> {
        let state = self.state();
        let record = state.named(key)?;
        if record.kind != Kind::Active {
            return Err(Status::state(format!(
                "snapshot {key:?} is {}, not active",
                record.kind.name()
            )));
        }
        if !parent.is_empty() && parent != record.parent {
            return Err(Status::invalid(format!(
                "snapshot {key:?} is not moved to another parent: it stays on {:?}",
                record.parent
            )));
        }
        Ok(record.clone())
    }

    /// Removes a snapshot that none stands on.
    pub(crate) fn remove(&self, key: &str) -> Result<(), Status> {
        let mut state = self.state();
        let record = state.named(key)?.clone();
        if let Some(child) = state.by_name.values().find(|one| one.parent == key) {
            return Err(Status::state(format!(
                "snapshot {key:?} cannot be removed: {:?} stands on it",
                child.name
            )));
        }
        record
            .erase(&self.records)
            .map_err(|error| Status::disk("erase a record in", &self.records, &error))?;
        state.by_name.remove(key);
        drop(state);
        remove(&self.tree(&record));
        Ok(())
    }

    /// What is known of a snapshot.
    pub(crate) fn stat(&self, key: &str) -> Result<Record, Status> {
        self.state().named(key).cloned()
    }

    /// Replaces labels: those that `paths` name, or all of them. An empty value takes a label away.
    pub(crate) fn update(
        &self,
        key: &str,
        labels: &BTreeMap<String, String>,
        paths: &[String],
    ) -> Result<Record, Status> {
        check_labels(labels)?;
        let mut state = self.state();
        let mut record = state.named(key)?.clone();
        if paths.is_empty() {
            record.labels.clone_from(labels);
        }
        for path in paths {
            if path == "labels" {
                record.labels.clone_from(labels);
            } else if let Some(name) = path.strip_prefix("labels.") {
                let value = labels.get(name).cloned().unwrap_or_default();
                record.labels.insert(name.to_owned(), value);
            } else {
                return Err(Status::invalid(format!(
                    "{path:?} of snapshot {key:?} cannot be changed: only its labels can"
                )));
            }
        }
        record.labels.retain(|_, value| !value.is_empty());
        check_labels(&record.labels)?;
        record.updated = record::now();
        self.keep(&mut state, record.clone())?;
        Ok(record)
    }

    /// The snapshots that some filters match.
    pub(crate) fn list(&self, filters: &Filters) -> Vec<Record> {
        let state = self.state();
        let all = state.by_name.values();
        all.filter(|one| filters.match_record(one))
            .cloned()
            .collect()
    }

    /// What a snapshot's own files take.
    pub(crate) fn usage(&self, key: &str) -> Result<Usage, Status> {
        let record = self.stat(key)?;
        if record.kind == Kind::Committed {
            return Ok(record.usage);
        }
        let tree = self.tree(&record);
        tree.usage()
            .map_err(|error| Status::disk("count", &tree.files(), &error))
    }

    /// Removes directories that no snapshot has.
    pub(crate) fn cleanup(&self) -> Result<(), Status> {
        let failed = |error: io::Error| Status::disk("read", &self.trees, &error);
        let state = self.state();
        let has_files = |one: &&Record| one.kind != Kind::Committed || one.content == Content::Host;
        let owned: BTreeSet<_> = state
            .by_name
            .values()
            .filter(has_files)
            .map(|one| one.id)
            .collect();
        let mut idle = Vec::new();
        for entry in fs::read_dir(&self.trees).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            idle.extend(id.filter(|id| !owned.contains(id)));
        }
        // A number is given once, so that nobody takes one of these into use meanwhile.
        drop(state);
        for id in idle {
            remove(&Tree::new(&self.trees, id));
        }
        Ok(())
    }

    /// Writes a record, and knows it once it is written.
    fn keep(&self, state: &mut State, record: Record) -> Result<(), Status> {
        record.write(&self.records)?;
        state.by_name.insert(record.name.clone(), record);
        Ok(())
    }

    fn tree(&self, record: &Record) -> Tree {
        Tree::new(&self.trees, record.id)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One program serves a store: two would not know of each other's names.
fn lock(path: &Path) -> Result<File, Status> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Status::disk("open", path, &error))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        let reason = format!("{path:?} is locked by another cloister-snapshotter: {error}");
        Status::new(Code::Unavailable, reason)
    })?;
    Ok(file)
}

/// The snapshot is gone whether its files are or not; what stays, `Cleanup` and the next start try again.
fn remove(tree: &Tree) {
    if let Err(error) = tree.remove() {
        tracing::warn!(%error, path = %tree.files().display(), "remove");
    }
}

#[cfg(test)]
mod tests;
