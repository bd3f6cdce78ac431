//! What [`crate::signature`] asks of a registry: manifests that may not be there, referrers, and places beside it.

use async_trait::async_trait;
use bytes::Bytes;

use super::{Beside, Registry, RegistryError};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::signature::SignatureStore;

/// The signatures in the repository of one image.
#[expect(missing_debug_implementations, reason = "holds credentials")]
pub struct RepositorySignatures<'a> {
    registry: &'a Registry,
    image: &'a Reference,
}

impl Registry {
    /// The signatures that stand beside `image`.
    #[must_use]
    pub fn signatures<'a>(&'a self, image: &'a Reference) -> RepositorySignatures<'a> {
        RepositorySignatures {
            registry: self,
            image,
        }
    }
}

#[async_trait]
impl SignatureStore for RepositorySignatures<'_> {
    async fn manifest(&self, name: &str) -> Result<Option<Bytes>, RegistryError> {
        let image = self.image.named(name);
        let image = image.map_err(|error| RegistryError::Url {
            what: format!("manifest {name:?} beside {}", self.image),
            reason: error.to_string(),
        })?;
        match self.registry.manifest(&image).await {
            Ok(raw) => Ok(Some(raw.bytes)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn blob(&self, digest: &Digest, cap: usize) -> Result<Bytes, RegistryError> {
        self.registry.small_blob(self.image, digest, cap).await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Bytes>, RegistryError> {
        let which = Beside::Referrers(digest);
        self.registry.beside(self.image, which).await
    }

    async fn simple_signatures(&self, digest: &Digest) -> Result<Option<Bytes>, RegistryError> {
        let which = Beside::SimpleSignatures(digest);
        self.registry.beside(self.image, which).await
    }

    async fn aside(&self, url: &str, cap: usize) -> Result<Option<Bytes>, RegistryError> {
        match url.strip_prefix("file://") {
            Some(path) => file(path, url, cap).await,
            None => self.registry.aside(url, cap).await,
        }
    }
}

/// Whether the registry itself, which is asked last, says that there is none.
fn is_absent(error: &RegistryError) -> bool {
    match error {
        RegistryError::NotFound { .. } => true,
        RegistryError::Nowhere { tried, .. } => {
            tried.last().is_some_and(|last| is_absent(&last.error))
        }
        _ => false,
    }
}

async fn file(path: &str, url: &str, cap: usize) -> Result<Option<Bytes>, RegistryError> {
    use tokio::io::AsyncReadExt;
    let bad = |error: std::io::Error| RegistryError::Url {
        what: url.to_owned(),
        reason: error.to_string(),
    };
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(error)),
    };
    let mut bytes = Vec::new();
    file.take(cap as u64 + 1)
        .read_to_end(&mut bytes)
        .await
        .map_err(bad)?;
    if bytes.len() > cap {
        return Err(RegistryError::TooLarge {
            what: url.to_owned(),
            cap: cap as u64,
        });
    }
    Ok(Some(bytes.into()))
}
