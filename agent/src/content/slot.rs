//! One slot: what it holds, the set that is under construction, and what is lent of the one that is seen.

use std::collections::BTreeSet;
use std::path::PathBuf;

use agent_api::GuestError;
use agent_api::content::ContentFile;
use agent_api::content::put_content_request::Kind;
use zeroize::Zeroize;

use super::lease::{Change, Loan};
use super::set::{self, Stage};

/// One of a container's slots.
pub(super) struct Slot {
    pub(super) container: String,
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
    /// What is seen takes of the guest's memory, in bytes.
    pub(super) held: usize,
    /// Sets that were begun, for their names.
    sets: u64,
    stage: Option<Stage>,
    /// Of the set under construction.
    staged: Lendable,
    /// Of the set that is seen, where some of it is lent.
    lent: Option<Lent>,
}

/// What is kept of a set for the sake of its lent files.
#[derive(Default)]
struct Lendable {
    paths: Vec<String>,
    files: Vec<ContentFile>,
    loans: Vec<Loan>,
}

/// A set with files that are lent.
struct Lent {
    /// The host's set.
    set: u64,
    /// The set that is seen now, which it has become.
    seen: u64,
    /// Files that are not lent.
    others: Vec<String>,
    /// Those that are.
    files: Vec<ContentFile>,
    /// Those of them that were taken away.
    gone: BTreeSet<String>,
    /// Whether something was changed that is not seen yet.
    is_due: bool,
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
            stage: None,
            staged: Lendable::default(),
            lent: None,
        }
    }

    pub(super) fn is_under_construction(&self) -> bool {
        self.stage.is_some()
    }

    /// Whether this set of the host's is seen, and some of it is lent.
    pub(super) fn lends(&self, set: u64) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.set == set)
    }

    pub(super) fn forget_stage(&mut self) {
        self.stage = None;
        self.staged = Lendable::default();
    }

    /// Adds to the set under construction, and shows it when it is whole. Answers what is lent of it then, with its
    /// number.
    pub(super) fn add(
        &mut self,
        files: &[ContentFile],
        loans: Vec<Loan>,
        more: bool,
    ) -> Result<Option<(u64, Vec<Loan>)>, GuestError> {
        let mut stage = match self.stage.take() {
            Some(stage) => stage,
            None => {
                self.staged = Lendable::default();
                self.begin()?
            }
        };
        for file in files {
            stage.add(file)?;
            match loans.iter().any(|loan| loan.path == file.path) {
                true => self.staged.files.push(file.clone()),
                false => self.staged.paths.push(file.path.clone()),
            }
        }
        self.staged.loans.extend(loans);
        if more {
            self.stage = Some(stage);
            return Ok(None);
        }
        let held = stage.held();
        stage.publish()?;
        self.held = held;
        let staged = std::mem::take(&mut self.staged);
        self.lent = (!staged.loans.is_empty()).then(|| Lent {
            set: self.sets,
            seen: self.sets,
            others: staged.paths,
            files: staged.files,
            gone: BTreeSet::new(),
            is_due: false,
        });
        Ok((!staged.loans.is_empty()).then_some((self.sets, staged.loans)))
    }

    fn begin(&mut self) -> Result<Stage, GuestError> {
        self.sets += 1;
        Stage::begin(&self.path, self.sets)
    }

    /// Shows the set anew where a lent file has changed, came or went.
    pub(super) fn renew(&mut self, changes: &[Change]) -> Result<(), GuestError> {
        let Some(mut lent) = self.lent.take() else {
            return Ok(());
        };
        for change in changes {
            lent.is_due |= lent.take(change);
        }
        // A change may wait for the host's next set, which is on its way and would go with it. What is taken away
        // waits for no host.
        let goes = changes.iter().any(|change| change.secret.is_none());
        let shown = match lent.is_due && (goes || self.stage.is_none()) {
            true => self.show(&mut lent),
            false => Ok(()),
        };
        self.lent = Some(lent);
        shown
    }

    fn show(&mut self, lent: &mut Lent) -> Result<(), GuestError> {
        let mut stage = self.begin()?;
        for path in &lent.others {
            stage.keep(lent.seen, path)?;
        }
        let shown = |file: &&ContentFile| !lent.gone.contains(&file.path);
        for file in lent.files.iter().filter(shown) {
            stage.add(file)?;
        }
        stage.publish()?;
        (lent.seen, lent.is_due) = (self.sets, false);
        Ok(())
    }

    pub(super) fn held(&self) -> usize {
        let lent = self.lent.as_ref().map_or(&[][..], |lent| &lent.files);
        let lent: usize = lent.iter().map(set::held).sum();
        self.held + lent + self.stage.as_ref().map_or(0, Stage::held)
    }
}

impl Lent {
    /// Says whether something is another than it was.
    fn take(&mut self, change: &Change) -> bool {
        let file = self.files.iter_mut().find(|file| file.path == change.path);
        let Some(file) = file else { return false };
        let Some(secret) = &change.secret else {
            file.data.zeroize();
            return self.gone.insert(change.path.clone());
        };
        let came = self.gone.remove(&change.path);
        let is_new = file.data != secret.expose();
        file.data.zeroize();
        file.data = secret.expose().to_vec();
        came || is_new
    }
}
