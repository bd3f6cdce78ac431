//! What counts for as long as it is there: connections, which also tell their end, and requests.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// How many each caller has, and how many there may be: one that hoards them leaves some to others.
#[derive(Debug)]
pub(super) struct Counts {
    all: usize,
    of_one: usize,
    taken: Mutex<HashMap<String, usize>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Place {
    counts: Arc<Counts>,
    caller: String,
}

impl Counts {
    /// So many in all, and of one caller.
    pub(super) fn new(all: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            of_one,
            taken: Mutex::default(),
        })
    }

    /// A place for one more; none where there are too many.
    pub(super) fn take(self: &Arc<Self>, caller: &str) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(caller).copied().unwrap_or_default();
        if all >= self.all || own >= self.of_one {
            return None;
        }
        taken.insert(caller.to_owned(), own + 1);
        Some(Place {
            counts: Arc::clone(self),
            caller: caller.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &self.counts.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.caller);
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
    fn one_caller_leaves_places_to_others() {
        let counts = Counts::new(4, 3);
        let mut places: Vec<_> = (0..3).map(|_| counts.take("a").unwrap()).collect();
        assert!(counts.take("a").is_none());
        let other = counts.take("b").unwrap();
        assert!(counts.take("c").is_none());
        drop(other);
        places.pop();
        assert!(counts.take("a").is_some());
        drop(places);
        assert!(counts.taken.lock().unwrap().is_empty());
    }
}
