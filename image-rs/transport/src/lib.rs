//! HTTP and TLS over a stream that the caller dials.
//!
//! In the guest a stream is a relay that the host carries, so nothing on the way is trusted: TLS ends
//! here, against roots that the caller chose by name. There is no proxy, no environment variable, no
//! system store of certificates and no silent redirect.
//!
//! ```text
//! Client ── pool of connections, one HTTP stack ──► Tls (Roots) ──► Dial (TCP, or the relay)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod body;
mod client;
mod connect;
mod dial;
mod error;
mod roots;

pub use body::{Body, bytes_capped};
pub use client::{Client, ClientConfig, PlainHttp, Timeouts};
pub use dial::{BoxedStream, Dial, Stream, TcpDial};
pub use error::{Error, Phase};
pub use roots::{Roots, RootsError};
