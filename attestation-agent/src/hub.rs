//! The pod's trust services in one place: what the agent itself, and through [`crate::api`] its workloads, ask for.
//!
//! ```text
//! sealed secret ──► signature, terms ──┐
//! kbs:/// URI ─────────────────────────┼──► Broker: one attestation, one token, many resources
//! annotation of a layer ───────────────┘
//! caller's nonce ──► Attester
//! ```
//!
//! It decides nothing about callers; whoever calls it has asked the owner's policy.

use std::sync::Arc;
use std::time::Duration;

use evidence::Tee;
use evidence::init_data::InitDataDigest;
use evidence::init_data::content::SealedSecrets;
use kbs_protocol::{ResourceError, ResourceUri, Secret};
use ocicrypt::Key;
use ocicrypt::packet::{Packet, PacketError};
use serde_json::Value;

use crate::attester::REPORT_DATA_BYTES;
use crate::sealed::{Content, Payload, SealedError, Signed, VerifyingKey};
use crate::{AttestError, Attester, Broker, BrokerError};

/// The trust services of one pod.
pub struct Hub {
    attester: Option<Arc<dyn Attester>>,
    broker: Option<Arc<Broker>>,
    sealed: SealedSecrets,
    init_data: Option<InitDataDigest>,
}

/// A secret that was sealed.
#[expect(missing_debug_implementations, reason = "holds a secret")]
pub struct Unsealed {
    /// In the clear.
    pub secret: Secret,
    /// How long it may be used before the broker has to be asked again.
    pub lease: Option<Duration>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    /// The services of a pod that proves itself by `attester` to `broker`, where it has them. `init_data` is the
    /// digest that the launch bound.
    #[must_use]
    pub fn new(
        attester: Option<Arc<dyn Attester>>,
        broker: Option<Arc<Broker>>,
        sealed: SealedSecrets,
        init_data: Option<InitDataDigest>,
    ) -> Self {
        Self {
            attester,
            broker,
            sealed,
            init_data,
        }
    }

    /// The kind that the pod proves itself by.
    #[must_use]
    pub fn tee(&self) -> Option<Tee> {
        self.attester.as_ref().map(|attester| attester.kind())
    }

    /// Whether there is a broker to ask.
    #[must_use]
    pub fn has_broker(&self) -> bool {
        self.broker.is_some()
    }

    /// Keeps the broker's token fresh for as long as it is used. To be spawned once; without a broker it is done.
    pub fn keep_fresh(&self) -> impl Future<Output = ()> + Send + use<> {
        let kept = self.broker.as_ref().map(Broker::keep_fresh);
        async move {
            if let Some(kept) = kept {
                kept.await;
            }
        }
    }

    /// A resource of the broker.
    ///
    /// # Errors
    /// There is no broker, or it does not give it.
    pub async fn resource(&self, uri: &ResourceUri) -> Result<Secret, HubError> {
        Ok(self.broker()?.resource(uri).await?)
    }

    /// The broker's token for this pod. It opens nothing without the pod's key, which is given to nobody.
    ///
    /// # Errors
    /// There is no broker, or it does not believe the evidence.
    pub async fn token(&self) -> Result<String, HubError> {
        Ok(self.broker()?.token().await?)
    }

    /// Evidence over a caller's data, as the kind's JSON.
    ///
    /// # Errors
    /// There are more data than a report holds, or the TEE gives no report.
    pub async fn evidence(&self, runtime_data: Vec<u8>) -> Result<Value, HubError> {
        if runtime_data.len() > REPORT_DATA_BYTES {
            return Err(AttestError::ReportData(runtime_data.len()).into());
        }
        let attester = Arc::clone(self.attester.as_ref().ok_or(HubError::NoTee)?);
        let tee = attester.kind();
        // Firmware takes its time, and the guest has other work.
        let report = tokio::task::spawn_blocking(move || attester.report(&runtime_data)).await;
        let report = report.map_err(|error| AttestError::Report {
            tee,
            cause: error.to_string(),
        })?;
        Ok(report?)
    }

    /// Reads a sealed secret, and verifies who sealed it as init-data says. The secret itself is not fetched.
    ///
    /// # Errors
    /// It is malformed, not supported, or not signed by a key of the owner's.
    pub async fn examine(&self, text: &str) -> Result<Payload, HubError> {
        let signed = Signed::parse(text)?;
        if self.sealed.skip_verification {
            return Ok(signed.unverified()?);
        }
        let kid = signed.kid()?;
        let key = self.verifying_key(&kid).await?;
        Ok(signed.verified(&kid, &key)?)
    }

