//! The broker's state: keys, policies as they are now, and the store.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use evidence::Tee;
use policies::{
    PolicyError,
    appraisal::{self, AppraisalPolicy, ReferenceValues},
    release::{self, ReleasePolicy},
};

use crate::{
    admin::{AdminError, AdminKeys},
    config::Config,
    denial::Denial,
    seal::{KeyFileError, Sealer},
    session::Challenges,
    store::{Store, StoreError},
    token::{TokenError, TokenSigner},
};

/// The id of the release policy; Trustee's.
pub(crate) const RELEASE_POLICY: &str = "resource-policy";
/// The id of the appraisal policy of CPUs; Trustee's.
pub(crate) const APPRAISAL_POLICY: &str = "default_cpu";

/// All that handlers share.
pub struct Broker {
    pub(crate) accepted: BTreeSet<Tee>,
    pub(crate) challenges: Challenges,
    pub(crate) challenge_seconds: u32,
    pub(crate) token_seconds: u32,
    pub(crate) secure_cookie: bool,
    pub(crate) signer: TokenSigner,
    pub(crate) admins: AdminKeys,
    pub(crate) store: Store,
    pub(crate) release: Current<ReleasePolicy>,
    pub(crate) appraisal: Current<AppraisalPolicy>,
    pub(crate) references: Current<std::collections::BTreeMap<String, serde_json::Value>>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("accepted", &self.accepted)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Reads keys and policies, and opens the store.
    ///
    /// # Errors
    /// Names the file or the step that failed.
    pub async fn open(config: &Config) -> Result<Self, OpenError> {
        let sealer = |path: &PathBuf| {
            Sealer::read(path).map_err(|source| OpenError::Key {
                path: path.clone(),
                source,
            })
        };
        let store = Store::open(&config.store.database, sealer(&config.store.key)?).await?;
        let release = store.policy(RELEASE_POLICY).await?;
        let appraisal = store.policy(APPRAISAL_POLICY).await?;
        let references: ReferenceValues = Arc::new(store.reference_values().await?);
        let challenge_key = match &config.attestation.challenge_key {
            Some(path) => sealer(path)?,
            None => Sealer::ephemeral(),
        };
        Ok(Self {
            accepted: config.attestation.accept.clone(),
            challenges: Challenges::new(challenge_key, config.challenge_lifetime()),
            challenge_seconds: config.attestation.challenge_seconds,
            token_seconds: config.token.lifetime_seconds,
            secure_cookie: config.tls.is_some(),
            signer: TokenSigner::read(
                &config.token.signing_key,
                &config.token.issuer,
                config.token_lifetime(),
            )?,
            admins: AdminKeys::read(&config.admin.public_keys, &config.admin.roles)?,
            store,
            release: Current::new(ReleasePolicy::from_rego(
                release.as_deref().unwrap_or(release::DEFAULT),
            )?),
            appraisal: Current::new(AppraisalPolicy::from_rego(
                appraisal.as_deref().unwrap_or(appraisal::DEFAULT),
            )?),
            references: Current(RwLock::new(references)),
        })
    }

    /// Keeps a refusal for the owner and gives its ticket. Where it cannot be kept, the refusal
    /// stands and only its explanation is lost.
    pub(crate) async fn deny(&self, denial: Denial) -> String {
        if let Err(error) = self.store.record(&denial).await {
            tracing::error!(ticket = denial.ticket, %error, "a denial could not be kept");
        }
        tracing::info!(
            ticket = denial.ticket,
            step = denial.step,
            subject = denial.subject,
            "denied"
        );
        denial.ticket
    }
}

/// A value that an administrator may replace while requests read it.
pub(crate) struct Current<T>(RwLock<Arc<T>>);

impl<T> Current<T> {
    fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    pub(crate) fn load(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn replace(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

/// The broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A key file.
    #[error("key {path}: {source}", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyFileError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token's key.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The administrators' keys.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// A stored policy that no longer compiles.
    #[error("a stored policy: {0}")]
    Policy(#[from] PolicyError),
}
