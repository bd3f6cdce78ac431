//! From a token to a resource: policy first, store second, so that who may not have a secret does not learn whether it
//! exists. What was ruled goes on the record, and after that to the guest.

use std::{collections::BTreeMap, sync::Arc};

use kbs_protocol::{ErrorKind, Jwe, ResourcePath, TeePubKey, seal};
use policies::{
    PolicyError,
    release::{Decision, Release, ReleasePolicy},
};
use zeroize::Zeroizing;

use super::answer::{self, Whose};
use crate::{
    broker::Broker,
    record::{Entry, Judged, Kind, Outcome, Versions},
    refusal::Refusal,
    room::Held,
    rules::RuleError,
    token::Claims,
};

const PLUGIN: &str = "resource";

/// What is asked for.
pub(super) struct Asked {
    pub(super) path: ResourcePath,
    /// Of the request's URL.
    pub(super) query: BTreeMap<String, String>,
    /// Whose share of the room for large answers it takes.
    pub(super) whose: Whose,
}

/// What became of it, which is not on the record yet.
pub(super) struct Ruling {
    entry: Entry,
    outcome: Result<Given, Refusal>,
}

/// A secret that is released, and the room of its answer.
struct Given {
    secret: Zeroizing<Vec<u8>>,
    room: Option<Held>,
}

/// A secret that is sealed, and the room of its answer.
pub(super) type SealedAnswer = (Jwe, Option<Held>);

/// Decides, and reads what is released.
///
/// # Errors
/// When nothing was decided.
pub(super) async fn rule(
    broker: &Arc<Broker>,
    claims: &Arc<Claims>,
    asked: Asked,
) -> Result<Ruling, Refusal> {
    let Asked { path, query, whose } = asked;
    let (policy, scope, version) = broker.rules.release_for(&path).await?;
    let versions = Versions {
        policy: scope,
        release: version,
        ..Versions::default()
    };
    let who = claims.subject.clone();
    let mut entry = Entry::new(Kind::Release, Outcome::Allowed, who, path.to_string());
    entry.attestation.clone_from(&claims.id);
    let unusual = !query.is_empty();
    let decide = decide(broker, &policy, claims, &path, query);
    let decision = if unusual {
        decide.await.map(Arc::new)
    } else {
        let policy = (&*policy, versions.policy.as_str(), version);
        claims.decided.or(policy, &entry.resource, decide).await
    };
    let mut entry = entry.by(versions);
    let decision = match decision {
        Ok(decision) => decision,
        // Nothing was decided, and the next one may be.
        Err(PolicyError::Busy) => return Err(RuleError::Busy.into()),
        Err(error) => {
            let entry = entry.judging([Judged::failing(&error)]);
            let why = "the release policy failed: its owner";
            return Ok(Ruling::deny(entry, ErrorKind::PolicyEngineError, why));
        }
    };
    entry.claims = Judged::by_policy(decision.judgements.clone(), &decision.reasons);
    if !decision.allowed {
        let why = "the release policy refuses: the owner";
        return Ok(Ruling::deny(entry, ErrorKind::PolicyDeny, why));
    }
    let Some((sealed, room)) = answer::read(broker, &path, whose).await? else {
        entry.result = Outcome::Absent;
        let detail = "there is no such resource";
        return Ok(Ruling::refuse(entry, ErrorKind::ResourceNotFound, detail));
    };
    entry.versions.resource = sealed.version();
    let secret = broker.store.open_sealed(&sealed).await;
    Ok(Ruling {
        entry,
        outcome: Ok(Given {
            secret: secret.map_err(super::storage)?,
            room,
        }),
    })
}

impl Ruling {
    fn refuse(entry: Entry, kind: ErrorKind, detail: impl Into<String>) -> Self {
        let refusal = Refusal::new(kind, detail).with_ticket(&entry.ticket);
        Self {
            entry,
            outcome: Err(refusal),
        }
    }

    fn deny(entry: Entry, kind: ErrorKind, why: &str) -> Self {
        let detail = format!("{why} reads why with `kbs explain {}`", entry.ticket);
        Self::refuse(entry.denied(), kind, detail)
    }

    /// Puts it on the record, behind the attestation that it is of where that is not there yet. While the disk is
    /// waited for, the secret is sealed. A refusal is within what it gives.
    ///
    /// # Errors
    /// It cannot be recorded. A denial by itself stands then all the same.
    pub(super) async fn answer(
        self,
        attestation: Option<Entry>,
        broker: &Broker,
        to: &TeePubKey,
    ) -> Result<Result<SealedAnswer, Refusal>, Refusal> {
        let Self { entry, outcome } = self;
        if attestation.is_none() && entry.result == Outcome::Denied {
            broker.deny(entry).await;
            return Ok(seal_to(to, outcome));
        }
        let entries = attestation.into_iter().chain([entry]).collect();
        let (kept, answer) = tokio::join!(broker.keep(entries), async { seal_to(to, outcome) });
        kept.map(|()| answer)
    }
}

fn seal_to(to: &TeePubKey, outcome: Result<Given, Refusal>) -> Result<SealedAnswer, Refusal> {
    let Given { secret, room } = outcome?;
    let jwe =
        seal(to, &secret).map_err(|error| Refusal::new(ErrorKind::JweError, error.to_string()))?;
    Ok((jwe, room))
}

/// Asks the policy: one that ships here, and an owner's where it can hold up nobody.
async fn decide(
    broker: &Broker,
    policy: &Arc<ReleasePolicy>,
    claims: &Arc<Claims>,
    path: &ResourcePath,
    query: BTreeMap<String, String>,
) -> Result<Decision, PolicyError> {
    let (claims, path) = (Arc::clone(claims), path.clone());
    let question = move |policy: &ReleasePolicy| {
        let asked = Release {
            plugin: PLUGIN,
            resource_path: &path.segments(),
            query,
            method: "GET",
        };
        policy.decide(&claims.claims, &asked)
    };
    if policy.is_built_in() {
        return question(policy);
    }
    broker.rules.desk.ask(policy, question).await
}
