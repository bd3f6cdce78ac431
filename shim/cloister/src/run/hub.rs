//! Who is attached to a run: each gets all output from then on, in order, and may give input.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, watch};

use super::wire::Frame;

/// Frames that wait for one client. One that reads no more stops the program, as a terminal does.
const MAX_QUEUED: usize = 8;
/// Pieces of input that wait for the program.
const MAX_INPUT: usize = 8;
/// Clients at a time.
const MAX_CLIENTS: usize = 16;

/// All who are attached.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    clients: Mutex<Vec<mpsc::Sender<Frame>>>,
    stage: watch::Sender<Stage>,
    input_ended: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Alone,
    Attached,
    /// One went away without a word, before the program ran.
    Abandoned,
    Started,
}

impl Hub {
    fn clients(&self) -> std::sync::MutexGuard<'_, Vec<mpsc::Sender<Frame>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reach(&self, stage: Stage) {
        let mut stages = self.stage.subscribe();
        // We hold the sender, so there always is one.
        let _ = stages.wait_for(|now| *now == stage).await;
    }

    /// Waits for the first client.
    pub(crate) async fn attached(&self) {
        self.reach(Stage::Attached).await;
    }

    /// Waits until nobody waits for the program any more that does not run yet.
    pub(crate) async fn abandoned(&self) {
        self.reach(Stage::Abandoned).await;
    }

    /// Waits for the end of the input.
    pub(crate) async fn input_ended(&self) {
        self.input_ended.notified().await;
    }

    /// The program runs.
    pub(crate) fn started(&self) {
        let clients = self.clients();
        self.stage.send_replace(Stage::Started);
        for client in clients.iter() {
            // Nothing was said before, so that there is room.
            let _ = client.try_send(Frame::Started);
        }
    }

    /// Tells all, and waits for those who are slow.
    pub(crate) async fn tell(&self, frame: &Frame) {
        let clients = self.clients().clone();
        for client in clients {
            let _ = client.send(frame.clone()).await;
        }
        self.clients().retain(|client| !client.is_closed());
    }

    /// Takes no more, and waits until all have read what they were told.
    pub(crate) async fn all_told(&self) {
        let clients = std::mem::take(&mut *self.clients());
        for client in clients {
            // The writer lets go of its end when it has written a last frame.
            client.closed().await;
        }
    }

    fn join(&self) -> Option<mpsc::Receiver<Frame>> {
        let mut clients = self.clients();
        if clients.len() >= MAX_CLIENTS {
            return None;
        }
        let (sender, frames) = mpsc::channel(MAX_QUEUED);
        if *self.stage.borrow() == Stage::Started {
            let _ = sender.try_send(Frame::Started);
        }
        clients.push(sender);
        drop(clients);
        self.stage.send_if_modified(|stage| {
            let is_first = *stage == Stage::Alone;
            if is_first {
                *stage = Stage::Attached;
            }
            is_first
        });
        Some(frames)
    }

    /// A client's connection broke.
    fn lost(&self) {
        self.stage.send_if_modified(|stage| {
            let waits = *stage == Stage::Attached;
            if waits {
                *stage = Stage::Abandoned;
            }
            waits
        });
    }
}

/// Serves who attaches, until the task is dropped.
pub(crate) async fn serve(listener: UnixListener, hub: Arc<Hub>, input: Option<pipe::Sender>) {
    let (pieces, input_pieces) = mpsc::channel(MAX_INPUT);
    tokio::spawn(feed(input, input_pieces, Arc::clone(&hub)));
    while let Ok((stream, _)) = listener.accept().await {
        let Some(frames) = hub.join() else { continue };
        let (reader, writer) = UnixStream::into_split(stream);
        tokio::spawn(write(writer, frames));
        tokio::spawn(read(reader, Arc::clone(&hub), pieces.clone()));
    }
}

async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        let is_last = matches!(frame, Frame::Exited(_) | Frame::Failed(_));
        if frame.write(&mut writer).await.is_err() || is_last {
            return;
        }
    }
}

async fn read(mut reader: OwnedReadHalf, hub: Arc<Hub>, pieces: mpsc::Sender<Option<Vec<u8>>>) {
    let mut feeds = false;
    loop {
        let piece = match Frame::read(&mut reader).await {
            Ok(Some(Frame::Input(bytes))) => Some(bytes),
            Ok(Some(Frame::InputEnd)) => None,
            Ok(Some(Frame::Detach)) => return,
            _ => break,
        };
        feeds = piece.is_some();
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    if feeds {
        // Nobody goes on where it broke off.
        let _ = pieces.send(None).await;
    }
    hub.lost();
}

/// Copies input to the program, and lets it end where a client says so.
async fn feed(
    mut input: Option<pipe::Sender>,
    mut pieces: mpsc::Receiver<Option<Vec<u8>>>,
    hub: Arc<Hub>,
) {
    while let Some(piece) = pieces.recv().await {
        match (piece, &mut input) {
            // A program that reads no more has broken the pipe, which is its own affair.
            (Some(bytes), Some(fifo)) => drop(write_all(fifo, &bytes).await),
            (Some(_), None) => {}
            (None, _) => {
                input = None;
                hub.input_ended.notify_one();
            }
        }
    }
}

/// Writes all of it to a pipe.
pub(crate) async fn write_all(fifo: &pipe::Sender, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        fifo.writable().await?;
        match fifo.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hub, and who is attached to it by the socket `s` of the directory.
    async fn stage() -> (tempfile::TempDir, Arc<Hub>, UnixStream) {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("s");
        let hub = Arc::new(Hub::default());
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(serve(listener, Arc::clone(&hub), None));
        let one = UnixStream::connect(&path).await.unwrap();
        hub.attached().await;
        (state, hub, one)
    }

    #[tokio::test]
    async fn a_client_that_breaks_off_before_the_start_abandons_it_and_one_that_leaves_does_not() {
        let (state, hub, mut one) = stage().await;
        Frame::Detach.write(&mut one).await.unwrap();
        drop(one);
        let path = state.path().join("s");
        let two = UnixStream::connect(path).await.unwrap();
        drop(two);
        hub.abandoned().await;
    }

    #[tokio::test]
    async fn all_who_are_attached_get_all_and_the_end() {
        let (_state, hub, mut one) = stage().await;
        hub.started();
        let read = tokio::spawn(async move {
            let mut frames = Vec::new();
            while let Some(frame) = Frame::read(&mut one).await.unwrap() {
                frames.push(frame);
            }
            frames
        });
        for number in 0..100 {
            hub.tell(&Frame::Stdout(vec![number])).await;
        }
        hub.tell(&Frame::Exited(3)).await;
        hub.all_told().await;
        let frames = read.await.unwrap();
        assert_eq!(frames.len(), 102);
        assert_eq!(
            (&frames[0], &frames[101]),
            (&Frame::Started, &Frame::Exited(3))
        );
        assert_eq!(frames[100], Frame::Stdout(vec![99]));
    }
}
