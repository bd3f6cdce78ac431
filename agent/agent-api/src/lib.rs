//! The one host-guest contract: what the shim and the agent say to each other, and nothing else.
//!
//! - Generated from `proto/`: Kata's ttRPC messages and services ([`agent`], [`agent_ttrpc`],
//!   [`health`], [`health_ttrpc`], [`oci`], [`types`], [`csi`]). Messages serialize with `serde`
//!   to the JSON that a policy reads.
//! - Generated too, and Cloister's own: how far a pull is ([`pull`], [`pull_ttrpc`]), and the host's small
//!   files ([`content`], [`content_ttrpc`]).
//! - Written here: ports and caps ([`ports`], [`limit`]), items of metrics ([`metric`]), the host port's lines ([`HostLine`],
//!   [`DialAnswer`]), the stream port's ([`StreamLine`]), phases of a start ([`Ready`], [`Event`]),
//!   the trace that a request is of ([`TraceParent`]) and the closed list of errors ([`ErrorCode`], [`GuestError`]).
//!
//! It has no logic of either side and does no I/O.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod event;
mod host_key;
mod host_line;
mod json;
mod stream_chunk;
mod stream_line;
mod tee_call;
mod trace;

pub mod limit;
pub mod metric;
pub mod ports;

pub use error::{ErrorCode, GuestError, ParseErrorCodeError};
pub use event::{AgentLine, Event, LogLevel, LogLine, Phase, Ready};
pub use generated::{
    agent, agent_ttrpc, content, content_ttrpc, csi, health, health_ttrpc, oci, pull, pull_ttrpc,
    types,
};
pub use host_key::{HOST_KEY_BYTES, HostKey};
pub use host_line::{DialAnswer, HostLine, LineError, Target};
pub use protobuf::well_known_types::empty;
pub use stream_chunk::StreamChunk;
pub use stream_line::{StreamKind, StreamLine};
pub use tee_call::TeeCall;
pub use trace::{SpanId, TRACEPARENT, TraceError, TraceParent};

/// The version of this contract, as `Health.Version` answers it in `grpc_version`.
pub const VERSION: &str = "0.1.0";

/// What the code generator wrote; its style is not ours.
#[allow(warnings, clippy::all, reason = "generated code")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/index.rs"));
}
