//! Bodies of requests: each with a cap of its own, and all that are held together with one too, so that
//! memory is bounded whatever the number of connections.
//!
//! Room is taken as bytes come, and not by what a client says that it will send. What is small has room
//! of its own: whoever fills the rest with large bodies keeps nobody from asking for a challenge, and
//! no guest of the common size from answering it.

use std::{sync::Arc, time::Duration};

use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header;
use kbs_protocol::ErrorKind;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::{invalid, rest};
use crate::{broker::Broker, refusal::Refusal};

/// What of each body counts as small: evidence with certificates, without a long event log.
const SMALL_BYTES: usize = 64 * 1024;
/// Room for the small parts of all bodies.
const SMALL_ROOM_BYTES: usize = 64 * 1024 * 1024;
/// Room for what is beyond them.
const LARGE_ROOM_BYTES: usize = 64 * 1024 * 1024;
/// Room is taken in steps of it.
const STEP_BYTES: usize = 4096;
/// How long a body waits for room.
const ROOM_TIME: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });
/// When a client that found no room may come again, in seconds.
const RETRY_SECONDS: u64 = 2;
/// Between two parts of a body.
const PART_TIME: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5000 });
/// For a whole body: less than an answer may take.
const WHOLE_TIME: Duration = Duration::from_secs(20);

/// How many bytes an endpoint takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cap(pub(super) usize);

/// The room for all bodies that are held.
pub(crate) struct Rooms {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Who reads bodies for nothing.
    pub(super) readers: Semaphore,
}

impl Default for Rooms {
    fn default() -> Self {
        let room = |bytes: usize| Arc::new(Semaphore::new(bytes / STEP_BYTES));
        Self {
            small: room(SMALL_ROOM_BYTES),
            large: room(LARGE_ROOM_BYTES),
            readers: Semaphore::new(rest::READERS),
        }
    }
}

/// A body as it came. Its room is given back when it is dropped, and not when it has been read: what a
/// handler makes of it is as large.
pub(crate) struct Body {
    bytes: Bytes,
    _held: Held,
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
        read(request, declared, cap, &broker.limiter.rooms).await
    }
}

async fn read(
    request: Request,
    declared: usize,
    cap: usize,
    rooms: &Rooms,
) -> Result<Body, Refusal> {
    let end = Instant::now() + WHOLE_TIME;
    let mut parts = request.into_body().into_data_stream();
    let mut held = Held::default();
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
        held.grow(rooms, length).await?;
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
    Ok(Body { bytes, _held: held })
}

/// The room that one body has.
#[derive(Default)]
struct Held {
    small: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Takes what is lacking for so many bytes.
    async fn grow(&mut self, rooms: &Rooms, bytes: usize) -> Result<(), Refusal> {
        let (small, large) = (bytes.min(SMALL_BYTES), bytes.saturating_sub(SMALL_BYTES));
        take(&mut self.small, &rooms.small, small).await?;
        take(&mut self.large, &rooms.large, large).await
    }
}

async fn take(
    held: &mut Option<OwnedSemaphorePermit>,
    room: &Arc<Semaphore>,
    bytes: usize,
) -> Result<(), Refusal> {
    let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let lacks = bytes.div_ceil(STEP_BYTES).saturating_sub(has);
    let Ok(lacks @ 1..) = u32::try_from(lacks) else {
        return Ok(());
    };
    let taken = timeout(ROOM_TIME, Arc::clone(room).acquire_many_owned(lacks)).await;
    let Ok(Ok(taken)) = taken else {
        return Err(Refusal::new(
            ErrorKind::NotReady,
            "others send more than is held at once: try again in a moment",
        )
        .retry_after(RETRY_SECONDS));
    };
    match held {
        Some(held) => held.merge(taken),
        None => *held = Some(taken),
    }
    Ok(())
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
        read(request, bytes, 4 << 20, rooms).await
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
        assert_eq!(
            rooms.small.available_permits(),
            SMALL_ROOM_BYTES / STEP_BYTES
        );
        assert_eq!(
            rooms.large.available_permits(),
            LARGE_ROOM_BYTES / STEP_BYTES
        );
    }

    #[tokio::test]
    async fn a_body_in_parts_is_whole_and_has_its_cap_whatever_it_declares() {
        let rooms = Rooms::default();
        let parts = |count: u8| {
            let parts = (0..count).map(|part| Ok::<_, std::io::Error>(vec![b'0' + part; 3]));
            let body = axum::body::Body::from_stream(futures_util::stream::iter(parts));
            read(Request::new(body), 0, 9, &rooms)
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
        let refused = read(Request::new(body), 9, 9, &rooms).await.err().unwrap();
        let answer = axum::response::IntoResponse::into_response(refused);
        assert_eq!(answer.status().as_u16(), 408);
    }
}
