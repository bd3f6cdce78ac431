//! One request of HTTP/1.1 on a stream of its own, which ends with the answer.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// The other end does not speak so, or went away.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The answer's body broke off, or has too many bytes.
    #[error("the answer's body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// Sends a request and waits for the answer, of at most `cap` bytes. Who calls says for how long.
///
/// # Errors
/// There is no answer, or too much of it. A status that is an error is an answer.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
    cap: usize,
) -> Result<(StatusCode, Bytes), ExchangeError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answered = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), cap).collect().await;
        Ok((status, body.map_err(ExchangeError::Body)?.to_bytes()))
    };
    // The connection is driven for as long as the answer is waited for.
    tokio::pin!(answered);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        ended = connection => match ended {
            Ok(()) => answered.await,
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn answered(answer: &'static [u8]) -> Result<(StatusCode, Bytes), ExchangeError> {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let server = async move {
            let mut request = [0; 1024];
            assert!(theirs.read(&mut request).await.unwrap() > 0);
            // Who asked may have heard enough.
            let _ = theirs.write_all(answer).await;
        };
        let request = Request::get("/").body(Full::default()).unwrap();
        tokio::join!(exchange(ours, request, 4), server).0
    }

    #[tokio::test]
    async fn an_answer_is_whole_capped_or_an_error() {
        let whole = answered(b"HTTP/1.1 404 No\r\ncontent-length: 4\r\n\r\nbody").await;
        let (status, body) = whole.unwrap();
        assert_eq!((status, &*body), (StatusCode::NOT_FOUND, &b"body"[..]));
        let until_end = answered(b"HTTP/1.1 200 OK\r\n\r\nend").await;
        assert_eq!(&*until_end.unwrap().1, b"end");
        for broken in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlonger"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbo",
            b"no HTTP\r\n\r\n",
            b"",
        ] {
            assert!(answered(broken).await.is_err());
        }
    }
}
