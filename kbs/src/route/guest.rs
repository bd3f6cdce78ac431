//! What guests ask: a challenge, a token, a resource.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, State},
    response::{AppendHeaders, IntoResponse, Response},
};
use http::{HeaderName, header};
use kbs_protocol::{AuthRequest, ErrorKind, Released, ResourcePath, SESSION_COOKIE, TokenResponse};
use serde_json::Value;

use super::{
    Body,
    answer::{self, Whose},
    release::{self, Asked},
};
use crate::{
    attest,
    auth::{Anyone, Attested, CHALLENGE_MARK, Challenged, TOKEN_MARK, no_token},
    broker::Broker,
    record::Entry,
    refusal::Refusal,
    room::Held,
};

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

/// A token; and where a resource is asked for with the evidence, that as well, with one wait for the disk for both.
pub(super) async fn attest(
    State(broker): State<Arc<Broker>>,
    Challenged(challenge): Challenged,
    whose: Whose,
    mut body: Body,
) -> Result<Response, Refusal> {
    let mut request: attest::Request = body.json()?;
    let wanted = request.resource.take();
    let (token, entry) = attest::attest(&broker, &challenge, request).await?;
    let (resource, room) = match wanted {
        None => {
            broker.keep(vec![entry]).await?;
            (None, None)
        }
        Some(path) => {
            let asked = Asked {
                path,
                query: BTreeMap::new(),
                whose,
            };
            let (released, room) = release_with(&broker, &token, entry, asked).await?;
            (Some(released), room)
        }
    };
    // CoCo's guests send the cookie alone, so it holds the token however long that is: the head of a
    // request has room for both.
    let cookie = cookie(&broker, TOKEN_MARK, &token, broker.token_seconds);
    let response = answer::with_room(&TokenResponse { token, resource }, room)?;
    Ok((AppendHeaders([cookie]), response).into_response())
}

/// What a guest gets with its token, which it has in any case. `attestation` goes on the record.
async fn release_with(
    broker: &Arc<Broker>,
    token: &str,
    attestation: Entry,
    asked: Asked,
) -> Result<(Released, Option<Held>), Refusal> {
    let claims = { broker.signer.verify(token) }.map_err(|error| no_token(&error))?;
    let released = match release::rule(broker, &claims, asked).await {
        Ok(ruling) => {
            let answer = ruling.answer(Some(attestation), broker, &claims.tee_pubkey);
            answer.await?
        }
        Err(undecided) => {
            broker.keep(vec![attestation]).await?;
            Err(undecided)
        }
    };
    Ok(match released {
        Ok((jwe, room)) => (Released::Sealed(jwe), room),
        Err(refusal) => (refusal.beside(), None),
    })
}

/// What HEAD would tell is in the secret alone, and a policy is asked for nothing else.
pub(super) async fn no_head(_: Anyone) -> Response {
    let refusal = Refusal::new(
        ErrorKind::MethodNotAllowed,
        "a resource is released by GET, and HEAD asks for nothing of it",
    );
    ([(header::ALLOW, "GET,POST,DELETE")], refusal).into_response()
}

pub(super) async fn resource(
    State(broker): State<Arc<Broker>>,
    Attested(claims): Attested,
    whose: Whose,
    Path((repository, kind, tag)): Path<(String, String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Response, Refusal> {
    let asked = Asked {
        path: resource_path(&repository, &kind, &tag)?,
        query,
        whose,
    };
    let ruling = release::rule(&broker, &claims, asked).await?;
    let (jwe, room) = { ruling.answer(None, &broker, &claims.tee_pubkey).await? }?;
    answer::with_room(&jwe, room)
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
