//! The answers to a guest: small ones at once, blobs in pieces as they are read.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::read::{Piece, Reading};
use super::request::Refusal;

/// Pieces that are read ahead of the guest.
const PIECES_AHEAD: usize = 4;
/// How often a blob that grows is looked at. Its writer may be another process, which tells nobody.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the followers of a blob wait for it to grow before they are told to go elsewhere, beside the time
/// that what has come may take. Its writer is another guest, which may not mean them well.
const STALLED: Duration = Duration::from_secs(3);
/// Bytes of growth for which a second may be waited.
const GROWTH: u64 = 1024 * 1024;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Said {
    Whole(Option<Bytes>),
    Pieces {
        pieces: mpsc::Receiver<io::Result<Bytes>>,
        /// What is still to come, where it is known.
        left: Option<u64>,
    },
}

pub(super) fn plain(status: StatusCode) -> Response<Said> {
    let mut response = Response::new(Said::Whole(None));
    *response.status_mut() = status;
    response
}

pub(super) fn refused(refusal: &Refusal) -> Response<Said> {
    let error = serde_json::json!({"code": refusal.code, "message": refusal.message});
    let document = serde_json::json!({ "errors": [error] }).to_string();
    let mut response = Response::new(Said::Whole(Some(document.into())));
    *response.status_mut() = refusal.status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// That a blob is there.
pub(super) fn has(reading: &Reading) -> Response<Said> {
    let mut response = plain(StatusCode::OK);
    if let Some(length) = reading.length() {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response
}

/// A blob from one of its bytes on.
pub(super) fn blob(mut reading: Reading, from: u64) -> Result<Response<Said>, Refusal> {
    let length = reading.length();
    if length.is_some_and(|length| from > 0 && from >= length) {
        let message = "the blob is not so long";
        return Err(Refusal::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "RANGE_INVALID",
            message,
        ));
    }
    // Of a blob that grows nobody knows the range's end; the guest reads past what it has.
    let from = if length.is_some() { from } else { 0 };
    reading.seek(from);
    let left = length.map(|length| length - from);
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    tokio::spawn(pump(reading, sender));
    let mut response = Response::new(Said::Pieces { pieces, left });
    let headers = response.headers_mut();
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, octets);
    if let Some(length) = length {
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if from > 0 {
            let range = format!("bytes {from}-{}/{length}", length - 1);
            headers.extend(
                HeaderValue::from_str(&range)
                    .ok()
                    .map(|range| (CONTENT_RANGE, range)),
            );
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
    }
    Ok(response)
}

/// Reads for as long as the guest takes.
async fn pump(mut reading: Reading, sender: mpsc::Sender<io::Result<Bytes>>) {
    let (mut waited, mut sent) = (Duration::ZERO, 0);
    loop {
        let next = tokio::task::spawn_blocking(move || {
            let piece = reading.next();
            (reading, piece)
        });
        let Ok((back, piece)) = next.await else {
            return;
        };
        reading = back;
        let piece = match piece {
            Ok(Piece::Bytes(bytes)) => {
                sent += bytes.len() as u64;
                Ok(bytes.into())
            }
            Ok(Piece::End) => return,
            Ok(Piece::Pause) if waited < patience(sent) => {
                let since = Instant::now();
                sleep(LOOK_EVERY).await;
                waited += since.elapsed();
                continue;
            }
            Ok(Piece::Pause) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error),
        };
        let is_end = piece.is_err();
        if sender.send(piece).await.is_err() || is_end {
            return;
        }
    }
}

/// How long may be waited in all for so many bytes.
fn patience(sent: u64) -> Duration {
    STALLED + Duration::from_millis(sent.saturating_mul(1000) / GROWTH)
}

impl Body for Said {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces { pieces, left } => {
                let piece = std::task::ready!(pieces.poll_recv(context));
                if let (Some(Ok(bytes)), Some(left)) = (&piece, left) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Pieces { left, .. } => left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// What a service answers with: no error ends the connection but that of a body.
pub(super) type Answer = Result<Response<Said>, Infallible>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_drips_is_left_as_one_that_stands_still() {
        assert_eq!(patience(0), STALLED);
        // At 30 KiB a second, which never stands still.
        let ends =
            (1..).find(|seconds| patience(seconds * 30 * 1024) < Duration::from_secs(*seconds));
        assert_eq!(ends, Some(4));
        // At 2 MiB a second.
        assert!(
            (1..100_000)
                .all(|seconds| patience(seconds * 2 * GROWTH) > Duration::from_secs(seconds))
        );
    }
}
