//! Pulls an image in the guest: glue between the owner's settings, the relay, the broker's keys and
//! [`image_rs`], which does the work.
//!
//! ```text
//! image_guest_pull ─► settings (once) ─► attest ║ manifest, keys, layers ─► overlay, process
//! ```
//!
//! Where init-data names a broker, the guest attests beside the pull, and a container does not start
//! in a guest that could not prove itself, also when its image needs no key.
//!
//! Layers stay in the store for the images that come later: see `overlay.rs` and [`image_rs::pull::Shared`].

mod defaults;
pub(crate) mod fault;
pub mod keys;
mod limits;
mod overlay;
mod settings;
mod stack;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use agent_api::{ErrorCode, GuestError, Phase};
use attestation_agent::{Broker, BrokerConfig, EventLog, Hub};
use evidence::Tee;
use evidence::init_data::content::WorkloadApi;
use evidence::init_data::{Content, InitData};
use image_rs::pull::{Layers, Progress, Shared};
use image_rs::{PullConfig, Puller, Reference};
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Mutex, OnceCell, watch};
use transport::Dial;

use crate::fault::OrFail;
use crate::host::Events;
use crate::path;
use crate::proof::Proof;
use crate::pulls::Pulls;
use crate::scratch::ImageStore;
use crate::trace::PullTrace;
use crate::users::Namespace;
pub use defaults::{fill_environment, fill_process, make_volumes};
use keys::BrokerKeys;
use settings::Settings;
pub use stack::STACK;

const PHASE: &str = "pull";
/// Bytes of memory that a pull leaves to the kernel and to what runs already.
const MEMORY_KEPT: u64 = 32 << 20;
/// The storage driver whose source is an image's name (Kata's).
pub const DRIVER: &str = "image_guest_pull";

/// Everything that pulling needs of the guest.
pub struct Images {
    proof: Option<Proof>,
    /// Images that are in the log already: a container that is started again adds nothing.
    recorded: Mutex<BTreeSet<String>>,
    content: Content,
    dial: Arc<dyn Dial>,
    mirror: Option<Arc<dyn Dial>>,
    hub: Arc<Hub>,
    broker: Option<Arc<Broker>>,
    settings: OnceCell<Settings>,
    store: ImageStore,
    /// What the pulls of the pod's containers share.
    shared: OnceLock<Shared>,
    pulls: Pulls,
    events: Events,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("tee", &self.tee())
            .finish_non_exhaustive()
    }
}

/// What the guest was launched as.
#[derive(Debug, Default)]
pub struct Launch {
    /// How it proves itself; a plain VM does not.
    pub proof: Option<Proof>,
    /// The document that the launch bound.
    pub init_data: Option<InitData>,
    /// What the document says.
    pub content: Content,
}

/// A root file system that stands.
#[derive(Debug)]
pub struct Rootfs {
    /// Where.
    pub path: PathBuf,
    /// The image's configuration, verified by the manifest's digest.
    pub config: ImageConfiguration,
    /// What the image shares with others, to be held for as long as the root file system is in use.
    pub layers: Layers,
}

impl Images {
    /// Nothing is dialled yet.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::InitDataInvalid`]: the broker cannot be spoken to as init-data says.
    pub fn new(
        launch: Launch,
        store: ImageStore,
        dial: Arc<dyn Dial>,
        events: Events,
    ) -> Result<Self, GuestError> {
        let broker = match (&launch.content.broker, &launch.proof) {
            (Some(location), Some(proof)) => {
                let config = BrokerConfig::of_init_data(location, proof.attester.kind());
                let broker = Broker::new(
                    &config,
                    Arc::clone(&dial),
                    Arc::clone(&proof.attester),
                    launch.init_data.as_ref(),
                )
                .map_err(|e| GuestError::new(ErrorCode::InitDataInvalid, "init-data", e))?;
                Some(Arc::new(broker.with_event_log(Arc::clone(&proof.log))))
            }
            // A plain VM has nothing to prove, and so no secrets to ask for.
            (Some(_), None) | (None, _) => None,
        };
        let attester = launch.proof.as_ref();
        let attester = attester.map(|proof| Arc::clone(&proof.attester));
        let digest = launch.init_data.as_ref().map(InitData::digest);
        let sealed = launch.content.sealed.clone();
        let hub = Hub::new(attester, broker.clone(), sealed, digest);
        Ok(Self {
            proof: launch.proof,
            recorded: Mutex::default(),
            content: launch.content,
            dial,
            mirror: None,
            hub: Arc::new(hub),
            broker,
            settings: OnceCell::new(),
            store,
            shared: OnceLock::new(),
            pulls: Pulls::default(),
            events,
        })
    }

    /// The same with a mirror of the node, whose dialler looks at no name.
    #[must_use]
    pub fn with_mirror(self, dial: Arc<dyn Dial>) -> Self {
        let mirror = Some(dial);
        Self { mirror, ..self }
    }

    /// The pod's trust services.
    #[must_use]
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// What happens in the guest, where the evidence has it.
    #[must_use]
    pub fn log(&self) -> Option<&Arc<EventLog>> {
        self.proof.as_ref().map(|proof| &proof.log)
    }

    /// Where the pod's containers find them.
    #[must_use]
    pub fn workload_api(&self) -> WorkloadApi {
        self.content.workload_api
    }

    /// Waits until something can be kept where images are.
    ///
    /// # Errors
    /// Why it never can.
    pub async fn ready(&self) -> Result<(), GuestError> {
        self.store.ready().await
    }

    /// The pulls that are on their way.
    #[must_use]
    pub fn pulls(&self) -> &Pulls {
        &self.pulls
    }

