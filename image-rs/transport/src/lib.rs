//! HTTP and TLS over a stream that the caller dials.
//!
//! In the guest a stream is a relay that the host carries, so nothing on the way is trusted: TLS ends
//! here, against roots that the caller chose by name. There is no environment variable, no system
//! store of certificates and no silent redirect; a proxy carries only what the caller gives it.
//!
//! ```text
//! Client ── pool of connections, one HTTP stack ──► Tls (Roots) ──► [Proxy] ──► Dial (TCP, or the relay)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod body;
mod client;
mod connect;
mod dial;
mod error;
mod proxy;
mod roots;
mod way;

pub use body::{Body, bytes_capped};
pub use client::{Answer, Client, ClientConfig, PlainHttp, Redirected, Timeouts};
pub use dial::{BoxedStream, Dial, Stream, TcpDial};
pub use error::{Error, Phase};
pub use proxy::{Proxies, ProxyError};
pub use roots::{Roots, RootsError};
pub use way::{Pace, Trust, Way};
