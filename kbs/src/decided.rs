//! What a policy said about a guest's last few requests: a guest asks for the same key again for each
//! layer of its image and for each of its containers.
//!
//! A decision is kept beside the verified token that it was made for, by the policy's id and version and
//! the path, on which alone it depends: a policy that looks at the clock is asked each time. Each answer
//! is recorded as any other.

use std::sync::{Arc, Mutex, PoisonError};

use policies::{
    PolicyError,
    release::{Decision, ReleasePolicy},
};

/// Decisions that are kept of one token.
const KEPT: usize = 4;

/// The decisions about one token.
#[derive(Debug, Default)]
pub(crate) struct Decided(Mutex<Vec<Kept>>);

#[derive(Debug)]
struct Kept {
    policy: String,
    version: i64,
    path: String,
    decision: Arc<Decision>,
}

impl Decided {
    /// The decision that is kept, and else the one that `decide` makes.
    pub(crate) async fn or(
        &self,
        (policy, id, version): (&ReleasePolicy, &str, i64),
        path: &str,
        decide: impl Future<Output = Result<Decision, PolicyError>>,
    ) -> Result<Arc<Decision>, PolicyError> {
        if policy.changes_its_mind() {
            return decide.await.map(Arc::new);
        }
        let same = |kept: &Kept| kept.version == version && kept.path == path && kept.policy == id;
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock()
            .iter()
            .find(|kept| same(kept))
            .map(|kept| Arc::clone(&kept.decision));
        if let Some(decision) = kept {
            return Ok(decision);
        }
        let decision = Arc::new(decide.await?);
        let mut all = lock();
        if all.len() >= KEPT {
            all.remove(0);
        }
        all.push(Kept {
            policy: id.to_owned(),
            version,
            path: path.to_owned(),
            decision: Arc::clone(&decision),
        });
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use policies::release::DENY_ALL;

    use super::*;

    fn decision(allowed: bool) -> Decision {
        Decision {
            allowed,
            reasons: Vec::new(),
            judgements: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_same_question_is_asked_once_and_any_other_anew() {
        let policy = ReleasePolicy::from_rego(DENY_ALL).unwrap();
        let decided = Decided::default();
        let ask = async |id, version, path, allowed| {
            let asked = (&policy, id, version);
            let decision = decided.or(asked, path, async { Ok(decision(allowed)) });
            decision.await.unwrap().allowed
        };
        assert!(ask("a", 1, "x", true).await);
        assert!(ask("a", 1, "x", false).await, "kept");
        assert!(!ask("a", 2, "x", false).await, "another version");
        assert!(!ask("b", 1, "x", false).await, "another policy");
        assert!(!ask("a", 1, "y", false).await, "another path");
        for path in ["1", "2", "3", "4"] {
            ask("a", 1, path, false).await;
        }
        assert!(!ask("a", 1, "x", false).await, "forgotten");
    }

    #[tokio::test]
    async fn a_policy_that_may_change_its_mind_is_asked_each_time() {
        for condition in [
            "time.now_ns() > 0",
            "time[\"now\\u005fns\"]() > 0",
            "rand.intn(\"a\", 2) == 1",
        ] {
            let text = format!("package policy\nallow if {condition}");
            let policy = ReleasePolicy::from_rego(&text).unwrap();
            let decided = Decided::default();
            for allowed in [true, false] {
                let asked = (&policy, "a", 1);
                let found = decided.or(asked, "x", async { Ok(decision(allowed)) });
                assert_eq!(found.await.unwrap().allowed, allowed, "{condition}");
            }
        }
    }
}
