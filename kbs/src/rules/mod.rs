//! By what is decided: which policy holds for a path or a guest's selection, and which reference values
//! hold at this moment.
//!
//! Texts stay in the store until a decision asks for one; what is in memory is which version is
//! attached where. A change, here or at another broker on the same store, moves just what changed.

mod reference;

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use kbs_protocol::{ErrorKind, ResourcePath};
use policies::{
    PolicyError,
    appraisal::{self, AppraisalPolicy, ReferenceValues},
    cache::Compiled,
    release::{self, ReleasePolicy},
    scopes::{Scopes, Selection, Selector},
};

use crate::{
    current::Current,
    desk::Desk,
    refusal::Refusal,
    scope::{RELEASE_POLICY, Scope},
    store::{Change, Mark, REFERENCES, Store, StoreError},
};
use reference::References;

/// Policies of each kind that stay compiled: a store has many more, of which few are asked at a time.
const COMPILED: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// When a guest may come again whose policy had no turn.
const BUSY_SECONDS: u64 = 1;
/// Rules that are older do not decide. Changes are looked for several times a second.
const STALE: Duration = Duration::from_secs(10);

/// The rules as the store has them, or had them less than a second ago.
pub(crate) struct Rules {
    store: Store,
    known: Current<Known>,
    /// Where they are compiled and asked.
    pub(crate) desk: Desk,
    release: Arc<Compiled<ReleasePolicy>>,
    appraisal: Arc<Compiled<AppraisalPolicy>>,
    default_release: Arc<ReleasePolicy>,
    default_appraisal: Arc<AppraisalPolicy>,
    refreshing: tokio::sync::Mutex<()>,
    /// When the store was last read, in milliseconds after `opened`.
    read: AtomicU64,
    opened: Instant,
    /// The store went back in time.
    lost: AtomicBool,
}

/// What is attached where, in which version, and the last change that is in it.
#[derive(Clone)]
struct Known {
    mark: Mark,
    release: Scopes<i64>,
    appraisal: Selection<i64>,
    references: Arc<References>,
}

impl Rules {
    pub(crate) async fn open(store: Store) -> Result<Self, RuleError> {
        let built_in = |error| RuleError::Policy("built in".to_owned(), error);
        let rules = Self {
            store,
            known: Current::new(Known {
                mark: Mark::BEGINNING,
                release: Scopes::default(),
                appraisal: Selection::default(),
                references: Arc::default(),
            }),
            desk: Desk::new(),
            release: Arc::new(Compiled::new(COMPILED)),
            appraisal: Arc::new(Compiled::new(COMPILED)),
            default_release: Arc::new(
                ReleasePolicy::from_rego(release::DEFAULT).map_err(built_in)?,
            ),
            default_appraisal: Arc::new(
                AppraisalPolicy::from_rego(appraisal::DEFAULT).map_err(built_in)?,
            ),
            refreshing: tokio::sync::Mutex::default(),
            read: AtomicU64::new(0),
            opened: Instant::now(),
            lost: AtomicBool::new(false),
        };
        rules.refresh().await?;
        Ok(rules)
    }

