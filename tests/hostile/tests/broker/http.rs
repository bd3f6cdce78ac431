//! The least client that keeps a connection and sends what no proper client would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing that is asked here takes the broker so long; who waits longer was forgotten.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer that make it one too large.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// A request before it has its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) headers: Vec<(&'static str, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// A line's end within a part would begin another request, which is not what is judged here:
    /// those bytes are left out.
    pub(crate) fn on_its_lines(mut self) -> Self {
        let parts = [&mut self.method, &mut self.target].into_iter();
        for part in parts.chain(self.headers.iter_mut().map(|(_, value)| value)) {
            part.retain(|byte| !b"\r\n".contains(byte));
        }
        self
    }

    /// On the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.body.len() + 1024);
        let mut part = |text: &[u8], end: &[u8]| {
            bytes.extend_from_slice(text);
            bytes.extend_from_slice(end);
        };
        part(&self.method, b" ");
        part(&self.target, b" HTTP/1.1\r\nhost: broker\r\n");
        for (name, value) in &self.headers {
            part(name.as_bytes(), b": ");
            part(value, b"\r\n");
        }
        let length = format!("content-length: {}\r\n\r\n", self.body.len());
        bytes.extend_from_slice(length.as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// `name=value` of its cookie.
    pub(crate) fn cookie(&self) -> Option<&str> {
        self.header("set-cookie")?.split(';').next()
    }
}

/// A connection that is opened again when the broker ends it in good order.
pub(crate) struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Connection {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
        }
    }

    /// The answer. A connection that rested may have been ended by the broker, so there is a second
    /// try on a new one; no answer there is a fault.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Answer, String> {
        let bytes = request.bytes();
        let bodyless = request.method == b"HEAD";
        if let Some(stream) = self.stream.take()
            && let Ok(answer) = self.once(stream, &bytes, bodyless)
        {
            return Ok(answer);
        }
        let stream = TcpStream::connect(self.address).map_err(|error| error.to_string())?;
        let quick = stream.set_nodelay(true);
        quick
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .map_err(|error| error.to_string())?;
        self.once(stream, &bytes, bodyless)
            .map_err(|error| format!("no answer: {error}"))
    }

    fn once(
        &mut self,
        mut stream: TcpStream,
        bytes: &[u8],
        bodyless: bool,
    ) -> Result<Answer, String> {
        // A request that is too large is answered before it was read: what counts is the answer.
        let written = stream.write_all(bytes);
        let (mut got, mut part) = (Vec::new(), [0; 16 * 1024]);
        loop {
            if let Some((answer, true)) = parse(&got, bodyless)? {
                let alone = got.len() == answer.head.len() + answer.body.len();
                let closes = answer.header("connection") == Some("close");
                if alone && !closes && written.is_ok() {
                    self.stream = Some(stream);
                }
                return Ok(answer);
            }
            match stream.read(&mut part).map_err(|error| error.to_string())? {
                0 => return Err(format!("broken off after {} bytes", got.len())),
                count => got.extend_from_slice(&part[..count]),
            }
        }
    }
}

/// What there is of an answer, and whether it is all.
fn parse(got: &[u8], bodyless: bool) -> Result<Option<(Answer, bool)>, String> {
    let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let (head, body) = got.split_at(end + 4);
    let head = String::from_utf8(head.to_vec()).map_err(|error| error.to_string())?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| format!("no status: {head}"))?;
    let mut answer = Answer {
        status,
        head,
        body: Vec::new(),
    };
    let length = answer.header("content-length").map_or(Ok(0), str::parse);
    let length: usize = length.map_err(|_| format!("no length: {}", answer.head))?;
    if length > ANSWER_BYTES {
        return Err(format!("an answer of {length} bytes"));
    }
    if answer.header("transfer-encoding").is_some() {
        return Err("an answer in chunks, which this client does not read".to_owned());
    }
    let length = if bodyless { 0 } else { length };
    answer.body = body[..length.min(body.len())].to_vec();
    let whole = answer.body.len() == length;
    Ok(Some((answer, whole)))
}
