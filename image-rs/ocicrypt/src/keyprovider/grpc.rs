//! The key-provider service over gRPC: one unary call on HTTP/2 frames, both ends.
//!
//! A call is a POST to `/keyprovider.KeyProviderService/<method>` with one length-prefixed message each way; the
//! outcome stands in the trailers. Spec: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>. A crate
//! for gRPC would bring a second HTTP stack for this one call, so that only the frames are somebody else's.
//!
//! Whoever can open a TCP port of loopback is anybody on the machine. So a provider behind one wraps, which needs no
//! secret of the asker's, but does not unwrap: for that there is a socket with an owner.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::address::Address;
use super::client::ProviderError;
use super::server::Provider;
use super::wire::{Operation, of_message, to_message};
use super::{DEADLINE, DOCUMENT_BYTES_MAX, SERVICE, UNWRAP, WRAP, method_of};
use crate::secret::SecretBuffer;

const CONTENT_TYPE: &str = "application/grpc";
const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";
/// A flag and the message's length.
const PREFIX_BYTES: usize = 5;
/// Cap on what a call carries: a document, the message around it, the prefix.
const BODY_BYTES_MAX: usize = DOCUMENT_BYTES_MAX + 16;
/// Cap on the text of a refusal, in bytes.
const REASON_BYTES_MAX: usize = 4096;
/// Connections that a server holds at once; skopeo has one for each layer under way.
const CONNECTIONS_MAX: usize = 64;
/// How long a server waits after it could not accept, which is want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// gRPC's codes, as far as they are used here.
mod code {
    pub(super) const OK: i32 = 0;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const UNIMPLEMENTED: i32 = 12;
}

/// Asks a provider.
pub(super) async fn ask(
    address: &Address,
    operation: Operation,
    question: &[u8],
) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
    let connect = |source| ProviderError::Connect {
        at: address.to_string(),
        source,
    };
    match address {
        Address::Tcp(host) => {
            let stream = TcpStream::connect(host).await.map_err(connect)?;
            let authority = host.clone();
            call(stream, &authority, address, operation, question).await
        }
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(connect)?;
            call(stream, "localhost", address, operation, question).await
        }
    }
}

async fn call<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: T,
    authority: &str,
    address: &Address,
    operation: Operation,
    question: &[u8],
) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
    let talk = |reason: String| ProviderError::Talk {
        at: address.to_string(),
        reason,
    };
    let broken = |error: h2::Error| talk(error.to_string());
    let (sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let connection = Abort(tokio::spawn(connection));
    let request = Request::post(format!(
        "http://{authority}/{SERVICE}/{}",
        method_of(operation)
    ))
    .header("content-type", CONTENT_TYPE)
    .header("te", "trailers")
    .body(())
    .map_err(|error| talk(error.to_string()))?;
    let mut sender = sender.ready().await.map_err(broken)?;
    let (response, mut body) = sender.send_request(request, false).map_err(broken)?;
    send(&mut body, framed(question), true)
        .await
        .map_err(broken)?;
    let response = response.await.map_err(broken)?;
    let status = response.status();
    if !status.is_success() {
        return Err(talk(format!(
            "it answers {status}, so it does not speak gRPC"
        )));
    }
    let (head, mut body) = response.into_parts();
    // A refusal may come in the headers alone.
    outcome(&head.headers, address)?;
    let answer = receive(&mut body).await.map_err(&talk)?;
    let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
    if outcome(&trailers, address)?
        .or(outcome(&head.headers, address)?)
        .is_none()
    {
        return Err(talk("the answer has no grpc-status".to_owned()));
    }
    drop(connection);
    let document = unframed(&answer).and_then(of_message);
    document
        .map(|document| Zeroizing::new(document.to_vec()))
        .ok_or_else(|| talk("the answer is not the message of the service".to_owned()))
}

/// A task that ends with its owner.
struct Abort(tokio::task::JoinHandle<Result<(), h2::Error>>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `None` where no outcome stands.
fn outcome(headers: &HeaderMap, address: &Address) -> Result<Option<()>, ProviderError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(status) = text(STATUS) else {
        return Ok(None);
    };
    match status.parse().unwrap_or(code::UNKNOWN) {
        code::OK => Ok(Some(())),
        code => Err(ProviderError::Refused {
            at: address.to_string(),
            reason: decoded(text(MESSAGE).unwrap_or("no reason given")),
            code,
        }),
    }
}

/// Where a server listens. The caller has bound it, and has seen to the rights of a socket in the file system.
#[derive(Debug)]
pub enum Listener {
    /// For everybody on the machine: wraps only.
    Tcp(TcpListener),
    /// For who may open the socket: wraps and unwraps.
    Unix(UnixListener),
}

/// Serves until the future is dropped, which ends every connection with it.
///
/// # Errors
/// Never by what a client does.
pub async fn serve(listener: Listener, provider: Arc<Provider>) -> io::Result<()> {
    let mut connections = tokio::task::JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        while connections.try_join_next().is_some() {}
        let provider = Arc::clone(&provider);
        let accepted = match &listener {
            Listener::Tcp(tcp) => tcp.accept().await.map(|(stream, _)| {
                connections.spawn(async move {
                    let _place = place;
                    converse(stream, provider, false).await;
                });
            }),
            Listener::Unix(unix) => unix.accept().await.map(|(stream, _)| {
                connections.spawn(async move {
                    let _place = place;
                    converse(stream, provider, true).await;
                });
            }),
        };
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// One connection. Its questions are answered one after the other: each takes microseconds.
async fn converse<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    provider: Arc<Provider>,
    may_unwrap: bool,
) {
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(16)
        .handshake::<_, Bytes>(stream);
    let Ok(Ok(mut connection)) = tokio::time::timeout(DEADLINE, handshake).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let provider = Arc::clone(&provider);
        tokio::spawn(async move {
            let answered = reply(request, respond, &provider, may_unwrap);
            // A client that stops in the middle has its own time-out.
            let _ = tokio::time::timeout(DEADLINE, answered).await;
        });
    }
}

