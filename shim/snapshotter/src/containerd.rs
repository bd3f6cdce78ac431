//! Asks containerd what runs a container, so that an image that is left to guests goes to a runtime that has one.
//!
//! containerd itself does not say it when it asks for a snapshot's mounts. But it asks under a key that names the
//! namespace and the container, and answers questions about that meanwhile.

use std::path::Path;
use std::time::Duration;

use http::Request;
use protobuf::Message;
use tokio::net::UnixStream;

use crate::frame;
use crate::status::{Code, Status};
use crate::wire::containers::{Container, GetRequest, GetResponse};

const METHOD: &str = "containerd.services.containers.v1.Containers/Get";
/// The header of the namespace that is meant.
const NAMESPACE: &str = "containerd-namespace";
/// How long containerd may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Cap on what it says of a container, of which the specification is the most.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// gRPC's code for what is not there.
const NOT_FOUND: &str = "5";

/// A container by the key of its snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    namespace: &'a str,
    id: &'a str,
}

impl<'a> Name<'a> {
    /// Reads `namespace/number/id`, which is how containerd calls a container's snapshot. Another key is nobody's.
    pub(crate) fn of_key(key: &'a str) -> Option<Self> {
        let mut parts = key.splitn(3, '/');
        let (namespace, number, id) = (parts.next()?, parts.next()?, parts.next()?);
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let is_id = !id.is_empty() && !id.contains([' ', '/', ':']);
        (is_number && is_id && !namespace.is_empty()).then_some(Self { namespace, id })
    }
}

/// The container, or none where containerd has not made it so far.
pub(crate) async fn container(socket: &Path, name: &Name<'_>) -> Result<Option<Container>, Status> {
    let failed = |reason: String| {
        Status::new(
            Code::Unavailable,
            format!(
                "ask containerd at {socket:?} about container {:?}: {reason}",
                name.id
            ),
        )
    };
    let asked = tokio::time::timeout(DEADLINE, ask(socket, name)).await;
    let asked = asked.map_err(|_| failed(format!("no answer in {} s", DEADLINE.as_secs())))?;
    let container = asked.map_err(failed)?;
    Ok(container.filter(|container| container.snapshot_key == name.id))
}

async fn ask(socket: &Path, name: &Name<'_>) -> Result<Option<Container>, String> {
    let stream = UnixStream::connect(socket).await.map_err(text)?;
    let handshake = h2::client::Builder::new()
        .initial_window_size(1024 * 1024)
        .handshake(stream);
    let (sender, connection) = handshake.await.map_err(text)?;
    let connection = Abort(tokio::spawn(connection));
    let request = Request::post(format!("http://localhost/{METHOD}"))
        .header("content-type", frame::CONTENT_TYPE)
        .header("te", "trailers")
        .header(NAMESPACE, name.namespace)
        .body(())
        .map_err(text)?;
    let question = GetRequest {
        id: name.id.to_owned(),
        ..Default::default()
    };
    let question = question.write_to_bytes().map_err(text)?;
    let mut sender = sender.ready().await.map_err(text)?;
    let (response, mut body) = sender.send_request(request, false).map_err(text)?;
    frame::send(&mut body, frame::framed(&question), true)
        .await
        .map_err(text)?;
    let (head, mut body) = response.await.map_err(text)?.into_parts();
    // A refusal may come in the headers alone.
    if let Some(refused) = outcome(&head.headers)? {
        return Ok(refused);
    }
    let answer = frame::receive(&mut body, ANSWER_BYTES_MAX).await?;
    let trailers = body.trailers().await.map_err(text)?.unwrap_or_default();
    if let Some(refused) = outcome(&trailers)? {
        return Ok(refused);
    }
    drop(connection);
    let message = frame::unframed(&answer).ok_or("the answer is not one message")?;
    let answer = GetResponse::parse_from_bytes(message).map_err(text)?;
    Ok(answer.container.into_option())
}

/// `Some` where there is no such container, `None` where nothing is refused.
fn outcome(headers: &http::HeaderMap) -> Result<Option<Option<Container>>, String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text(frame::STATUS) {
        None | Some("0") => Ok(None),
        Some(NOT_FOUND) => Ok(Some(None)),
        Some(code) => Err(format!(
            "code {code}: {}",
            text(frame::MESSAGE).unwrap_or_default()
        )),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A task that ends with its owner.
struct Abort(tokio::task::JoinHandle<Result<(), h2::Error>>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_a_container_or_none() {
        let name = Name::of_key("k8s.io/12/0a1b").unwrap();
        assert_eq!((name.namespace, name.id), ("k8s.io", "0a1b"));
        for key in [
            "",
            "a",
            "k8s.io/12/extract-1 sha256:ab",
            "k8s.io/12/sha256:ab",
            "guest/3/sha256:ab",
            "k8s.io/x/a",
            "/1/a",
            "k8s.io//a",
        ] {
            assert_eq!(Name::of_key(key), None, "{key}");
        }
    }
}