    /// Decides by what is in the store now.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let _turn = self.refreshing.lock().await;
        let known = self.known.load();
        let asked = self.opened.elapsed();
        let changes = self.store.changes(&known.mark).await;
        if let Err(StoreError::WentBack) = changes {
            // A version of a policy may have another text than the one that is compiled here.
            self.lost.store(true, Ordering::Relaxed);
        }
        let changes = changes?;
        if changes.is_empty() {
            self.reached(asked);
            return Ok(());
        }
        let mut next = (*known).clone();
        for change in &changes {
            next.take(change)?;
        }
        if changes.iter().any(|change| change.what == REFERENCES) {
            let version = next.references.version();
            let touched = self.store.references_after(version).await?;
            next.references = Arc::new(next.references.with(touched));
        }
        tracing::info!(
            changes = changes.len(),
            references = next.references.version(),
            "policies or reference values changed"
        );
        self.store.saw(&next.mark);
        self.known.replace(next);
        self.reached(asked);
        Ok(())
    }

    /// All that was in the store at that time is known.
    fn reached(&self, after_opening: Duration) {
        let millis = u64::try_from(after_opening.as_millis()).unwrap_or(u64::MAX);
        self.read.store(millis, Ordering::Relaxed);
    }

    /// Whether the store may hold a change that has been there for long: another broker's revocation,
    /// perhaps. Nothing is decided by such rules.
    pub(crate) fn are_stale(&self) -> bool {
        if self.lost.load(Ordering::Relaxed) {
            return true;
        }
        let read = Duration::from_millis(self.read.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(read) > STALE
    }

    fn known(&self) -> Result<Arc<Known>, RuleError> {
        if self.are_stale() {
            return Err(RuleError::Stale);
        }
        Ok(self.known.load())
    }

    /// The policy that decides about a path, the id of its scope, and its version: that of the most
    /// specific scope, and the built-in one where none is attached.
    pub(crate) async fn release_for(
        &self,
        path: &ResourcePath,
    ) -> Result<(Arc<ReleasePolicy>, String, i64), RuleError> {
        let known = self.known()?;
        let Some((prefix, &version)) = known.release.of(&path.segments()) else {
            let policy = Arc::clone(&self.default_release);
            return Ok((policy, RELEASE_POLICY.to_owned(), 0));
        };
        let id = Scope::Release(prefix.clone()).to_string();
        let policy = self
            .compiled(&self.release, &id, version, ReleasePolicy::from_rego)
            .await?;
        Ok((policy, id, version))
    }

    /// The policy of a guest's selection, and its version. Only what is selected by no name is built
    /// in: a name that is not there is no reason to take another.
    pub(crate) async fn appraisal_for(
        &self,
        selector: &Selector,
    ) -> Result<(Arc<AppraisalPolicy>, i64), RuleError> {
        let known = self.known()?;
        let Some(&version) = known.appraisal.of(selector) else {
            if selector.is_default() {
                return Ok((Arc::clone(&self.default_appraisal), 0));
            }
            return Err(RuleError::Absent(selector.to_string()));
        };
        let id = selector.as_str();
        let policy = self
            .compiled(&self.appraisal, id, version, AppraisalPolicy::from_rego)
            .await?;
        Ok((policy, version))
    }

    /// Compiles what an owner sets, and asks it once: what has no end is refused before it holds.
    pub(crate) async fn try_out(&self, scope: &Scope, rego: &str) -> Result<(), PolicyError> {
        let rego = rego.to_owned();
        let release = matches!(scope, Scope::Release(_));
        let trial = move || {
            if release {
                ReleasePolicy::from_rego(&rego)?.try_out()
            } else {
                AppraisalPolicy::from_rego(&rego)?.try_out()
            }
        };
        self.desk.compile(&scope.to_string(), trial).await?
    }

    /// The reference values that hold at a moment, and the number of their last change.
    pub(crate) fn references(&self, now: SystemTime) -> (ReferenceValues, i64) {
        let references = Arc::clone(&self.known.load().references);
        (references.at(now), references.version())
    }

    /// The ids of all release policies, or of all appraisal policies; the built-in one is among them.
    pub(crate) fn ids(&self, root: &Scope) -> Vec<String> {
        let known = self.known.load();
        let mut ids = vec![root.to_string()];
        match root {
            Scope::Release(_) => ids.extend(
                known
                    .release
                    .iter()
                    .map(|(prefix, _)| Scope::Release(prefix.clone()).to_string()),
            ),
            Scope::Appraisal(_) => {
                ids.extend(
                    known
                        .appraisal
                        .iter()
                        .map(|(selector, _)| selector.to_string()),
                );
            }
        }
        ids.sort();
        ids.dedup();
        ids
    }

    async fn compiled<T: Send + Sync + 'static>(
        &self,
        cache: &Arc<Compiled<T>>,
        id: &str,
        version: i64,
        compile: fn(&str) -> Result<T, PolicyError>,
    ) -> Result<Arc<T>, RuleError> {
        let broken = |_| RuleError::Broken(id.to_owned());
        if let Some(known) = cache.known(id, version) {
            return known.map_err(broken);
        }
        let rego = self.store.policy(id, Some(version)).await?;
        let rego = rego.ok_or(StoreError::Content("policy"))?;
        let (cache, name) = (Arc::clone(cache), id.to_owned());
        let compiling = self.desk.compile(id, move || {
            cache.get(&name, version, || {
                compile(&rego).inspect_err(|error| {
                    let id = &name;
                    tracing::error!(id, version, %error, "a stored policy cannot be used: set it again");
                })
            })
        });
        let made = compiling.await.map_err(|error| {
            tracing::error!(id, version, %error, "a stored policy could not be compiled");
            match error {
                PolicyError::Busy => RuleError::Busy,
                _ => RuleError::Broken(id.to_owned()),
            }
        })?;
        made.map_err(|_| RuleError::Broken(id.to_owned()))
    }
}

impl Known {
    fn take(&mut self, change: &Change) -> Result<(), StoreError> {
        let unknown = |_| StoreError::Content("policy's id");
        self.mark.clone_from(&change.mark);
        if change.what == REFERENCES {
            return Ok(());
        }
        match Scope::from_id(&change.what).map_err(unknown)? {
            Scope::Release(prefix) if change.present => {
                self.release
                    .attach(prefix, change.version)
                    .map_err(unknown)?;
            }
            Scope::Release(prefix) => {
                self.release.detach(&prefix);
            }
            Scope::Appraisal(selector) if change.present => {
                self.appraisal
                    .attach(selector, change.version)
                    .map_err(unknown)?;
            }
            Scope::Appraisal(selector) => {
                self.appraisal.detach(&selector);
            }
        }
        Ok(())
    }
}

/// There is nothing to decide by.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// A guest selected a policy that is not there.
    #[error("there is no appraisal policy `{0}`: `kbs policy set --appraisal {0}` makes it")]
    Absent(String),
    /// A stored policy that does not compile.
    #[error("the policy `{0}` cannot be used: its owner finds the cause in the broker's log")]
    Broken(String),
    /// A policy that does not compile, with its cause.
    #[error("the policy `{0}`: {1}")]
    Policy(String, PolicyError),
    /// Other policies take all that there is for policies.
    #[error("too many policies are at work: try again later")]
    Busy,
    /// The store could not be read for a while.
    #[error("what changed in the store cannot be read: nothing is decided until it can")]
    Stale,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RuleError> for Refusal {
    fn from(error: RuleError) -> Self {
        let kind = match &error {
            RuleError::Absent(_) => ErrorKind::InvalidRequest,
            RuleError::Broken(_) | RuleError::Policy(..) => ErrorKind::PolicyEngineError,
            RuleError::Busy | RuleError::Stale => ErrorKind::NotReady,
            RuleError::Store(cause) => {
                tracing::error!(error = %cause, "a policy cannot be read");
                let detail = "a policy cannot be read: see the broker's log";
                return Self::new(ErrorKind::StorageError, detail);
            }
        };
        let refusal = Self::new(kind, error.to_string());
        match error {
            RuleError::Busy => refusal.retry_after(BUSY_SECONDS),
            _ => refusal,
        }
    }
}
