//! The places of an image, one after the other: mirrors, then the registry itself.
//!
//! A mirror that was down, slow or lying rests for a moment, so that not every layer waits for it anew. The node's own
//! is not asked again after it was a few times: others rest by accident, and it could do so by intent. The last place
//! is always asked.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::rules::Site;
use super::{RegistryError, node};

/// How long a mirror rests that failed.
const REST: Duration = Duration::from_secs(30);
/// Mirrors whose failures are kept in mind; also registries whose scheme is.
const KEPT_MAX: usize = 1024;
/// Failures of the node's mirror before it is left alone.
const STRIKES_MAX: u32 = 3;

/// A place that was asked in vain.
#[derive(Debug, Clone)]
pub struct Tried {
    /// `mirror` or `registry`, and the image's name there.
    pub place: String,
    /// Why it did not give what was asked for.
    pub error: RegistryError,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.error)
    }
}

/// Mirrors that failed a moment ago, and how.
#[derive(Clone, Default)]
pub(super) struct Health {
    failures: Arc<Mutex<HashMap<String, (Instant, String)>>>,
    /// How often the node's mirror failed.
    strikes: Arc<AtomicU32>,
}

impl Health {
    fn resting(&self, site: &Site) -> Option<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, cause) = failures.get(site.host())?;
        let is_over = site.is_node && self.strikes.load(Ordering::Relaxed) >= STRIKES_MAX;
        (is_over || at.elapsed() < REST).then(|| cause.clone())
    }

    fn note(&self, site: &Site, error: &RegistryError) {
        let counts = if site.is_node {
            // What has another length than the manifest says was named wrongly by the manifest: a mirror that lied would
            // say the right length and send something else.
            !matches!(
                error,
                RegistryError::NotFound { .. } | RegistryError::Length { .. }
            )
        } else {
            site.is_mirror && error.is_fault_of_place()
        };
        if !counts {
            return;
        }
        if site.is_node {
            self.strike(error);
        }
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= KEPT_MAX {
            failures.clear();
        }
        let failure = (Instant::now(), error.to_string());
        failures.insert(site.host().to_owned(), failure);
    }

    fn strike(&self, error: &RegistryError) {
        match error {
            // This host keeps none.
            error if node::is_refused(error) => self.strikes.store(STRIKES_MAX, Ordering::Relaxed),
            RegistryError::Busy { .. } => {}
            _ => {
                let before = self.strikes.fetch_add(1, Ordering::Relaxed);
                let is_last = before + 1 >= STRIKES_MAX;
                tracing::warn!(%error, is_last, "the node's mirror is passed by");
            }
        }
    }
}

/// What registries speak that may speak anything.
#[derive(Clone, Default)]
pub(super) struct Schemes(Arc<Mutex<HashMap<String, &'static str>>>);

impl Schemes {
    pub(super) fn of(&self, host: &str) -> Option<&'static str> {
        let schemes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        schemes.get(host).copied()
    }

    pub(super) fn keep(&self, host: &str, scheme: &'static str) {
        let mut schemes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if schemes.len() < KEPT_MAX {
            schemes.insert(host.to_owned(), scheme);
        }
    }
}

/// The way along the places for one manifest or blob.
pub(super) struct Walk {
    health: Health,
    left: VecDeque<Site>,
    tried: Vec<Tried>,
}

impl Walk {
    pub(super) fn new(health: Health, sites: Vec<Site>) -> Self {
        let (left, tried) = (sites.into(), Vec::new());
        Self {
            health,
            left,
            tried,
        }
    }

    /// Asks the node's mirror before all that are left.
    pub(super) fn node_first(&mut self) {
        if let Some(first) = self.left.front().filter(|site| !site.is_node) {
            let site = Site::node(first.image.clone());
            self.left.push_front(site);
        }
    }

    /// The next place to ask.
    pub(super) fn next(&mut self) -> Option<Site> {
        loop {
            let site = self.left.pop_front()?;
            match self.health.resting(&site) {
                // It was told when it failed.
                Some(_) if site.is_node => {}
                Some(cause) if site.is_mirror && !self.is_last() => {
                    let place = site.title();
                    let error = RegistryError::Resting { cause };
                    self.tried.push(Tried { place, error });
                }
                _ => return Some(site),
            }
        }
    }

