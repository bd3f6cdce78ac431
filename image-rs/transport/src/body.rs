//! The body of an answer as it comes, with a deadline between its pieces and a least pace.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{Error, Pace, Phase};

/// A body in pieces. Each piece must come within the deadline; the length has no cap of its own.
pub struct Body {
    incoming: Incoming,
    host: Arc<str>,
    idle: Duration,
    pace: Option<Pace>,
    waiting: Option<Waiting>,
    /// The open span of the pace: what it brought, and how long we waited in it.
    span_bytes: u64,
    span_waited: Duration,
}

/// We wait for a piece: since when, and until when at most.
struct Waiting {
    since: Instant,
    end: Pin<Box<Sleep>>,
}

impl Body {
    pub(crate) fn new(
        incoming: Incoming,
        host: Arc<str>,
        idle: Duration,
        pace: Option<Pace>,
    ) -> Self {
        Self {
            incoming,
            host,
            idle,
            pace,
            waiting: None,
            span_bytes: 0,
            span_waited: Duration::ZERO,
        }
    }

    /// A piece has come; closes the span if its time is over.
    fn came(&mut self, bytes: u64) -> Result<(), Error> {
        if let Some(waiting) = self.waiting.take() {
            self.span_waited += waiting.since.elapsed();
        }
        self.span_bytes += bytes;
        let Some(pace) = self.pace else {
            return Ok(());
        };
        if self.span_waited < pace.within {
            return Ok(());
        }
        // The last piece is welcome however late it is.
        let enough = self.span_bytes >= pace.bytes || self.incoming.is_end_stream();
        (self.span_bytes, self.span_waited) = (0, Duration::ZERO);
        if enough {
            Ok(())
        } else {
            Err(self.late(Phase::Pace { bytes: pace.bytes }, pace.within))
        }
    }

    fn late(&self, phase: Phase, after: Duration) -> Error {
        Error::Timeout {
            host: self.host.to_string(),
            phase,
            after,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            let Some(frame) = frame else {
                self.waiting = None;
                return Poll::Ready(None);
            };
            let frame = frame.map_err(|error| Error::unwrap_from(&self.host, &error));
            let bytes = match &frame {
                Ok(frame) => frame.data_ref().map_or(0, Bytes::len),
                Err(_) => 0,
            };
            return Poll::Ready(Some(self.came(bytes as u64).and(frame)));
        }
        let idle = self.idle;
        let waiting = self.waiting.get_or_insert_with(|| {
            let since = Instant::now();
            let end = Box::pin(sleep_until(since + idle));
            Waiting { since, end }
        });
        if waiting.end.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(self.late(Phase::Body, idle))))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The whole body, if it has at most `cap` bytes. A body that announces more is not read at all.
///
/// # Errors
/// When it is larger, or ends in an error.
pub async fn bytes_capped(mut body: Body, cap: usize) -> Result<Bytes, Error> {
    let too_large = |host: &str| Error::TooLarge {
        host: host.to_owned(),
        cap,
    };
    let announced = body.size_hint().lower();
    if announced > cap as u64 {
        return Err(too_large(&body.host));
    }
    let mut bytes = BytesMut::with_capacity(usize::try_from(announced).unwrap_or(cap));
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            if piece.len() > cap - bytes.len() {
                return Err(too_large(&body.host));
            }
            bytes.extend_from_slice(&piece);
        }
    }
    Ok(bytes.freeze())
}
