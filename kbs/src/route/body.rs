//! Bodies of requests: each with a cap of its own, and all that are held together with one too, so that
//! memory is bounded whatever the number of connections.
//!
//! Room is taken as bytes come, and not by what a client says that it will send. Bodies of `auth` have
//! room of their own, and so has what is small of the others: whoever fills the rest keeps nobody from
//! asking for a challenge, and no guest of the common size from answering it. Of each room an address
//! has a share.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header;
use kbs_protocol::{ErrorKind, limit::AUTH_BODY_BYTES};
use serde::de::DeserializeOwned;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use super::{answer, invalid, observe, rest};
use crate::{
    broker::Broker,
    refusal::Refusal,
    room::{Held, Room},
};

/// What of each body counts as small: evidence with certificates, without a long event log.
const SMALL_BYTES: usize = 64 * 1024;
/// Room for bodies of `auth`: of each connection that there may be, a step.
const AUTH_ROOM_BYTES: usize = 32 * 1024 * 1024;
/// Room for the small parts of all other bodies.
const SMALL_ROOM_BYTES: usize = 64 * 1024 * 1024;
/// Room for what is beyond them.
const LARGE_ROOM_BYTES: usize = 64 * 1024 * 1024;
/// Room for what is large of heads: two long tokens of 600 clients, or one of usual length of each
/// that may be connected.
const HEAD_ROOM_BYTES: usize = 128 * 1024 * 1024;
/// Between two parts of a body.
const PART_TIME: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5000 });
/// For a whole body: less than an answer may take.
const WHOLE_TIME: Duration = Duration::from_secs(20);

/// How many bytes an endpoint takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cap(pub(super) usize);

/// The room for all that is held for clients.
pub(crate) struct Rooms {
    auth: Arc<Room>,
    small: Arc<Room>,
    large: Arc<Room>,
    /// For answers that are large.
    pub(super) answers: Arc<Room>,
    /// For what is large of heads.
    pub(crate) heads: Arc<Room>,
    /// Who reads bodies for nothing.
    pub(super) readers: Semaphore,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            auth: Room::new(AUTH_ROOM_BYTES),
            small: Room::new(SMALL_ROOM_BYTES),
            large: Room::new(LARGE_ROOM_BYTES),
            answers: Room::new(answer::ROOM_BYTES),
            heads: Room::new(HEAD_ROOM_BYTES),
            readers: Semaphore::new(rest::READERS),
        }
    }
}

/// A body as it came. Its room is given back when it is dropped, and not when it has been read: what a
/// handler makes of it is as large.
pub(crate) struct Body {
    bytes: Bytes,
    _room: Taken,
}

impl Body {
    pub(super) fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    /// What it says as JSON.
    pub(super) fn json<T: DeserializeOwned>(&mut self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.take()).map_err(|error| {
            // The text of the error may quote the body; its place does not.
            let place = format!("line {}, column {}", error.line(), error.column());
            let form = match error.classify() {
                serde_json::error::Category::Data => "has not the members of this endpoint",
                serde_json::error::Category::Io
                | serde_json::error::Category::Syntax
                | serde_json::error::Category::Eof => "is not JSON",
            };
            invalid(&format!("the body {form}: {place}"))
        })
    }
}

impl FromRequest<Arc<Broker>> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, broker: &Arc<Broker>) -> Result<Self, Refusal> {
        let cap = request.extensions().get::<Cap>().map_or(0, |cap| cap.0);
        let declared = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
            .unwrap_or(0);
        if declared > cap {
            return Err(too_large());
        }
        let whose = observe::whose(broker, &request);
        read(request, declared, cap, (&broker.limiter.rooms, whose)).await
    }
}

async fn read(
    request: Request,
    declared: usize,
    cap: usize,
    (rooms, whose): (&Rooms, Option<IpAddr>),
) -> Result<Body, Refusal> {
    let end = Instant::now() + WHOLE_TIME;
    let mut parts = request.into_body().into_data_stream();
    let mut room = Taken::new(rooms, whose, cap);
    let mut next = async || {
        let one = timeout(PART_TIME, parts.next());
        match timeout_at(end, one).await {
            Ok(Ok(Some(part))) => part
                .map(Some)
                .map_err(|_| invalid("the body could not be read")),
            Ok(Ok(None)) => Ok(None),
            Ok(Err(_)) | Err(_) => Err(Refusal::new(
                ErrorKind::RequestTimeout,
                "the body came too slowly: send it again",
            )),
        }
    };
    let mut whole = BytesMut::new();
    let mut first = Bytes::new();
    while let Some(part) = next().await? {
        let length = first.len() + whole.len() + part.len();
        if length > cap {
            return Err(too_large());
        }
        room.grow(length).await?;
        if length == part.len() {
            // Most bodies are one part, which need not be copied.
            first = part;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(declared.max(length));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&part);
    }
    let bytes = if whole.is_empty() {
        first
    } else {
        whole.freeze()
    };
    Ok(Body { bytes, _room: room })
}

