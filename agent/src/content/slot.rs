//! One slot: what it holds, the set that is under construction, and what is lent of the one that is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use agent_api::content::ContentFile;
use agent_api::content::put_content_request::Kind;
use agent_api::{ErrorCode, GuestError};
use attestation_agent::Secret;
use tokio::sync::watch;

use super::PHASE;
use super::lease::{Keeper, Lending, Loan};
use super::set::{self, Stage};
use super::written::{Room, Written};

/// One of a container's slots.
pub(super) struct Slot {
    pub(super) container: String,
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
    /// What is seen takes of the guest's memory, in bytes.
    pub(super) held: usize,
    /// Sets that were begun, for their names.
    sets: u64,
    staged: Option<Staged>,
    /// Of the set that is seen, where some of it is lent.
    lent: Option<Lent>,
}

/// The host's set under construction.
struct Staged {
    stage: Stage,
    /// Files that are written.
    paths: BTreeSet<String>,
    /// Files that are not yet: a container sees what lies in its slot, and a lease may end before the set is whole.
    loans: Vec<Loan>,
}

/// A set with files that are lent.
struct Lent {
    /// The host's set.
    set: u64,
    /// The set that is seen now, which it has become.
    seen: u64,
    /// The files that are seen.
    paths: BTreeSet<String>,
    /// What those that are lent take of the guest's memory, in bytes.
    sizes: BTreeMap<String, usize>,
    /// Whoever looks after a file of it learns by the end of this that the set is seen no more.
    is_seen: watch::Sender<()>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Slot");
        debug.field("path", &self.path).finish_non_exhaustive()
    }
}

impl Slot {
    pub(super) fn new(container: &str, kind: Kind, path: PathBuf, held: usize) -> Self {
        Self {
            container: container.to_owned(),
            kind,
            path,
            held,
            sets: 0,
            staged: None,
            lent: None,
        }
    }

    pub(super) fn is_under_construction(&self) -> bool {
        self.staged.is_some()
    }

