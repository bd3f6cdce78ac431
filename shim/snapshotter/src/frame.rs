//! gRPC's frames on HTTP/2: a message behind a flag and its length, the outcome in the trailers.
//!
//! Spec: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>. The crates for gRPC and for snapshotters
//! bring a second HTTP stack or the compiler `protoc`, so that only the frames are somebody else's.

use std::future::poll_fn;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue};

use crate::status::Status;

pub(crate) const CONTENT_TYPE: &str = "application/grpc";
pub(crate) const STATUS: &str = "grpc-status";
pub(crate) const MESSAGE: &str = "grpc-message";
/// A flag and the message's length.
const PREFIX_BYTES: usize = 5;
/// Cap on the text of a refusal, in bytes.
const REASON_BYTES_MAX: usize = 4096;

/// A message behind its prefix.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or_default());
    frame.put_slice(message);
    frame.freeze()
}

/// `None` when a body is not one uncompressed message.
pub(crate) fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(PREFIX_BYTES)?;
    let (flag, length) = prefix.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    (*flag == 0 && usize::try_from(length).ok()? == message.len()).then_some(message)
}

/// Sends as the other end gives leave.
pub(crate) async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
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

/// A body of at most so many bytes.
pub(crate) async fn receive(body: &mut RecvStream, most: usize) -> Result<Bytes, String> {
    let mut received = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(|error| error.to_string())?;
        if received.len() + piece.len() > most {
            return Err(format!("more than {most} bytes"));
        }
        received.extend_from_slice(&piece);
        let released = body.flow_control().release_capacity(piece.len());
        released.map_err(|error| error.to_string())?;
    }
    Ok(received.freeze())
}

/// What follows the last message.
pub(crate) fn trailers(refused: Option<&Status>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let code = refused.map_or(0, |status| status.code as i32);
    trailers.insert(STATUS, HeaderValue::from(code));
    let reason = refused.map(|status| HeaderValue::from_str(&encoded(&status.reason)));
    if let Some(Ok(reason)) = reason {
        trailers.insert(MESSAGE, reason);
    }
    trailers
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Code;

    #[test]
    fn a_frame_is_one_message_or_none() {
        let frame = framed(b"ab");
        assert_eq!(unframed(&frame), Some(&b"ab"[..]));
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
    fn a_refusal_stands_in_the_trailers() {
        let refused = trailers(Some(&Status::new(Code::NotFound, "100 % ü")));
        assert_eq!(refused[STATUS], "5");
        assert_eq!(refused[MESSAGE], "100 %25 %C3%BC");
        let fine = trailers(None);
        assert_eq!(
            (&fine[STATUS], fine.get(MESSAGE)),
            (&HeaderValue::from(0), None)
        );
    }
}
