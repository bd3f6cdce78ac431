//! The agent's ends of a container's stdio: pipes, or the master of a pseudo-terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::net::UnixListener;

use crate::polled::Polled;

/// How long the terminal may take to arrive after its process was made.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(10);

/// One end of a pipe, or a terminal.
#[derive(Debug)]
pub struct Stream {
    descriptor: Polled,
}

impl Stream {
    /// Takes a descriptor that can be polled.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2) and epoll(7).
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self {
            descriptor: Polled::new(descriptor, Interest::READABLE | Interest::WRITABLE)?,
        })
    }

    /// Waits for some bytes, at most `max`; none means the end.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub async fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; max];
        let read = self.read_into(&mut buffer).await?;
        buffer.truncate(read);
        Ok(buffer)
    }

    /// Waits for some bytes, as many as fit; none means the end. Cancel-safe.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub async fn read_into(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.descriptor
            .async_io(Interest::READABLE, |fd| {
                match rustix::io::read(fd, &mut *buffer) {
                    // A terminal whose last user has gone says so with EIO.
                    Err(rustix::io::Errno::IO) => Ok(0),
                    other => other.map_err(io::Error::from),
                }
            })
            .await
    }

    /// Writes everything.
    ///
    /// # Errors
    ///
    /// Those of write(2), such as a pipe that nobody reads.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = self
                .descriptor
                .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, data)?))
                .await?;
            data = data.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.get_ref().as_fd()
    }
}

/// The three pipes of a process without a terminal.
#[derive(Debug)]
pub struct Pipes {
    /// The agent's end of stdin.
    pub stdin: Stream,
    /// The agent's end of stdout.
    pub stdout: Stream,
    /// The agent's end of stderr.
    pub stderr: Stream,
}

/// The process's ends.
#[derive(Debug)]
pub struct ProcessEnds {
    /// Read by the process.
    pub stdin: OwnedFd,
    /// Written by the process.
    pub stdout: OwnedFd,
    /// Written by the process.
    pub stderr: OwnedFd,
}

/// Makes the pipes. None survives an exec unless it becomes a child's stdio.
///
/// # Errors
///
/// Those of pipe2(2).
pub fn pipes() -> io::Result<(Pipes, ProcessEnds)> {
    let (stdin_end, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout, stdout_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let ours = Pipes {
        stdin: Stream::new(stdin)?,
        stdout: Stream::new(stdout)?,
        stderr: Stream::new(stderr)?,
    };
    Ok((
        ours,
        ProcessEnds {
            stdin: stdin_end,
            stdout: stdout_end,
            stderr: stderr_end,
        },
    ))
}

/// The socket through which the runtime hands over a terminal's master (runc's console socket).
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at a path, which is removed at the end.
    ///
    /// # Errors
    ///
    /// Those of bind(2).
    pub fn listen(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal that the runtime has sent.
    ///
    /// # Errors
    ///
    /// Nothing came in time, or it was no descriptor.
    pub async fn receive(self) -> io::Result<Stream> {
        let (stream, _) = tokio::time::timeout(CONSOLE_TIMEOUT, self.listener.accept()).await??;
        stream.readable().await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Stream::new(receive_descriptor(&stream)?)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // The terminal's name comes along as data.
    let mut name = [0; 4096];
    let mut parts = [io::IoSliceMut::new(&mut name)];
    recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::Error::other("the console socket carried no descriptor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_one_end_writes_the_other_reads_until_the_end() {
        let (ours, ends) = pipes().unwrap();
        let ProcessEnds { stdin, stdout, .. } = ends;
        let process = (Stream::new(stdin).unwrap(), Stream::new(stdout).unwrap());
        let long = vec![b'x'; 300_000];
        let (written, read) = tokio::join!(ours.stdin.write_all(&long), async {
            let mut all = 0;
            while all < 300_000 {
                let part = process.0.read(32 * 1024).await.unwrap();
                assert!(part.len() <= 32 * 1024);
                all += part.len();
            }
            all
        });
        written.unwrap();
        assert_eq!(read, 300_000);
        process.1.write_all(b"last").await.unwrap();
        drop(process);
        assert_eq!(ours.stdout.read(100).await.unwrap(), b"last");
        assert!(ours.stdout.read(100).await.unwrap().is_empty());
        assert!(ours.stdin.write_all(b"nobody").await.is_err());
    }
}
