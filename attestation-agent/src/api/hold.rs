//! A connection that counts for as long as it is open, and tells its end.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Connections at once, and those of one caller: one that hoards them leaves some to others.
const CONNECTIONS: usize = 256;
const OF_ONE: usize = 32;

/// How many connections each caller has.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<HashMap<String, usize>>);

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place {
    counts: Arc<Counts>,
    caller: String,
}

impl Counts {
    /// A place for one more; none where there are too many.
    pub(super) fn take(self: &Arc<Self>, caller: &str) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        let own = counts.entry(caller.to_owned()).or_default();
        if *own >= OF_ONE {
            return None;
        }
        *own += 1;
        Some(Place {
            counts: Arc::clone(self),
            caller: caller.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = counts.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

/// A stream, and who waits for its end.
pub(super) struct Held<S> {
    stream: S,
    _ended: oneshot::Sender<()>,
}

impl<S> Held<S> {
    /// What is returned beside it is done when it was dropped.
    pub(super) fn new(stream: S) -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        let held = Self {
            stream,
            _ended: sender,
        };
        (held, receiver)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_connections_to_others() {
        let counts = Arc::new(Counts::default());
        let mut places: Vec<_> = (0..OF_ONE).map(|_| counts.take("a").unwrap()).collect();
        assert!(counts.take("a").is_none());
        assert!(counts.take("b").is_some());
        places.pop();
        assert!(counts.take("a").is_some());
        drop(places);
        assert!(counts.0.lock().unwrap().is_empty());
    }
}