    /// Pulls the image of a container, unless `given_up` comes first, and mounts its root file system in the container's
    /// [`place`], its owners mapped as the container's users are; [`leave`] takes it away.
    ///
    /// # Errors
    ///
    /// Why not, with the code and, for a refusal of the broker, its ticket. Nothing is left then.
    pub async fn pull(
        &self,
        container: &str,
        image: &str,
        given_up: impl Future<Output = ()>,
        trace: Option<PullTrace>,
        users: Option<&Namespace>,
    ) -> Result<Rootfs, GuestError> {
        let reference: Reference = image.parse().map_err(|e| {
            GuestError::new(ErrorCode::ReferenceInvalid, PHASE, format!("{image}: {e}"))
        })?;
        // For as long as this pull lasts: who asks later is none of its.
        let _traced = self.broker.as_ref().zip(trace).map(|(broker, trace)| {
            broker.trace(&trace.attest.to_string(), &trace.pull.to_string())
        });
        let (progress, listed) = self.pulls.list(container);
        let both = async {
            let fetched = self.fetch(container, &reference, progress, trace, users);
            let (rootfs, ()) = tokio::try_join!(fetched, self.attest(trace))?;
            Ok(rootfs)
        };
        let outcome = tokio::select! {
            biased;
            () = given_up => {
                let message = format!("the pull of {image} was given up: its container is not wanted any more");
                Err(GuestError::new(ErrorCode::Cancelled, PHASE, message))
            }
            outcome = both => outcome,
        };
        // What was cut short still has threads that write.
        listed.ended().await;
        outcome
    }

    async fn fetch(
        &self,
        container: &str,
        image: &Reference,
        progress: watch::Sender<Progress>,
        trace: Option<PullTrace>,
        users: Option<&Namespace>,
    ) -> Result<Rootfs, GuestError> {
        let began = Instant::now();
        let settings = self.settings.get_or_try_init(|| {
            let (broker, mirror) = (self.broker.as_deref(), self.mirror.as_ref());
            Settings::load(&self.content, self.tee(), broker, &self.dial, mirror)
        });
        let (settings, ()) = tokio::try_join!(settings, self.store.ready())?;
        let place = place(container);
        std::fs::create_dir_all(&place).or_internal(PHASE, place.display())?;
        let place = overlay::Place::new(place);
        let keys = Arc::new(BrokerKeys::new(self.broker.clone()));
        let config = PullConfig {
            lookaside: settings.lookaside.clone(),
            space_setting: self.store.setting().to_owned(),
            ..PullConfig::new(settings.policy.clone())
        };
        let mut config = limits::apply(config, &self.content.image.limits);
        config.limits.memory_kept = MEMORY_KEPT;
        let config = match settings.layers_at_once {
            Some(concurrency) => PullConfig {
                concurrency,
                ..config
            },
            None => config,
        };
        let shared = self
            .shared
            .get_or_init(|| Shared::new(config.concurrency).keeping(path::IMAGE.into()));
        let puller = Puller::new(config, settings.registry.clone(), keys.clone()).sharing(shared);
        let pulled = puller
            .pull_watched(image, &place.tree(), progress)
            .await
            .map_err(|error| keys.failure().unwrap_or_else(|| fault::of_pull(&error)))?;
        tracing::info!(container, digest = %pulled.manifest_digest, "pulled");
        let span = trace.map(|trace| trace.pull.span());
        self.events
            .tell_span(Phase::Pull, began.elapsed(), Some(container), span);
        self.record(image, &pulled.manifest_digest.to_string())
            .await?;
        let (layers, config) = (pulled.layers, pulled.config);
        let path = place.mount(&layers, users)?;
        Ok(Rootfs {
            path,
            config,
            layers,
        })
    }

    /// The kind of this guest's TEE; none in a plain VM.
    #[must_use]
    pub fn tee(&self) -> Option<Tee> {
        self.proof.as_ref().map(|proof| proof.attester.kind())
    }

    /// Measures a policy that comes after the launch, before it decides anything.
    ///
    /// # Errors
    /// It was not measured.
    pub async fn record_policy(&self, rego: &str) -> Result<(), GuestError> {
        match &self.proof {
            Some(proof) => proof.record_policy(Some(rego)).await,
            None => Ok(()),
        }
    }

    /// Does what changes the guest: no token of the guest before is used after it.
    ///
    /// # Errors
    /// Those of the change.
    pub async fn change(
        &self,
        change: impl Future<Output = Result<(), GuestError>>,
    ) -> Result<(), GuestError> {
        match &self.broker {
            Some(broker) => broker.change(change).await,
            None => change.await,
        }
    }

    /// Measures an image before anything of it can run.
    async fn record(&self, image: &Reference, digest: &str) -> Result<(), GuestError> {
        let Some(proof) = &self.proof else {
            return Ok(());
        };
        let mut recorded = self.recorded.lock().await;
        if !recorded.contains(digest) {
            proof.record_image(&image.to_string(), digest).await?;
            recorded.insert(digest.to_owned());
        }
        Ok(())
    }

    async fn attest(&self, trace: Option<PullTrace>) -> Result<(), GuestError> {
        let Some(broker) = &self.broker else {
            return Ok(());
        };
        let before = broker
            .attestation()
            .map_or(0, |attestation| attestation.number);
        let attestation = broker.attest().await.map_err(|e| fault::of_broker(&e))?;
        if attestation.number > before {
            let span = trace.map(|trace| trace.attest.span());
            self.events
                .tell_span(Phase::Attest, attestation.took, None, span);
        }
        Ok(())
    }
}

/// The directory of a container's image.
#[must_use]
pub fn place(container: &str) -> PathBuf {
    Path::new(path::IMAGE).join(container)
}

/// Unmounts what stands in a container's [`place`], which may be removed then.
pub fn leave(place: &Path) {
    overlay::end(place);
}