    /// The resource that [`Hub::examine`] fetches from the broker to verify a sealed secret; none where init-data names
    /// the keys, or wants none.
    ///
    /// # Errors
    /// The secret is malformed, or init-data names other keys.
    pub fn key_of(&self, text: &str) -> Result<Option<ResourceUri>, HubError> {
        let signed = Signed::parse(text)?;
        match self.sealed.skip_verification {
            true => Ok(None),
            false => self.key_at_broker(&signed.kid()?),
        }
    }

    /// Opens what was examined, for the environment variable or file `name`; none where a program asks for it.
    ///
    /// # Errors
    /// A term of the owner's does not hold, or the broker does not give what it takes.
    pub async fn open(&self, payload: Payload, name: Option<&str>) -> Result<Unsealed, HubError> {
        payload.terms.check(name, self.init_data.as_ref())?;
        let secret = match &payload.content {
            Content::Vault(uri) => self.resource(uri).await?,
            Content::Envelope(envelope) => envelope.open(&self.resource(envelope.kek()).await?)?,
        };
        Ok(Unsealed {
            secret,
            lease: payload.terms.lease,
        })
    }

    /// [`Hub::examine`], then [`Hub::open`].
    ///
    /// # Errors
    /// Those of both.
    pub async fn unseal(&self, text: &str, name: Option<&str>) -> Result<Unsealed, HubError> {
        self.open(self.examine(text).await?, name).await
    }

    /// Unwraps the options of an encrypted layer, which were wrapped by a key of the broker.
    ///
    /// # Errors
    /// The broker does not give the key, or it is another one.
    pub async fn unwrap_key(&self, packet: &Packet) -> Result<Secret, HubError> {
        let kek = self.resource(&packet.kid().parse()?).await?;
        let options = packet.open(&Key::new(kek.expose().to_vec()))?;
        Ok(Secret::from(options))
    }

    async fn verifying_key(&self, kid: &str) -> Result<VerifyingKey, HubError> {
        let Some(uri) = self.key_at_broker(kid)? else {
            let jwk = self.sealed.verification_keys.get(kid);
            let jwk = jwk.ok_or_else(|| unknown_key(kid))?;
            return Ok(VerifyingKey::from_jwk(kid, jwk.as_bytes())?);
        };
        let key = async {
            let jwk = self.resource(&uri).await?;
            Ok::<_, HubError>(VerifyingKey::from_jwk(kid, jwk.expose())?)
        };
        key.await.map_err(|cause| HubError::VerificationKey {
            cause: Box::new(cause),
        })
    }

    /// Where a key is that init-data does not have. Where it has some, there are no others.
    fn key_at_broker(&self, kid: &str) -> Result<Option<ResourceUri>, HubError> {
        let named = &self.sealed.verification_keys;
        if named.contains_key(kid) {
            return Ok(None);
        }
        let uri = kid.parse().ok().filter(|_| named.is_empty());
        uri.map(Some).ok_or_else(|| unknown_key(kid))
    }

    fn broker(&self) -> Result<&Broker, HubError> {
        self.broker.as_deref().ok_or(HubError::NoBroker)
    }
}

fn unknown_key(kid: &str) -> HubError {
    let kid = kid.chars().take(128).collect();
    SealedError::UnknownKey { kid }.into()
}

/// A service that was not given. None of the texts has a secret, a token or evidence in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HubError {
    /// There is nobody to ask.
    #[error("this guest has no broker: it is a plain VM, or init-data names none")]
    NoBroker,
    /// There is nothing to prove.
    #[error("this guest is in no TEE")]
    NoTee,
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The sealed secret.
    #[error("sealed secret: {0}")]
    Sealed(#[from] SealedError),
    /// The key that verifies sealed secrets.
    #[error("the key that verifies the sealed secret: {cause}")]
    VerificationKey {
        /// Why it did not come.
        cause: Box<HubError>,
    },
    /// The TEE.
    #[error(transparent)]
    Evidence(#[from] AttestError),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] ResourceError),
    /// A layer's wrapped options.
    #[error("annotation: {0}")]
    Packet(Arc<PacketError>),
}

impl From<PacketError> for HubError {
    fn from(error: PacketError) -> Self {
        Self::Packet(Arc::new(error))
    }
}

impl HubError {
    /// What the broker said, where it is the cause.
    #[must_use]
    pub fn broker(&self) -> Option<&BrokerError> {
        match self {
            Self::Broker(error) => Some(error),
            Self::VerificationKey { cause } => cause.broker(),
            _ => None,
        }
    }
}
