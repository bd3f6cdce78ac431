//! The key-provider protocol of ocicrypt: how skopeo and others have a layer's private options wrapped by a program.
//!
//! One JSON document in, one out; over stdin and stdout of a command here. Spec: ocicrypt `docs/keyprovider.md`.
//! Bytes are written as arrays of numbers, which every reader takes, and read as arrays or as base64, because Go
//! writes base64 and Rust peers write arrays.

mod command;
mod server;
mod wire;

pub use command::{Command, CommandError};
pub use server::{KekSource, Provider, ServeError};
pub use wire::{
    DecryptConfig, EncryptConfig, Input, KeyUnwrapParams, KeyUnwrapResults, KeyWrapParams,
    KeyWrapResults, Operation, Output, WireBytes,
};

/// Cap on one document of the protocol, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;
