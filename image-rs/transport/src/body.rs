//! The body of an answer as it comes, with a deadline between its pieces.

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
use tokio::time::{Sleep, sleep};

use crate::{Error, Phase};

/// A body in pieces. Each piece must come within the deadline; the length has no cap of its own.
pub struct Body {
    incoming: Incoming,
    host: Arc<str>,
    idle: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Body {
    pub(crate) fn new(incoming: Incoming, host: Arc<str>, idle: Duration) -> Self {
        Self {
            incoming,
            host,
            idle,
            waiting: None,
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
            self.waiting = None;
            let frame = frame.map(|f| f.map_err(|e| Error::unwrap_from(&self.host, &e)));
            return Poll::Ready(frame);
        }
        let idle = self.idle;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(idle)));
        if waiting.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(Error::Timeout {
            host: self.host.to_string(),
            phase: Phase::Body,
            after: idle,
        })))
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
