//! What guests ask: a challenge, a token, a resource.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, State},
    response::{AppendHeaders, IntoResponse, Response},
};
use http::{HeaderName, header};
use kbs_protocol::{AuthRequest, ErrorKind, ResourcePath, SESSION_COOKIE, TokenResponse, seal};
use policies::{
    PolicyError,
    release::{Decision, Release, ReleasePolicy},
};
use serde_json::Value;

use super::{
    Body,
    answer::{self, Whose},
};
use crate::{
    attest,
    auth::{Anyone, Attested, CHALLENGE_MARK, Challenged, TOKEN_MARK},
    broker::Broker,
    record::{Entry, Judged, Kind, Outcome, Versions},
    refusal::Refusal,
    rules::RuleError,
    token::Claims,
};

const PLUGIN: &str = "resource";

pub(super) async fn jwks(State(broker): State<Arc<Broker>>, _: Anyone) -> Json<Value> {
    Json(broker.signer.jwks())
}

pub(super) async fn auth(
    State(broker): State<Arc<Broker>>,
    _: Anyone,
    mut body: Body,
) -> Result<Response, Refusal> {
    let request: AuthRequest = body.json()?;
    let (response, challenge) = attest::challenge(&broker, &request)?;
    let cookie = cookie(
        &broker,
        CHALLENGE_MARK,
        &challenge,
        broker.challenge_seconds,
    );
    Ok((AppendHeaders([cookie]), Json(response)).into_response())
}

pub(super) async fn attest(
    State(broker): State<Arc<Broker>>,
    Challenged(challenge): Challenged,
    mut body: Body,
) -> Result<Response, Refusal> {
    let request: attest::Request = body.json()?;
    let token = attest::attest(&broker, &challenge, request).await?;
    // CoCo's guests send the cookie alone, so it holds the token however long that is: the head of a
    // request has room for both.
    let cookie = cookie(&broker, TOKEN_MARK, &token, broker.token_seconds);
    let response = Json(TokenResponse { token });
    Ok((AppendHeaders([cookie]), response).into_response())
}

/// What HEAD would tell is in the secret alone, and a policy is asked for nothing else.
pub(super) async fn no_head(_: Anyone) -> Response {
    let refusal = Refusal::new(
        ErrorKind::MethodNotAllowed,
        "a resource is released by GET, and HEAD asks for nothing of it",
    );
    ([(header::ALLOW, "GET,POST,DELETE")], refusal).into_response()
}

/// Policy first, store second: who may not have a secret does not learn whether it exists.
pub(super) async fn resource(
    State(broker): State<Arc<Broker>>,
    Attested(claims): Attested,
    whose: Whose,
    Path((repository, kind, tag)): Path<(String, String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Response, Refusal> {
    let path = resource_path(&repository, &kind, &tag)?;
    let (policy, scope, version) = broker.rules.release_for(&path).await?;
    let who = claims.subject.clone();
    let versions = Versions {
        policy: scope,
        release: version,
        ..Versions::default()
    };
    let mut entry = Entry::new(Kind::Release, Outcome::Allowed, who, path.to_string());
    entry.attestation.clone_from(&claims.id);
    let unusual = !query.is_empty();
    let decide = decide(&broker, &policy, &claims, &path, query);
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
            let entry = entry.denied().judging([Judged::failing(&error)]);
            let ticket = broker.deny(entry).await;
            let detail = format!(
                "the release policy failed: its owner reads why with `kbs explain {ticket}`"
            );
            return Err(Refusal::new(ErrorKind::PolicyEngineError, detail).with_ticket(ticket));
        }
    };
    entry.claims = Judged::by_policy(decision.judgements.clone(), &decision.reasons);
    if !decision.allowed {
        let ticket = broker.deny(entry.denied()).await;
        let detail =
            format!("the release policy refuses: the owner reads why with `kbs explain {ticket}`");
        return Err(Refusal::new(ErrorKind::PolicyDeny, detail).with_ticket(ticket));
    }
    let Some((sealed, room)) = answer::read(&broker, &path, whose).await? else {
        entry.result = Outcome::Absent;
        let ticket = entry.ticket.clone();
        broker.keep(entry).await?;
        let detail = "there is no such resource";
        return Err(Refusal::new(ErrorKind::ResourceNotFound, detail).with_ticket(ticket));
    };
    entry.versions.resource = sealed.version();
    let secret = broker
        .store
        .open_sealed(&sealed)
        .await
        .map_err(super::storage)?;
    drop(sealed);
    broker.keep(entry).await?;
    let jwe = seal(&claims.tee_pubkey, &secret)
        .map_err(|error| Refusal::new(ErrorKind::JweError, error.to_string()))?;
    answer::with_room(&jwe, room)
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

pub(super) fn resource_path(
    repository: &str,
    kind: &str,
    tag: &str,
) -> Result<ResourcePath, Refusal> {
    ResourcePath::new(repository, kind, tag)
        .map_err(|error| Refusal::new(ErrorKind::InvalidRequestPath, error.to_string()))
}

fn cookie(broker: &Broker, mark: &str, value: &str, seconds: u32) -> (HeaderName, String) {
    let secure = if broker.secure_cookie { "; Secure" } else { "" };
    (
        header::SET_COOKIE,
        // Without a path it is of the folder that it comes from, also where a proxy puts a prefix before.
        format!("{SESSION_COOKIE}={mark}{value}; HttpOnly{secure}; Max-Age={seconds}"),
    )
}
