//! The key-provider protocol of ocicrypt: how skopeo and others have a layer's private options wrapped by a program.
//!
//! One JSON document in, one out: over stdin and stdout of a command, or as the one field of a message of gRPC or
//! ttRPC. Spec: ocicrypt `docs/keyprovider.md`; the file that names providers is read by [`Providers`]. Bytes are
//! written as arrays of numbers, which every reader takes, and read as arrays or as base64, because Go writes base64
//! and Rust peers write arrays.
//!
//! ```text
//! Providers ─► Endpoint ─┬─ Command  stdin, stdout        Provider ◄─┬─ the command line
//!   (client)             ├─ gRPC     /keyprovider.Key…     (server)  ├─ serve_grpc
//!                        └─ ttRPC                                    └─ serve_ttrpc
//! ```

mod address;
mod client;
mod command;
mod config;
mod grpc;
mod server;
mod ttrpc;
mod wire;

pub use address::{Address, AddressError};
pub use client::{Endpoint, ProviderError};
pub use command::{Command, CommandError};
pub use config::{ConfigError, Providers, VARIABLE};
pub use grpc::{Listener, serve as serve_grpc};
pub use server::{KekSource, Provider, ServeError};
pub use ttrpc::serve as serve_ttrpc;
pub use wire::{
    DecryptConfig, EncryptConfig, Input, KeyUnwrapParams, KeyUnwrapResults, KeyWrapParams,
    KeyWrapResults, Operation, Output, Parameters, WireBytes, Words,
};

use std::time::Duration;

/// Cap on one document of the protocol, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;
/// What a provider gets for one answer, the start of its program included.
const DEADLINE: Duration = Duration::from_secs(60);
/// The service, in gRPC and in ttRPC.
const SERVICE: &str = "keyprovider.KeyProviderService";
/// Its method for [`Operation::KeyWrap`].
const WRAP: &str = "WrapKey";
/// Its method for [`Operation::KeyUnwrap`].
const UNWRAP: &str = "UnWrapKey";

/// The RPC method that carries an operation.
fn method_of(operation: Operation) -> &'static str {
    match operation {
        Operation::KeyWrap => WRAP,
        Operation::KeyUnwrap => UNWRAP,
    }
}
