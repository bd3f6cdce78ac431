//! Encrypted container layers: the cipher, the wrapped keys and the annotations that carry both.
//!
//! Compatible with the ocicrypt specification (<https://github.com/containers/ocicrypt/tree/main/spec>) and with
//! the annotation packets of Confidential Containers, in both directions. Everything here is pure but for
//! [`keyprovider`], which runs programs and speaks to sockets; nothing here knows what a registry is.
//!
//! ```text
//! layer blob ──[LEK: AES-256-CTR + HMAC-SHA256]──► encrypted blob           (`cipher`)
//!      LEK, nonce, digest of the plain layer  = private options             (`options`)
//!      private options ──[KEK: packet | RSA or EC key: JWE]──► annotation   (`packet`, `jwe`, `annotation`)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod annotation;
pub mod cipher;
pub mod jwe;
pub mod keyprovider;
pub mod media_type;
pub mod options;
pub mod packet;
mod secret;
mod source;
mod unwrap;

pub use secret::{KEY_BYTES, Key, LayerKey, NoEntropy, read_secret};
pub use source::{KeyError, KeySource, Unwrapped};
pub use unwrap::{Error, KEYS_MAX, LayerOptions, unwrap_layers};
