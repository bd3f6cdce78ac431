//! The broker's state: its keys, the rules that it decides by, and the store.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kbs_protocol::ErrorKind;

use crate::{
    admin::{AdminError, Admins},
    config::{self, Config},
    file,
    limit::Limiter,
    master::{KeyRing, Source},
    metrics::Metrics,
    record::{Entry, Outcome},
    refusal::Refusal,
    rules::{RuleError, Rules},
    seal::KeyFileError,
    session::Challenges,
    signer::{SignerError, Signers},
    store::{Address, Store, StoreError},
    telemetry::Traces,
    token::{TokenError, TokenSigner},
    verify::{VerifierError, Verifiers},
};

/// For the store to answer who asks whether the broker is ready.
const READY_TIME: Duration = Duration::from_secs(2);

/// All that handlers share.
pub struct Broker {
    pub(crate) verifiers: Verifiers,
    pub(crate) challenges: Challenges,
    pub(crate) challenge_seconds: u32,
    pub(crate) token_seconds: u32,
    pub(crate) secure_cookie: bool,
    pub(crate) signer: TokenSigner,
    pub(crate) admins: Admins,
    pub(crate) store: Store,
    pub(crate) rules: Rules,
    pub(crate) signers: Signers,
    pub(crate) retention: config::Record,
    pub(crate) metrics: Metrics,
    pub(crate) limiter: Limiter,
    pub(crate) traces: Option<Traces>,
    /// It was told to stop.
    leaving: AtomicBool,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

impl Broker {
    /// Reads keys and policies, and opens the store.
    ///
    /// # Errors
    /// Names the file or the step that failed.
    pub async fn open(config: &Config) -> Result<Self, OpenError> {
        let keys = Arc::new(master_keys(&config.store)?);
        let address = store_address(&config.store)?;
        let store = Store::open(&address, keys).await?;
        let challenge_keys = match &config.attestation.challenge_key {
            Some(path) => KeyRing::read(Source::File(path.clone())).map_err(unusable(path))?,
            None => KeyRing::ephemeral(),
        };
        Ok(Self {
            verifiers: Verifiers::open(config)?,
            challenges: Challenges::new(challenge_keys, config.challenge_lifetime()),
            challenge_seconds: config.attestation.challenge_seconds,
            token_seconds: config.token.lifetime_seconds,
            secure_cookie: config.tls.is_some(),
            signer: TokenSigner::read(
                &config.token.signing_key,
                &config.token.issuer,
                config.token_lifetime(),
            )?,
            admins: Admins::read(&config.admin)?,
            signers: Signers::read(&config.reference)?,
            rules: Rules::open(store.clone())
                .await
                .map_err(|error| match error {
                    RuleError::Store(cause) => OpenError::Store(address.told(cause)),
                    other => other.into(),
                })?,
            store,
            retention: config.record.clone(),
            metrics: Metrics::new(),
            limiter: Limiter::new(&config.limits),
            traces: None,
            leaving: AtomicBool::new(false),
        })
    }

    /// Whoever sends guests here shall send them elsewhere from now on.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// What it lacks to judge and to release; empty when it is ready.
    pub(crate) async fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.leaving.load(Ordering::Relaxed) {
            missing.push("it was told to stop");
        }
        let answer = tokio::time::timeout(READY_TIME, self.store.answers()).await;
        if !matches!(answer, Ok(Ok(()))) {
            missing.push("the store does not answer");
        }
        if self.rules.are_stale() {
            missing.push("what changed in the store cannot be read");
        }
        missing
    }

    /// Puts what one answer comes from on the record; what is not on it is not answered.
    pub(crate) async fn keep(&self, entries: Vec<Entry>) -> Result<(), Refusal> {
        entries.iter().for_each(|entry| self.note(entry));
        self.store.record(entries).await.map_err(|error| {
            tracing::error!(%error, "a decision could not be recorded");
            Refusal::new(
                ErrorKind::StorageError,
                "the decision could not be recorded: see the broker's log",
            )
        })
    }

    /// Keeps a refusal for the owner and gives its ticket. Where it cannot be kept, the refusal
    /// stands and only its explanation is lost.
    pub(crate) async fn deny(&self, entry: Entry) -> String {
        let ticket = entry.ticket.clone();
        self.note(&entry);
        if let Err(error) = self.store.record([entry]).await {
            self.store.failed();
            tracing::error!(ticket, %error, "a denial could not be kept");
        }
        ticket
    }

    fn note(&self, entry: &Entry) {
        self.metrics.decided(entry);
        if entry.result == Outcome::Denied {
            tracing::info!(
                ticket = entry.ticket,
                subject = entry.subject,
                about = entry.resource,
                "denied"
            );
        }
    }
}

fn unusable(name: &Path) -> impl FnOnce(KeyFileError) -> OpenError {
    let path = name.to_owned();
    move |source| OpenError::Key { path, source }
}

pub(crate) fn master_keys(config: &config::Store) -> Result<KeyRing, OpenError> {
    let named = PathBuf::from(config.key_env.clone().unwrap_or_default());
    let (source, name) = match &config.key {
        Some(path) => (Source::File(path.clone()), path),
        None => (
            Source::Environment(config.key_env.clone().unwrap_or_default()),
            &named,
        ),
    };
    KeyRing::read(source).map_err(unusable(name))
}

pub(crate) fn store_address(config: &config::Store) -> Result<Address, OpenError> {
    Ok(match (&config.database, &config.url_file) {
        (Some(file), _) => Address::file(file)?,
        (None, Some(file)) => {
            let url = file::read_text(file, file::SMALL)
                .map_err(KeyFileError::Read)
                .map_err(unusable(file))?;
            Address::server(url.trim())?
        }
        (None, None) => return Err(StoreError::Address("there is none".to_owned()).into()),
    })
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
    /// What evidence is verified with.
    #[error(transparent)]
    Verifier(#[from] VerifierError),
    /// The token's key.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The administrators' keys.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The signers of reference values.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// Policies and reference values.
    #[error(transparent)]
    Rule(#[from] RuleError),
}
