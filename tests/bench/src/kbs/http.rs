//! The least client that keeps a connection: the guests share a core, and it must not be what is
//! measured.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ANSWER_BYTES: usize = 1024 * 1024;

/// A connection to the broker.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// `name=value` of its cookie.
    pub cookie: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .context("connect to the broker")?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(16 * 1024),
        })
    }

    /// Sends a request and waits for its answer, which has to be a success. `headers` are whole lines.
    ///
    /// # Errors
    /// When the broker refuses or breaks off.
    pub async fn ask(&mut self, request: &str, headers: &str, body: &[u8]) -> Result<Answer> {
        self.buffer.clear();
        write!(
            self.buffer,
            "{request} HTTP/1.1\r\nhost: broker\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        )?;
        self.buffer.extend_from_slice(body);
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        let head = loop {
            self.read_more().await?;
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let text = str::from_utf8(&self.buffer[..head]).context("the head is not text")?;
        let success = text.starts_with("HTTP/1.1 200 ");
        let length: usize = header(text, "content-length")
            .context("the answer has no length")?
            .parse()?;
        let cookie = header(text, "set-cookie")
            .and_then(|line| line.split(';').next())
            .map(str::to_owned);
        ensure!(length <= ANSWER_BYTES, "an answer of {length} bytes");
        while self.buffer.len() < head + length {
            self.read_more().await?;
        }
        let body = self.buffer[head..].to_vec();
        if !success {
            bail!("{request}: {}", String::from_utf8_lossy(&self.buffer));
        }
        Ok(Answer { cookie, body })
    }

    async fn read_more(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the broker broke off");
        Ok(())
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_found_in_either_case() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nset-cookie: a=b; c\r\n\r\n";
        assert_eq!(header(head, "content-length"), Some("12"));
        assert_eq!(header(head, "set-cookie"), Some("a=b; c"));
        assert_eq!(header(head, "etag"), None);
    }
}
