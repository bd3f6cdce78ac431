//! The server's certificate, which is read again when its files change.
//!
//! New handshakes see the new certificate, and connections that are open stay as they are. Files that
//! do not go together, as for the moment between two writes, change nothing: the old certificate
//! stays, and they are read once more when they change again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use crate::{broker::Broker, config::Tls, current::Current, file, session::seconds};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of a chain, or of a key.
const FILE_BYTES: usize = 256 * 1024;
/// Between two warnings of an end that is near, in looks: a day.
const REMIND: u32 = 24 * 3600 / 2;
/// How long before its end a certificate is warned of.
pub(crate) const NEAR_END: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the server shows, and the files that it is from.
pub(crate) struct Identity {
    files: Tls,
    now: Current<Shown>,
    seen: Mutex<[Option<Stamp>; 2]>,
}

/// One certificate as a server shows it.
pub(crate) struct Shown {
    pub(crate) acceptor: TlsAcceptor,
    /// The leaf's first and last second, since 1970.
    pub(crate) valid: (i64, i64),
}

/// What tells one content of a file from another. A link that is turned elsewhere changes it too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
    node: u64,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the one that cannot be used.
    pub(crate) fn read(files: &Tls) -> Result<Self, TlsError> {
        let seen = stamps(files);
        Ok(Self {
            now: Current::new(Shown::read(files)?),
            seen: Mutex::new(seen),
            files: files.clone(),
        })
    }

    /// What new handshakes get.
    pub(crate) fn shown(&self) -> Arc<Shown> {
        self.now.load()
    }

    /// Reads the files again if they changed, and says whether they are in use now.
    fn reload(&self) -> Result<bool, TlsError> {
        let found = stamps(&self.files);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == found {
                return Ok(false);
            }
            *seen = found;
        }
        self.now.replace(Shown::read(&self.files)?);
        Ok(true)
    }

    /// Looks for changes until it is dropped.
    pub(crate) async fn watch(self: Arc<Self>, broker: Arc<Broker>) {
        for round in 0_u32.. {
            broker.metrics.certificate_end.set(self.shown().valid.1);
            if round.is_multiple_of(REMIND) {
                self.remind();
            }
            tokio::time::sleep(LOOK).await;
            let files = Arc::clone(&self);
            let Some(reloaded) =
                file::aside("the certificate and its key", move || files.reload()).await
            else {
                continue;
            };
            match reloaded {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!("the new certificate is in use");
                    self.remind();
                }
                Err(error) => {
                    tracing::error!(%error, "the certificate changed and cannot be used: the old one stays");
                }
            }
        }
    }

    fn remind(&self) {
        let (_, end) = self.shown().valid;
        let left = end.saturating_sub_unsigned(seconds(SystemTime::now()));
        if left < i64::try_from(NEAR_END.as_secs()).unwrap_or(i64::MAX) {
            tracing::warn!(days = left / (24 * 3600), "the certificate ends soon");
        }
    }
}

impl Shown {
    /// Reads a chain and its key, which must belong together.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub(crate) fn read(files: &Tls) -> Result<Self, TlsError> {
        let broken = |path: &PathBuf, detail: &str| TlsError {
            path: path.clone(),
            detail: detail.to_owned(),
        };
        let read = |path: &PathBuf| {
            file::read_regular(path, FILE_BYTES).map_err(|error| broken(path, &error.to_string()))
        };
        let chain = CertificateDer::pem_slice_iter(&read(&files.certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| broken(&files.certificate, &error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|error| broken(&files.key, &error.to_string()))?;
        let valid = chain
            .first()
            .and_then(|leaf| validity(leaf))
            .ok_or_else(|| broken(&files.certificate, "has no certificate"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| broken(&files.certificate, &error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            valid,
        })
    }
}

fn validity(certificate: &[u8]) -> Option<(i64, i64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = parsed.validity();
    Some((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

fn stamps(files: &Tls) -> [Option<Stamp>; 2] {
    [&files.certificate, &files.key].map(|path| stamp(path).ok())
}

fn stamp(path: &PathBuf) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok(Stamp {
        modified: metadata.modified()?,
        bytes: metadata.len(),
        node: metadata.ino(),
    })
}

/// A certificate that cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("TLS: {path}: {detail}", path = path.display())]
pub struct TlsError {
    path: PathBuf,
    detail: String,
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(files: &Tls) -> String {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key);
        fs::write(&files.certificate, certificate.unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        key.serialize_pem()
    }

    #[test]
    fn new_files_are_taken_and_broken_ones_leave_the_old_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let files = Tls {
            certificate: dir.path().join("server.pem"),
            key: dir.path().join("server.key"),
        };
        write(&files);
        let identity = Identity::read(&files).unwrap();
        let first = identity.shown();
        assert_eq!(identity.reload(), Ok(false));
        let key = write(&files);
        assert_eq!(identity.reload(), Ok(true));
        let second = identity.shown();
        assert!(!Arc::ptr_eq(&first, &second));
        // The key of another certificate, then no key at all.
        let other = KeyPair::generate().unwrap();
        for text in [other.serialize_pem(), "nothing".to_owned()] {
            fs::write(&files.key, text).unwrap();
            assert!(identity.reload().is_err());
            assert_eq!(identity.reload(), Ok(false), "it is told once");
            assert!(Arc::ptr_eq(&second, &identity.shown()));
        }
        fs::write(&files.key, key).unwrap();
        assert_eq!(identity.reload(), Ok(true));
        // A pipe, which has no end, and too much.
        let third = identity.shown();
        fs::remove_file(&files.certificate).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(&files.certificate)
            .status();
        assert!(made.unwrap().success());
        assert!(identity.reload().is_err());
        fs::remove_file(&files.certificate).unwrap();
        fs::write(&files.certificate, vec![b' '; FILE_BYTES + 1]).unwrap();
        assert!(identity.reload().is_err());
        assert!(Arc::ptr_eq(&third, &identity.shown()));
    }
}
