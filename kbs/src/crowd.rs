//! Who is connected, and what each of them does: a full house lets those go who hold a place and ask for
//! nothing, so that whoever comes with a question finds one.
//!
//! A connection costs its entry once; a request costs a few atomic writes.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
    time::timeout,
};

use crate::room::Held;

/// Bytes of a head that need no room: what clients have without a token, and many tokens.
const SMALL_HEAD_BYTES: usize = 16 * 1024;
/// Bytes of one read: what is counted is not far behind what is held.
const READ_BYTES: usize = 16 * 1024;

/// How long a full house that lets nobody go is waited for before it is looked at again.
const FULL: Duration = Duration::from_millis(100);

/// It has asked for nothing yet: no handshake, or no whole head.
const NEW: u8 = 0;
/// Its request has no answer yet.
const ASKING: u8 = 1;
/// Its answer is on the way.
const ANSWERED: u8 = 2;
/// Its answer is sent, and it asks for nothing more yet.
const IDLE: u8 = 3;

/// What a connection does.
#[derive(Default)]
pub(crate) struct Stage {
    now: AtomicU8,
    /// Requests whose heads were whole.
    asked: AtomicU32,
}

impl Stage {
    /// The head of a request is whole.
    pub(crate) fn asks(&self) {
        self.asked.fetch_add(1, Relaxed);
        self.now.store(ASKING, Relaxed);
    }

    /// There is an answer.
    pub(crate) fn answered(&self) {
        self.now.store(ANSWERED, Relaxed);
    }

    /// All that was written is sent.
    fn sent(&self) {
        if self.now.load(Relaxed) == ANSWERED {
            self.now.store(IDLE, Relaxed);
        }
    }
}

/// A connection that says what it does, and whose heads take room.
pub(crate) struct Attended<S> {
    stream: S,
    stage: Arc<Stage>,
    /// Of the room for heads, for as long as it is connected: what it filled once may stay allocated.
    room: Held,
    /// Heads that were whole when it was last read.
    asked: u32,
    /// Bytes since then.
    read: usize,
}

impl<S> Attended<S> {
    pub(crate) fn new(stream: S, stage: Arc<Stage>, room: Held) -> Self {
        Self {
            stream,
            stage,
            room,
            asked: 0,
            read: 0,
        }
    }

    /// Whether there is room for so many bytes more.
    fn fits(&mut self, bytes: usize) -> bool {
        let asked = self.stage.asked.load(Relaxed);
        if asked != self.asked {
            self.asked = asked;
            self.read = 0;
        }
        // Bodies have rooms of their own.
        if self.stage.now.load(Relaxed) == ASKING {
            return true;
        }
        self.read = self.read.saturating_add(bytes);
        let large = self.read.saturating_sub(SMALL_HEAD_BYTES);
        large == 0 || self.room.try_grow(large)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Attended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = into.remaining().min(READ_BYTES);
        let mut part = ReadBuf::new(into.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        into.advance(read);
        if !self.fits(read) {
            tracing::debug!("a connection ends: there is no room for so large a head");
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "there is no room for so large a head",
            )));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Attended<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.stage.sent();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// All who are connected to a port, in the order in which they came.
#[derive(Default)]
pub(crate) struct Crowd(Mutex<BTreeMap<u64, Guest>>);

struct Guest {
    stage: Arc<Stage>,
    end: AbortHandle,
}

impl Crowd {
    /// Lets one in, whose task `spawn` starts; it is there until the task drops its [`Place`].
    pub(crate) fn enter(
        self: &Arc<Self>,
        number: u64,
        spawn: impl FnOnce(Arc<Stage>, Place) -> AbortHandle,
    ) {
        let stage = Arc::new(Stage::default());
        let place = Place {
            crowd: Arc::clone(self),
            number,
        };
        // A task that ends at once waits for this lock.
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = spawn(Arc::clone(&stage), place);
        guests.insert(number, Guest { stage, end });
    }

