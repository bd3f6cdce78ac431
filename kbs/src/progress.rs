//! A connection that ends when its client takes no more of what it is sent.
//!
//! A client that asks and never reads would else keep its place for as long as it likes: what the kernel
//! holds for it is full, and the broker waits. Here it has a time for every few bytes. One that reads
//! slowly stays, and one that reads next to nothing does not.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// How long a client may take for [`STEP_BYTES`] where it does not take them at once.
const PATIENCE: Duration = Duration::from_secs(15);
/// What it has to take in that time.
const STEP_BYTES: usize = 16 * 1024;

/// Bytes of one read. Buffers grow with what a read fills, and a client that sends much at once would
/// have large ones for as long as it is there.
const READ_BYTES: usize = 16 * 1024;

/// A stream with a deadline for the progress of its writes.
pub(crate) struct Progressing<S = TcpStream> {
    stream: S,
    patience: Duration,
    /// Since a write had to wait.
    waiting: Option<Waiting>,
}

struct Waiting {
    end: Pin<Box<Sleep>>,
    /// Bytes that were taken all the same.
    taken: usize,
}

impl<S> Progressing<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            patience: PATIENCE,
            waiting: None,
        }
    }

    /// What becomes of a write: how much it took, or that it waits for too long.
    fn judge(
        &mut self,
        written: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written
            && let Some(waiting) = &mut self.waiting
        {
            waiting.taken = waiting.taken.saturating_add(*bytes);
            if waiting.taken >= STEP_BYTES {
                self.waiting = None;
            }
        }
        if written.is_ready() {
            return written;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            end: Box::pin(sleep(patience)),
            taken: 0,
        });
        ready!(waiting.end.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client takes nothing of what it asked for",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Progressing<S> {
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
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Progressing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Who writes flushes when all of it is written, so nothing waits then.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn impatient<S>(stream: S) -> Progressing<S> {
        Progressing {
            patience: Duration::from_millis(200),
            ..Progressing::new(stream)
        }
    }

    #[tokio::test]
    async fn a_client_that_never_reads_is_not_waited_for() {
        let (ours, _theirs) = duplex(64);
        let error = impatient(ours).write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_reads_next_to_nothing_is_not_waited_for_either() {
        let (ours, mut theirs) = duplex(64);
        let reading = tokio::spawn(async move {
            while theirs.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let error = impatient(ours).write_all(&[0; 1 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        reading.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_reads_gets_all_however_often_it_is_waited_for() {
        const ALL: usize = 1 << 20;
        let (ours, mut theirs) = duplex(64);
        let writing = tokio::spawn(async move {
            let mut ours = impatient(ours);
            ours.write_all(&[7; ALL]).await?;
            ours.flush().await
        });
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(all.len(), ALL);
    }
}