/// The room that one body has.
struct Taken {
    small: Held,
    large: Held,
}

impl Taken {
    fn new(rooms: &Rooms, whose: Option<IpAddr>, cap: usize) -> Self {
        let small = if cap <= AUTH_BODY_BYTES {
            &rooms.auth
        } else {
            &rooms.small
        };
        Self {
            small: Held::new(small, whose),
            large: Held::new(&rooms.large, whose),
        }
    }

    /// Takes what is lacking for so many bytes.
    async fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.small.grow(bytes.min(SMALL_BYTES)).await?;
        self.large.grow(bytes.saturating_sub(SMALL_BYTES)).await
    }
}

fn too_large() -> Refusal {
    Refusal::new(
        ErrorKind::PayloadTooLarge,
        "the body is larger than this endpoint takes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(bytes: usize, rooms: &Rooms) -> Result<Body, Refusal> {
        let request = Request::new(axum::body::Body::from(vec![b'x'; bytes]));
        read(request, bytes, 4 << 20, (rooms, None)).await
    }

    #[tokio::test]
    async fn large_bodies_fill_their_room_and_keep_no_small_one_out() {
        let rooms = Rooms::default();
        let mut all = Vec::new();
        while let Ok(body) = sent(4 << 20, &rooms).await {
            all.push(body);
        }
        let held: usize = all.iter().map(|body| body.bytes.len()).sum();
        assert!(held <= SMALL_ROOM_BYTES + LARGE_ROOM_BYTES, "{held}");
        assert!(held > LARGE_ROOM_BYTES / 2, "{held}");
        assert!(sent(SMALL_BYTES, &rooms).await.is_ok());
        let refused = sent(4 << 20, &rooms).await.err().unwrap();
        let answer = axum::response::IntoResponse::into_response(refused);
        assert_eq!(answer.status().as_u16(), 503);
        assert_eq!(answer.headers()[header::RETRY_AFTER], "2");
        // Room comes back with the end of the handler, and not with the end of its reading.
        all[0].take();
        assert!(sent(4 << 20, &rooms).await.is_err());
        all.clear();
        assert!(sent(4 << 20, &rooms).await.is_ok());
        assert!(rooms.small.is_empty() && rooms.large.is_empty());
    }

    #[tokio::test]
    async fn an_address_that_fills_its_share_keeps_no_other_out_and_itself_not_from_auth() {
        let rooms = Rooms::default();
        let send = async |last: u8, cap| {
            let whose = Some(IpAddr::from([192, 0, 2, last]));
            let request = Request::new(axum::body::Body::from(vec![b'x'; 16_000]));
            read(request, 0, cap, (&rooms, whose)).await
        };
        let mut all = Vec::new();
        while let Ok(body) = send(1, 4 << 20).await {
            all.push(body);
        }
        assert!(all.len() * 16_000 <= SMALL_ROOM_BYTES / 8);
        assert!(send(2, 4 << 20).await.is_ok());
        assert!(send(1, AUTH_BODY_BYTES).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_in_parts_is_whole_and_has_its_cap_whatever_it_declares() {
        let rooms = Rooms::default();
        let parts = |count: u8| {
            let parts = (0..count).map(|part| Ok::<_, std::io::Error>(vec![b'0' + part; 3]));
            let body = axum::body::Body::from_stream(futures_util::stream::iter(parts));
            read(Request::new(body), 0, 9, (&rooms, None))
        };
        let mut whole = parts(3).await.ok().unwrap();
        assert_eq!(whole.take(), "000111222");
        assert!(parts(4).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_stops_sending_is_told_that_it_was_too_slow() {
        let rooms = Rooms::default();
        let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let body = axum::body::Body::from_stream(endless);
        let read = read(Request::new(body), 9, 9, (&rooms, None)).await;
        let refused = read.err().unwrap();
        let answer = axum::response::IntoResponse::into_response(refused);
        assert_eq!(answer.status().as_u16(), 408);
    }
}