    /// Whether this set of the host's is seen, and some of it is lent.
    pub(super) fn lends(&self, set: u64) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.set == set)
    }

    pub(super) fn forget_stage(&mut self) {
        self.staged = None;
    }

    /// Adds to the set under construction.
    pub(super) fn add(
        &mut self,
        files: &[ContentFile],
        loans: Vec<Loan>,
    ) -> Result<(), GuestError> {
        let staged = match &mut self.staged {
            Some(staged) => staged,
            none => none.insert(Staged {
                stage: begin(&self.path, &mut self.sets)?,
                paths: BTreeSet::new(),
                loans: Vec::new(),
            }),
        };
        for file in files {
            staged.stage.add(file)?;
            staged.paths.insert(file.path.clone());
        }
        for loan in &loans {
            staged
                .stage
                .count(&loan.file.path, loan.secret.expose().len())?;
        }
        staged.loans.extend(loans);
        Ok(())
    }

    /// Shows the set under construction. What is lent of it is answered even where something failed after it was seen.
    pub(super) fn show(&mut self, name: &str, room: &Room) -> (Result<(), GuestError>, Lending) {
        let Some(mut staged) = self.staged.take() else {
            let none = GuestError::new(ErrorCode::Internal, PHASE, "no set was begun");
            return (Err(none), Lending::default());
        };
        let written = match staged.write_loans(room) {
            Ok(written) => written,
            Err(error) => return (Err(error), Lending::default()),
        };
        let Staged {
            mut stage,
            mut paths,
            ..
        } = staged;
        let shown = stage.publish(None);
        if !stage.is_seen() {
            return (shown, Lending::default());
        }
        self.held = stage.held();
        self.lent = None;
        if written.is_empty() {
            return (shown, Lending::default());
        }
        let there = written.iter().filter(|(_, written)| written.is_some());
        paths.extend(there.map(|(loan, _)| loan.file.path.clone()));
        let sizes = written
            .iter()
            .map(|(loan, _)| (loan.file.path.clone(), loan.held()));
        let lent = self.lent.insert(Lent {
            set: stage.number(),
            seen: stage.number(),
            paths,
            sizes: sizes.collect(),
            is_seen: watch::Sender::new(()),
        });
        let keepers = written.into_iter().map(|(loan, written)| {
            Keeper::new(name, lent.set, lent.is_seen.subscribe(), loan, written)
        });
        (shown, Lending(keepers.collect()))
    }

    /// Shows the set with another content of a lent file, or with one that was taken away.
    pub(super) fn replace(
        &mut self,
        file: &ContentFile,
        secret: &Secret,
        room: &Room,
    ) -> Result<Option<Written>, GuestError> {
        let written = self.remake(Some((file, secret)), room)?;
        if let Some(lent) = &mut self.lent {
            let size = set::held(&file.path, secret.expose().len());
            let before = lent.sizes.insert(file.path.clone(), size);
            self.held = (self.held + size).saturating_sub(before.unwrap_or_default());
        }
        Ok(written)
    }

    /// Bytes that a lent file holds, shown or taken away.
    pub(super) fn lent_bytes(&self, path: &str) -> usize {
        let sizes = self.lent.as_ref().map(|lent| &lent.sizes);
        sizes
            .and_then(|sizes| sizes.get(path))
            .copied()
            .unwrap_or_default()
    }

    /// Takes a lent file out of the set that is seen, and then shows it as another set, for those who watch. What fails
    /// can be tried again; the first of both needs neither room nor any other file.
    pub(super) fn withdraw(&mut self, path: &str, room: &Room) -> Result<(), GuestError> {
        let Some(lent) = &mut self.lent else {
            return Ok(());
        };
        lent.paths.remove(path);
        set::strike(&self.path, lent.seen, path)?;
        self.remake(None, room).map(drop)
    }

    /// Shows the set once more, with one file `anew`. The host's own, which may be on its way, stays.
    fn remake(
        &mut self,
        anew: Option<(&ContentFile, &Secret)>,
        room: &Room,
    ) -> Result<Option<Written>, GuestError> {
        let Some(lent) = &mut self.lent else {
            return Ok(None);
        };
        let mut stage = begin(&self.path, &mut self.sets)?;
        let other = |path: &&String| anew.is_none_or(|(file, _)| file.path != **path);
        for path in lent.paths.iter().filter(other) {
            stage.keep(lent.seen, path)?;
        }
        let write = |(file, secret)| stage.lend(file, secret, room.take()?);
        let written = anew.map(write).transpose()?;
        let shown = stage.publish(self.staged.as_ref().map(|staged| &staged.stage));
        if stage.is_seen() {
            lent.seen = stage.number();
            lent.paths.extend(anew.map(|(file, _)| file.path.clone()));
        }
        match shown {
            // It is there: what is left of the set before goes with the next.
            Err(error) if stage.is_seen() && written.is_some() => {
                tracing::warn!(%error, "a set with a new lent secret is not tidy");
                Ok(written)
            }
            shown => shown.map(|()| written),
        }
    }

    pub(super) fn held(&self) -> usize {
        self.held + self.staged.as_ref().map_or(0, |staged| staged.stage.held())
    }
}

impl Staged {
    /// Writes what is lent and may still be read; the rest has to be asked for first.
    fn write_loans(&mut self, room: &Room) -> Result<Vec<(Loan, Option<Written>)>, GuestError> {
        Room::check(self.loans.len())?;
        let loans = std::mem::take(&mut self.loans);
        let write = |loan: Loan| {
            let written = match loan.term.is_over() {
                true => None,
                false => Some(self.stage.lend(&loan.file, &loan.secret, room.take()?)?),
            };
            Ok((loan, written))
        };
        loans.into_iter().map(write).collect()
    }
}

fn begin(slot: &std::path::Path, sets: &mut u64) -> Result<Stage, GuestError> {
    *sets += 1;
    Stage::begin(slot, *sets)
}
