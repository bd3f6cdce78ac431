//! What a client still sends when its answer is there. A connection that is closed over bytes that
//! nobody read is reset, and the answer is lost with it: so they are read, up to a bound.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::Request,
};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::{Frame, SizeHint};
use tokio::{sync::Semaphore, time::timeout};

/// Bytes that are read for nothing.
const BYTES: usize = 16 * 1024 * 1024;
/// Clients whose bytes are read for nothing at once. Reading at full speed takes buffers, of which a
/// crowd of refused clients shall not have one each; what waits is held by its sender.
pub(super) const READERS: usize = 32;
/// How long one of them has its turn while others wait for theirs.
const TURN: Duration = Duration::from_millis(50);
/// A body that is read without a turn: it takes a buffer that its connection has anyway.
const SMALL_BYTES: usize = 64 * 1024;
/// How long they are waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A body that its handler reads, and that is read on when the handler is done.
#[derive(Clone)]
pub(super) struct Rest(Arc<Mutex<Body>>);

impl Rest {
    /// The request with a body that can be read on; `None` where it has none.
    pub(super) fn of(request: Request) -> (Request, Option<Self>) {
        if request.body().is_end_stream() {
            return (request, None);
        }
        let (parts, body) = request.into_parts();
        let rest = Self(Arc::new(Mutex::new(body)));
        let request = Request::from_parts(parts, Body::new(rest.clone()));
        (request, Some(rest))
    }

    /// Reads what is left of it. Who has sent everything, or has little to send, waits for no turn, and
    /// who is slow has one for a moment.
    pub(super) async fn discard(mut self, readers: &Semaphore) {
        let mut at_once = SMALL_BYTES;
        if self.read(&mut at_once).now_or_never().is_some() && at_once > 0 {
            return;
        }
        let mut left = BYTES;
        let upper = self.size_hint().upper();
        let small = upper.is_some_and(|bytes| bytes <= SMALL_BYTES as u64);
        let discard = async {
            loop {
                let _turn = if small {
                    None
                } else {
                    readers.acquire().await.ok()
                };
                if timeout(TURN, self.read(&mut left)).await.is_ok() {
                    return;
                }
            }
        };
        if timeout(PATIENCE, discard).await.is_err() {
            tracing::debug!("a client sends on after its answer, and slowly");
        }
    }

    /// Reads until its end, or until `left` bytes were read.
    async fn read(&mut self, left: &mut usize) {
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await {
            *left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if *left == 0 {
                return;
            }
        }
    }
}

impl HttpBody for Rest {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt, stream};

    use super::*;

    fn sending(parts: usize, then: bool) -> Rest {
        let sent = stream::iter(vec![Ok::<_, Infallible>("part"); parts]);
        let more = stream::pending().take(usize::from(then));
        let body = Body::from_stream(sent.chain(more));
        Rest::of(Request::new(body)).1.unwrap()
    }

    #[tokio::test]
    async fn who_has_sent_everything_waits_for_nobody_and_others_in_turn() {
        let readers = Semaphore::new(1);
        let held = readers.acquire().await.unwrap();
        sending(0, false).discard(&readers).await;
        sending(3, false).discard(&readers).await;
        let waits = sending(3, true);
        assert!(waits.discard(&readers).now_or_never().is_none());
        drop(held);
        sending(1, true).discard(&readers).await;
    }

    #[tokio::test]
    async fn who_is_slow_keeps_no_turn_from_the_next() {
        let readers = Semaphore::new(1);
        let slow = tokio::time::timeout(PATIENCE / 2, sending(0, true).discard(&readers));
        let next = async {
            tokio::task::yield_now().await;
            drop(readers.acquire().await.unwrap());
        };
        tokio::pin!(slow);
        tokio::select! {
            biased;
            _ = &mut slow => panic!("it kept its turn"),
            () = next => {}
        }
    }
}