    /// A place for one more, which another may have to leave for it.
    pub(crate) async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Some(place);
        }
        loop {
            if self.end_one() {
                tracing::debug!("the house is full: who asked for nothing has left");
            }
            let place = Arc::clone(places).acquire_owned();
            if let Ok(place) = timeout(FULL, place).await {
                return place.ok();
            }
        }
    }

    /// Ends the oldest of those who have asked for nothing yet, else of those who ask for nothing
    /// more. False where all are being answered.
    pub(crate) fn end_one(&self) -> bool {
        let mut guests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = |stage| {
            let mut found = guests.iter();
            found.find_map(|(number, guest)| {
                (guest.stage.now.load(Relaxed) == stage).then_some(*number)
            })
        };
        let number = oldest(NEW).or_else(|| oldest(IDLE));
        let ended = number.and_then(|number| guests.remove(&number));
        if let Some(guest) = &ended {
            guest.end.abort();
        }
        ended.is_some()
    }
}

/// One in the crowd, for as long as it is there.
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        guests.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::room::Room;

    #[tokio::test]
    async fn the_oldest_who_asks_for_nothing_goes_and_who_is_answered_stays() {
        let crowd = Arc::new(Crowd::default());
        let mut tasks = tokio::task::JoinSet::new();
        let mut stages = Vec::new();
        for number in 0..4 {
            crowd.enter(number, |stage, place| {
                stages.push(stage);
                tasks.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(place);
                })
            });
        }
        for busy in [0, 2] {
            stages[busy].asks();
        }
        stages[2].answered();
        stages[2].sent();
        let left = || crowd.0.lock().unwrap().keys().copied().collect::<Vec<_>>();
        assert!(crowd.end_one());
        assert_eq!(left(), [0, 2, 3]);
        assert!(crowd.end_one());
        assert_eq!(left(), [0, 2]);
        assert!(crowd.end_one());
        assert_eq!(left(), [0]);
        assert!(!crowd.end_one());
        stages[0].answered();
        assert!(!crowd.end_one(), "its answer is on the way");
        tasks.shutdown().await;
        assert!(left().is_empty());
    }

    #[tokio::test]
    async fn a_full_house_has_a_place_for_who_comes_as_soon_as_one_asks_for_nothing() {
        let (crowd, places) = (Arc::new(Crowd::default()), Arc::new(Semaphore::new(1)));
        let mut tasks = tokio::task::JoinSet::new();
        let held = crowd.place(&places).await;
        let mut busy = None;
        crowd.enter(0, |stage, place| {
            stage.asks();
            busy = Some(stage);
            tasks.spawn(async move {
                std::future::pending::<()>().await;
                drop((held, place));
            })
        });
        let waits = timeout(FULL * 3, crowd.place(&places)).await;
        assert!(waits.is_err(), "who is answered stays");
        let busy = busy.unwrap();
        busy.answered();
        busy.sent();
        assert!(crowd.place(&places).await.is_some());
    }

    #[tokio::test]
    async fn heads_take_room_for_what_is_large_of_them_and_bodies_take_none() {
        let room = Room::new(64 * 1024);
        let (mut client, server) = duplex(256 * 1024);
        let stage = Arc::new(Stage::default());
        let mut served = Attended::new(server, Arc::clone(&stage), Held::new(&room, None));
        let mut bytes = vec![0; 64 * 1024];
        client.write_all(&[b'x'; 200 * 1024]).await.unwrap();
        served.read_exact(&mut bytes[..16 * 1024]).await.unwrap();
        assert!(room.is_empty());
        stage.asks();
        served.read_exact(&mut bytes).await.unwrap();
        assert!(room.is_empty());
        stage.answered();
        served.read_exact(&mut bytes).await.unwrap();
        assert!(!room.is_empty());
        let error = served.read_exact(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        drop(served);
        assert!(room.is_empty());
    }
}
