//! Who opens the stream to a host and port.

use std::io;

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A stream of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream whose kind only the dialler knows.
pub type BoxedStream = Box<dyn Stream>;

/// Opens streams.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Opens a stream to a host, by name or address (IPv6 without brackets), and a TCP port.
    ///
    /// # Errors
    /// As the way of dialling has them; the text reaches the user. `PermissionDenied` is one that
    /// another attempt cannot cure: the host refuses to carry it.
    async fn dial(&self, host: &str, port: u16) -> io::Result<BoxedStream>;
}

/// Dials with the machine's own network.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDial;

#[async_trait]
impl Dial for TcpDial {
    async fn dial(&self, host: &str, port: u16) -> io::Result<BoxedStream> {
        let stream = TcpStream::connect((host, port)).await?;
        // Requests are small and answered at once; waiting to fill a segment only adds delay.
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
