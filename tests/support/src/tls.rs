//! A certificate for a service on loopback, as its own root.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::State;

/// Files of a certificate and its key, and the PEM text that a client is told to trust.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The certificate's text.
    pub cert_pem: String,
}

/// Makes one for `127.0.0.1` and `localhost`; files are called `<name>.crt` and `<name>.key`.
///
/// # Errors
/// When it cannot be made or written.
pub fn identity(state: &State, name: &str) -> Result<Identity> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])
        .context("make a certificate")?;
    let cert_pem = made.cert.pem();
    Ok(Identity {
        cert: state.file(&format!("{name}.crt"), &cert_pem)?,
        key: state.file(&format!("{name}.key"), made.signing_key.serialize_pem())?,
        cert_pem,
    })
}
