//! What a keeper and those who attach to it say to each other, on a socket that only their user can open.
//!
//! ```text
//!   kind: u8 │ length: u32 LE │ that many bytes
//!   client ─► keeper   input, its end, leaving on purpose
//!   keeper ─► client   output, started, exited, failed
//! ```
//!
//! Signals and sizes of terminals are not here: the client tells them to the shim itself, so that they never
//! wait behind input that nobody reads.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most bytes of one frame.
pub(crate) const MAX_FRAME: usize = 64 * 1024;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Bytes for the program's input.
    Input(Vec<u8>),
    /// No more input comes.
    InputEnd,
    /// The client leaves, and the program goes on.
    Detach,
    /// Bytes of its standard output, or of its terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// It runs.
    Started,
    /// It has ended with this code. The last frame.
    Exited(u32),
    /// It never ran, for this reason. The last frame.
    Failed(String),
}

impl Frame {
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Input(bytes) => (0, bytes.clone()),
            Self::InputEnd => (1, Vec::new()),
            Self::Detach => (2, Vec::new()),
            Self::Stdout(bytes) => (3, bytes.clone()),
            Self::Stderr(bytes) => (4, bytes.clone()),
            Self::Started => (5, Vec::new()),
            Self::Exited(code) => (6, code.to_le_bytes().to_vec()),
            Self::Failed(text) => (7, text.as_bytes().to_vec()),
        }
    }

    fn of(kind: u8, bytes: Vec<u8>) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed frame");
        Ok(match (kind, bytes.as_slice()) {
            (0, _) => Self::Input(bytes),
            (1, []) => Self::InputEnd,
            (2, []) => Self::Detach,
            (3, _) => Self::Stdout(bytes),
            (4, _) => Self::Stderr(bytes),
            (5, []) => Self::Started,
            (6, &[a, b, c, d]) => Self::Exited(u32::from_le_bytes([a, b, c, d])),
            (7, _) => Self::Failed(String::from_utf8_lossy(&bytes).into_owned()),
            _ => return Err(malformed()),
        })
    }

    /// Writes it.
    pub(crate) async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let (kind, mut bytes) = self.parts();
        bytes.truncate(MAX_FRAME);
        let length = u32::try_from(bytes.len()).unwrap_or_default();
        let mut frame = Vec::with_capacity(bytes.len() + 5);
        frame.push(kind);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.append(&mut bytes);
        to.write_all(&frame).await
    }

    /// Reads the next one; `None` at the end. It cannot be given up halfway.
    pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let kind = match from.read_u8().await {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = usize::try_from(from.read_u32_le().await?).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            let text = format!("a frame of {length} bytes: at most {MAX_FRAME}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).await?;
        Self::of(kind, bytes).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_the_end_is_one() {
        let frames = [
            Frame::Input(vec![0, 255]),
            Frame::InputEnd,
            Frame::Detach,
            Frame::Stdout(vec![1; MAX_FRAME]),
            Frame::Stderr(Vec::new()),
            Frame::Started,
            Frame::Exited(137),
            Frame::Failed("why".into()),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).await.unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut from).await.unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_frame_that_is_none_is_an_error() {
        for bytes in [
            &[9, 0, 0, 0, 0][..],
            &[1, 1, 0, 0, 0, 7],
            &[3, 255, 255, 255, 255],
            &[6, 2, 0, 0, 0, 1, 1],
            &[3, 4, 0, 0, 0, 1],
        ] {
            let mut from = bytes;
            assert!(Frame::read(&mut from).await.is_err(), "{bytes:?}");
        }
    }
}
