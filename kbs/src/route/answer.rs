//! Answers that are large: a client may ask for many and read none of them, so they have room together,
//! and each address a share of it, which is taken before a secret is opened and given back when its
//! last byte has gone.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{header, request::Parts};
use kbs_protocol::{ErrorKind, ResourcePath};
use serde::Serialize;

use super::{Peer, storage};
use crate::{
    broker::Broker,
    refusal::Refusal,
    room::{Held, Room},
    store::Sealed,
};

/// What of an answer is large. Smaller ones are bounded by the number of connections.
const LARGE_BYTES: usize = 64 * 1024;
/// Room for those that are: six of the largest for each address.
pub(super) const ROOM_BYTES: usize = 128 * 1024 * 1024;
/// A JWE beside its ciphertext.
const HEAD_BYTES: usize = 4096;

/// Whose share of the room an answer takes.
pub(super) struct Whose(Option<IpAddr>);

impl FromRequestParts<Arc<Broker>> for Whose {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self, Refusal> {
        let whose = parts.extensions.get::<Peer>().and_then(|Peer(peer)| {
            let client = broker.limiter.client(*peer, &parts.headers);
            broker.limiter.whose(client)
        });
        Ok(Self(whose))
    }
}

/// A resource as it is kept, and the room for its answer where that is large. While it waits for room
/// it is not held: it is read again.
pub(super) async fn read(
    broker: &Broker,
    path: &ResourcePath,
    Whose(whose): Whose,
) -> Result<Option<(Sealed, Option<Held>)>, Refusal> {
    let mut room = None;
    loop {
        let Some(sealed) = broker.store.sealed(path).await.map_err(storage)? else {
            return Ok(None);
        };
        let bytes = answer_bytes(&sealed);
        if bytes <= LARGE_BYTES {
            return Ok(Some((sealed, None)));
        }
        let answers: &Arc<Room> = &broker.limiter.rooms.answers;
        let held = room.get_or_insert_with(|| Held::new(answers, whose));
        if held.try_grow(bytes) {
            return Ok(Some((sealed, room)));
        }
        drop(sealed);
        held.grow(bytes).await?;
    }
}

fn answer_bytes(sealed: &Sealed) -> usize {
    sealed.bytes().div_ceil(3) * 4 + HEAD_BYTES
}

/// The answer, which has its room until it is sent.
pub(super) fn with_room(answer: &impl Serialize, room: Option<Held>) -> Result<Response, Refusal> {
    let Some(room) = room else {
        return Ok(Json(answer).into_response());
    };
    let text = serde_json::to_vec(answer)
        .map_err(|error| Refusal::new(ErrorKind::JweError, error.to_string()))?;
    let text = Bytes::from_owner(Kept { text, _room: room });
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, Body::from(text)).into_response())
}

/// Text with its room.
struct Kept {
    text: Vec<u8>,
    _room: Held,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}
