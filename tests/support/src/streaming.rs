//! The streams of `Exec`, `Attach` and `PortForward`: channels in one WebSocket (RFC 6455), as the streaming
//! server of a container runtime speaks it to Kubernetes' clients under `v4.channel.k8s.io`. The first byte of
//! a message is its channel.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::node::Node;

/// The channels of a process.
pub mod channel {
    /// To its standard input.
    pub const STDIN: u8 = 0;
    /// Of its standard output.
    pub const STDOUT: u8 = 1;
    /// Of its standard error.
    pub const STDERR: u8 = 2;
    /// How it ended, as JSON.
    pub const STATUS: u8 = 3;
    /// To its terminal: the new size, as JSON.
    pub const RESIZE: u8 = 4;
}

const PROTOCOL: &str = "v4.channel.k8s.io";
const LIMIT: Duration = Duration::from_secs(60);
/// The longest head and message that are read; tests send little.
const MAX_HEAD: usize = 16 * 1024;
const MAX_MESSAGE: u64 = 16 * 1024 * 1024;
/// Kinds of frames.
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// An open WebSocket.
#[derive(Debug)]
pub struct Channels {
    stream: TcpStream,
}

impl Channels {
    /// Opens what the runtime has a URL for, from the node's network.
    ///
    /// # Errors
    /// When the server does not answer with a WebSocket.
    pub fn open(node: &Node, url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context("an http URL")?;
        let (host, path) = rest.split_once('/').context("a URL with a path")?;
        let mut stream = node.connect(host)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // The key only shows that the server knows the protocol.
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(head.len() < MAX_HEAD, "a head without end");
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101"), "no WebSocket: {head}");
        Ok(Self { stream })
    }

    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let mut frame = vec![FINAL | BINARY];
        let length = bytes.len() + 1;
        if length < 126 {
            frame.push(MASKED | u8::try_from(length)?);
        } else {
            frame.push(MASKED | 126);
            frame.extend(u16::try_from(length)?.to_be_bytes());
        }
        // A mask of zeroes leaves the bytes as they are.
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(bytes);
        Ok(self.stream.write_all(&frame)?)
    }

    /// The next bytes of any channel; none at the end.
    ///
    /// # Errors
    /// When nothing comes in time.
    pub fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let mut head = [0; 2];
            if self.stream.read(&mut head[..1])? == 0 {
                return Ok(None);
            }
            self.stream.read_exact(&mut head[1..])?;
            let length = match head[1] {
                126 => u64::from(u16::from_be_bytes(self.bytes()?)),
                127 => u64::from_be_bytes(self.bytes()?),
                short if short < 126 => u64::from(short),
                _ => bail!("a server does not mask"),
            };
            ensure!(length <= MAX_MESSAGE, "a message of {length} bytes");
            let mut message = vec![0; usize::try_from(length)?];
            self.stream.read_exact(&mut message)?;
            match head[0] & 0x0f {
                CLOSE => return Ok(None),
                PING => {}
                _ => {
                    if let Some((channel, bytes)) = message.split_first() {
                        return Ok(Some((*channel, bytes.to_vec())));
                    }
                }
            }
        }
    }

    /// Reads one channel until it has said `text`, and answers all that it said.
    ///
    /// # Errors
    /// When the streams end before.
    pub fn until(&mut self, channel: u8, text: &str) -> Result<String> {
        let mut said = String::new();
        while !said.contains(text) {
            let Some((from, bytes)) = self.receive()? else {
                bail!("the streams ended after {said:?}");
            };
            if from == channel {
                said.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        Ok(said)
    }

    /// Reads one channel to the end.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn rest(&mut self, channel: u8) -> Result<String> {
        let mut said = String::new();
        while let Some((from, bytes)) = self.receive()? {
            if from == channel {
                said.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        Ok(said)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