    /// Whether no place is left behind the one at hand.
    pub(super) fn is_last(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn failed(&mut self, site: &Site, error: RegistryError) {
        self.health.note(site, &error);
        // That there is none, or that it was not filled yet, is nobody's failure.
        let is_absent = node::is_refused(&error) || matches!(error, RegistryError::NotFound { .. });
        if site.is_node && is_absent {
            return;
        }
        let place = site.title();
        if !self.is_last() {
            tracing::debug!(place, %error, "the next place is asked");
        }
        self.tried.push(Tried { place, error });
    }

    /// The end: the error of the only place, or that of all.
    pub(super) fn end(&mut self, what: &str) -> RegistryError {
        match (self.tried.pop(), self.tried.is_empty()) {
            (Some(only), true) => only.error,
            (last, _) => {
                self.tried.extend(last);
                let (what, tried) = (what.to_owned(), std::mem::take(&mut self.tried));
                RegistryError::Nowhere { what, tried }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Security;
    use super::*;

    fn site(image: &str, is_mirror: bool) -> Site {
        Site {
            is_mirror,
            ..Site::direct(image.parse().unwrap(), Security::Verified)
        }
    }

    fn short() -> RegistryError {
        RegistryError::Short {
            what: "blob".to_owned(),
            expected: 2,
            found: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_failed_rests_and_is_asked_again() {
        let health = Health::default();
        let sites = || vec![site("m.test/a", true), site("r.test/a", false)];
        let mut walk = Walk::new(health.clone(), sites());
        let mirror = walk.next().unwrap();
        assert!(mirror.is_mirror && !walk.is_last());
        walk.failed(&mirror, short());
        let origin = walk.next().unwrap();
        walk.failed(&origin, short());
        assert!(walk.next().is_none());
        let error = walk.end("blob x").to_string();
        for word in ["blob x", "mirror m.test/a", "registry r.test/a"] {
            assert!(error.contains(word), "{error}");
        }
        // The registry itself never rests.
        let mut walk = Walk::new(health.clone(), sites());
        assert_eq!(walk.next(), Some(site("r.test/a", false)));
        tokio::time::advance(REST).await;
        let mut walk = Walk::new(health, sites());
        assert_eq!(walk.next(), Some(site("m.test/a", true)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_nodes_mirror_comes_first_and_is_left_alone_after_three_failures() {
        let health = Health::default();
        let origin = site("r.test/a", false);
        let walk = || {
            let mut walk = Walk::new(health.clone(), vec![origin.clone()]);
            walk.node_first();
            walk.node_first();
            walk
        };
        let absent = |what: &str| RegistryError::NotFound {
            what: what.to_owned(),
            detail: String::new(),
        };
        // What it lacks is no failure, and not part of an error.
        let mut first = walk();
        let node = first.next().unwrap();
        assert!(node.is_node && !first.is_last());
        first.failed(&node, absent("blob"));
        assert_eq!(first.next(), Some(origin.clone()));
        first.failed(&origin, short());
        assert!(matches!(first.end("x"), RegistryError::Short { .. }));
        for _ in 0..STRIKES_MAX {
            let mut walk = walk();
            assert_eq!(walk.next(), Some(node.clone()));
            walk.failed(&node, short());
            // It rests like any other.
            assert_eq!(walk.next(), Some(origin.clone()));
            tokio::time::advance(REST).await;
        }
        tokio::time::advance(REST * 100).await;
        assert_eq!(walk().next(), Some(origin));
    }

    #[test]
    fn a_manifest_that_lies_about_a_size_is_not_the_nodes_fault() {
        let health = Health::default();
        let origin = site("r.test/a", false);
        for _ in 0..=STRIKES_MAX {
            let mut walk = Walk::new(health.clone(), vec![origin.clone()]);
            walk.node_first();
            let node = walk.next().unwrap();
            assert!(node.is_node);
            let what = "blob".to_owned();
            let (expected, found) = (1, 2);
            let error = RegistryError::Length {
                what,
                expected,
                found,
            };
            walk.failed(&node, error);
        }
    }

    #[test]
    fn the_only_place_speaks_for_itself() {
        let mut walk = Walk::new(Health::default(), vec![site("r.test/a", false)]);
        let origin = walk.next().unwrap();
        walk.failed(&origin, short());
        assert!(matches!(walk.end("x"), RegistryError::Short { .. }));
    }
}
