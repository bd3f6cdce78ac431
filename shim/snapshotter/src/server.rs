//! The socket that containerd speaks to: connections, calls, their caps.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::frame;
use crate::service::Service;
use crate::status::{Code, Status};

/// Connections at once; containerd has one.
const CONNECTIONS_MAX: usize = 64;
/// Calls at once on a connection.
const CALLS_MAX: u32 = 256;
/// Cap on a question, in bytes: labels are the most of it.
const QUESTION_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a question may be on its way, and an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the server waits after it could not accept, which is want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the future is dropped, which ends every connection with it.
pub(crate) async fn serve(listener: UnixListener, service: Arc<Service>) -> io::Result<()> {
    let mut connections = tokio::task::JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = Arc::clone(&service);
        connections.spawn(async move {
            let _place = place;
            converse(stream, service).await;
        });
    }
}

async fn converse(stream: UnixStream, service: Arc<Service>) {
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(CALLS_MAX)
        .handshake::<_, Bytes>(stream);
    let Ok(Ok(mut connection)) = tokio::time::timeout(PATIENCE, handshake).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            if let Err(error) = reply(request, respond, &service).await {
                tracing::debug!(%error, "a client went away");
            }
        });
    }
}

async fn reply(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: &Service,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let received = frame::receive(&mut body, QUESTION_BYTES_MAX);
    let answer = match tokio::time::timeout(PATIENCE, received).await {
        Err(_) => Err(Status::invalid("the question does not end")),
        Ok(Err(reason)) => Err(Status::invalid(reason)),
        Ok(Ok(body)) => answer(head.uri.path(), &body, service).await,
    };
    if let Err(refused) = &answer {
        note(head.uri.path(), refused);
    }
    let head = Response::builder()
        .header("content-type", frame::CONTENT_TYPE)
        .body(())
        .unwrap_or_default();
    let mut stream = respond.send_response(head, false)?;
    let (messages, refused) = match answer {
        Ok(messages) => (messages, None),
        Err(refused) => (Vec::new(), Some(refused)),
    };
    for message in messages {
        let sent = frame::send(&mut stream, frame::framed(&message), false);
        if let Ok(sent) = tokio::time::timeout(PATIENCE, sent).await {
            sent?;
        } else {
            stream.send_reset(h2::Reason::CANCEL);
            return Ok(());
        }
    }
    stream.send_trailers(frame::trailers(refused.as_ref()))
}

async fn answer(path: &str, body: &[u8], service: &Service) -> Result<Vec<Vec<u8>>, Status> {
    let question = frame::unframed(body);
    let question = question.ok_or_else(|| Status::invalid("not one uncompressed message"))?;
    service.call(path, question).await
}

/// Questions whether something exists are no news.
fn note(path: &str, refused: &Status) {
    match refused.code {
        Code::NotFound | Code::AlreadyExists => tracing::debug!(path, reason = %refused, "refused"),
        Code::InvalidArgument
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable => tracing::warn!(path, reason = %refused, "refused"),
    }
}
