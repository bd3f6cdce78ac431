//! The key-provider service over ttRPC, both ends: always a socket in the file system, so that who may open it may
//! have keys unwrapped as well.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, MethodHandler, Server, Service, TtrpcContext};
use ttrpc::proto::{Code, Request, Response};
use zeroize::{Zeroize as _, Zeroizing};

use super::client::ProviderError;
use super::server::Provider;
use super::wire::{Operation, of_message, to_message};
use super::{DEADLINE, DOCUMENT_BYTES_MAX, SERVICE, UNWRAP, WRAP, method_of};

/// Asks a provider.
pub(super) async fn ask(
    path: &Path,
    operation: Operation,
    question: &[u8],
) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
    let at = || format!("unix://{}", path.display());
    let talk = |reason: String| ProviderError::Talk { at: at(), reason };
    let stream = UnixStream::connect(path).await;
    let stream = stream.map_err(|source| ProviderError::Connect { at: at(), source })?;
    let request = Request {
        service: SERVICE.to_owned(),
        method: method_of(operation).to_owned(),
        timeout_nano: i64::try_from(DEADLINE.as_nanos()).unwrap_or(i64::MAX),
        payload: to_message(question).to_vec(),
        ..Request::default()
    };
    let answer = Client::new(Socket::from(stream)).request(request).await;
    let mut answer = answer.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) => ProviderError::Refused {
            at: at(),
            reason: status.message.clone(),
            code: status.code.value(),
        },
        other => talk(other.to_string()),
    })?;
    let payload = Zeroizing::new(std::mem::take(&mut answer.payload));
    let document = of_message(&payload).filter(|document| document.len() <= DOCUMENT_BYTES_MAX);
    document
        .map(|document| Zeroizing::new(document.to_vec()))
        .ok_or_else(|| talk("the answer is not the message of the service".to_owned()))
}

/// Serves until the future is dropped. The caller has bound the socket, and has seen to its rights.
///
/// # Errors
/// When the server cannot be started.
pub async fn serve(listener: UnixListener, provider: Arc<Provider>) -> io::Result<()> {
    let method = |operation| {
        let provider = Arc::clone(&provider);
        Box::new(Method {
            provider,
            operation,
        }) as Box<dyn MethodHandler + Send + Sync>
    };
    let service = Service {
        methods: HashMap::from([
            (WRAP.to_owned(), method(Operation::KeyWrap)),
            (UNWRAP.to_owned(), method(Operation::KeyUnwrap)),
        ]),
        streams: HashMap::new(),
    };
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(HashMap::from([(SERVICE.to_owned(), service)]));
    server.start().await.map_err(io::Error::other)?;
    // The server lives in tasks of its own, which end when it is dropped.
    std::future::pending::<()>().await;
    Ok(())
}

struct Method {
    provider: Arc<Provider>,
    operation: Operation,
}

#[async_trait]
impl MethodHandler for Method {
    async fn handler(&self, _: TtrpcContext, mut request: Request) -> ttrpc::Result<Response> {
        let refusal =
            |code, reason: String| ttrpc::Error::RpcStatus(ttrpc::get_status(code, reason));
        let answer = of_message(&request.payload)
            .ok_or_else(|| {
                let reason = "not the message of the service".to_owned();
                refusal(Code::INVALID_ARGUMENT, reason)
            })
            .and_then(|question| {
                let answer = self.provider.answer_to(Some(self.operation), question);
                answer.map_err(|error| refusal(Code::UNKNOWN, error.to_string()))
            });
        request.payload.zeroize();
        let mut response = Response::new();
        response.set_status(ttrpc::get_status(Code::OK, String::new()));
        response.payload = to_message(&answer?).to_vec();
        Ok(response)
    }
}