async fn reply(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    provider: &Provider,
    may_unwrap: bool,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let operation = operation_of(head.uri.path(), may_unwrap);
    let answer = match operation {
        Err(refusal) => Err(refusal),
        Ok(operation) => answer(&mut body, operation, provider).await,
    };
    let head = Response::builder()
        .header("content-type", CONTENT_TYPE)
        .body(())
        .unwrap_or_default();
    let mut stream = respond.send_response(head, false)?;
    let status = match answer {
        Ok(document) => {
            send(&mut stream, framed(&document), false).await?;
            (code::OK, String::new())
        }
        Err(refusal) => refusal,
    };
    stream.send_trailers(trailers(status))
}

fn operation_of(path: &str, may_unwrap: bool) -> Result<Operation, (i32, String)> {
    let method = path
        .strip_prefix('/')
        .and_then(|path| path.strip_prefix(SERVICE)?.strip_prefix('/'));
    match method {
        Some(WRAP) => Ok(Operation::KeyWrap),
        Some(UNWRAP) if may_unwrap => Ok(Operation::KeyUnwrap),
        Some(UNWRAP) => {
            let reason = "this provider listens on TCP, where everybody on the machine can ask: start it with \
                          --grpc unix:///path to unwrap";
            Err((code::PERMISSION_DENIED, reason.to_owned()))
        }
        _ => Err((code::UNIMPLEMENTED, format!("only {SERVICE} is served"))),
    }
}

async fn answer(
    body: &mut RecvStream,
    operation: Operation,
    provider: &Provider,
) -> Result<Zeroizing<Vec<u8>>, (i32, String)> {
    let invalid = |reason: String| (code::INVALID_ARGUMENT, reason);
    let received = receive(body).await.map_err(invalid)?;
    let question = unframed(&received).and_then(of_message);
    let question = question.ok_or_else(|| invalid("not the message of the service".to_owned()))?;
    let answer = provider.answer_to(Some(operation), question);
    answer.map_err(|error| (code::UNKNOWN, error.to_string()))
}

fn trailers((code, reason): (i32, String)) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from(code));
    if let Ok(reason) = HeaderValue::from_str(&encoded(&reason)) {
        trailers.insert(MESSAGE, reason);
    }
    trailers
}

/// The message of a document behind its prefix, wiped when the last part of it was sent.
fn framed(document: &[u8]) -> Bytes {
    let message = to_message(document);
    let mut frame = Zeroizing::new(Vec::with_capacity(PREFIX_BYTES + message.len()));
    frame.push(0);
    frame.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or_default()
            .to_be_bytes(),
    );
    frame.extend_from_slice(&message);
    Bytes::from_owner(frame)
}

/// `None` when a body is not one uncompressed message.
fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(PREFIX_BYTES)?;
    let (flag, length) = prefix.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    (*flag == 0 && usize::try_from(length).ok()? == message.len()).then_some(message)
}

/// Sends as the other end gives leave.
async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let granted = poll_fn(|context| stream.poll_capacity(context)).await;
        let granted = granted.transpose()?.unwrap_or_default().min(data.len());
        if granted == 0 && stream.capacity() == 0 {
            return Err(h2::Reason::STREAM_CLOSED.into());
        }
        let piece = data.split_to(granted);
        stream.send_data(piece, end && data.is_empty())?;
    }
    Ok(())
}

async fn receive(body: &mut RecvStream) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut received = SecretBuffer::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(|error| error.to_string())?;
        if received.len() + piece.len() > BODY_BYTES_MAX {
            return Err(format!("more than {DOCUMENT_BYTES_MAX} bytes"));
        }
        received.extend(&piece);
        let released = body.flow_control().release_capacity(piece.len());
        released.map_err(|error| error.to_string())?;
    }
    Ok(received.into_inner())
}

/// gRPC's percent-encoding of a reason.
fn encoded(reason: &str) -> String {
    let mut out = String::new();
    for byte in reason.bytes().take(REASON_BYTES_MAX) {
        match byte {
            b'%' => out.push_str("%25"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, escaped) {
            (b'%', Some(escaped)) => {
                out.push(escaped);
                rest = &after[2..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
        if out.len() >= REASON_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_one_message_or_none() {
        let frame = framed(b"{}");
        assert_eq!(unframed(&frame).and_then(of_message), Some(&b"{}"[..]));
        for bad in [
            &frame[..0],
            &frame[..4],
            &frame[..frame.len() - 1],
            &[1, 0, 0, 0, 0],
        ] {
            assert_eq!(unframed(bad), None);
        }
    }

    #[test]
    fn a_reason_survives_the_trailers() {
        for reason in ["no such key", "100 % – ü\n", ""] {
            assert_eq!(decoded(&encoded(reason)), reason);
        }
        assert_eq!(decoded("%zz%4"), "%zz%4");
    }
}
