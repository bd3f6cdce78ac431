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

use agent_api::{ErrorCode, GuestError, Phase, oci};
use attestation_agent::{Broker, BrokerConfig, EventLog, Hub};
use evidence::Tee;
use evidence::init_data::content::WorkloadApi;
use evidence::init_data::{Content, InitData};
use image_rs::pull::{Layers, Progress, Shared};
use image_rs::{PullConfig, Puller, Reference};
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Mutex, OnceCell, watch};
use transport::Dial;

use crate::fault::{OrFail, invalid};
use crate::host::Events;
use crate::path;
use crate::proof::Proof;
use crate::pulls::Pulls;
use crate::scratch::ImageStore;
use crate::trace::PullTrace;
use crate::users::{Namespace, Owner};
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

    fn tee(&self) -> Option<Tee> {
        self.proof.as_ref().map(|proof| proof.attester.kind())
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

/// Takes from the image what the request leaves open: all of the process when it names no program,
/// else the user where it has none, what is missing of the environment, and an empty working directory.
///
/// # Errors
///
/// Neither names a program.
pub fn fill_process(
    process: &mut oci::Process,
    config: &ImageConfiguration,
) -> Result<(), GuestError> {
    let empty = oci_spec::image::Config::default();
    let config = config.config().as_ref().unwrap_or(&empty);
    let user = process.User.get_or_default();
    let names_root = user.Username.is_empty() && user.UID == 0 && user.GID == 0;
    if process.User.is_none() || (process.Args.is_empty() && names_root) {
        let user = process.User.mut_or_insert_default();
        user.Username = config.user().clone().unwrap_or_default();
    }
    if process.Args.is_empty() {
        let words = config.entrypoint().iter().chain(config.cmd()).flatten();
        process.Args = words.cloned().collect();
    }
    if process.Args.is_empty() {
        return Err(invalid(
            "create",
            "neither the request nor the image names a program",
        ));
    }
    fill_environment(
        &mut process.Env,
        config.env().as_deref().unwrap_or_default(),
    );
    if process.Cwd.is_empty() {
        process.Cwd = config.working_dir().clone().unwrap_or_default();
    }
    Ok(())
}

/// Makes the directories that the image calls volumes, where its layers have none. What is written there is the
/// container's, as all of its root is; who wants more mounts something on them.
///
/// # Errors
///
/// Names the volume.
pub fn make_volumes(
    root: &Path,
    config: &ImageConfiguration,
    owner: Owner,
) -> Result<(), GuestError> {
    let volumes = config
        .config()
        .as_ref()
        .and_then(|config| config.volumes().as_ref());
    for volume in volumes.into_iter().flatten() {
        let what = format!("volume {} of the image", image_rs::shown(volume));
        path::make_in_root(root, Path::new(volume), owner).or_fail(
            ErrorCode::InvalidArgument,
            "create",
            what,
        )?;
    }
    Ok(())
}

/// Adds to an environment without `PATH` what it has not: it is what somebody asked for by hand, and not
/// one that a container manager made from the image's. That one stays as it is.
pub fn fill_environment(environment: &mut Vec<String>, below: &[String]) {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let asked: Vec<_> = environment.iter().map(|entry| name(entry)).collect();
    if !asked.iter().any(|name| name == "PATH") {
        let missing = below.iter().filter(|entry| !asked.contains(&name(entry)));
        environment.extend(missing.cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_are_made_in_the_root_whatever_links_are_on_their_way() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/real", root.path().join("link")).unwrap();
        let config = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Volumes": {"/data/deep": {}, "/link/in": {}, "/real": {}}},
        }))
        .unwrap();
        make_volumes(root.path(), &config, Owner::default()).unwrap();
        assert!(root.path().join("data/deep").is_dir());
        assert!(root.path().join("real/in").is_dir());
    }

    #[test]
    fn an_environment_without_a_path_is_added_to_the_images() {
        let below = [
            "PATH=/bin".to_owned(),
            "A=image".to_owned(),
            "B=image".to_owned(),
        ];
        let filled = |entries: &[&str]| {
            let mut environment = entries.iter().map(|&entry| entry.to_owned()).collect();
            fill_environment(&mut environment, &below);
            environment
        };
        assert_eq!(filled(&[]), below);
        assert_eq!(filled(&["A=mine"]), ["A=mine", "PATH=/bin", "B=image"]);
        assert_eq!(filled(&["PATH=/x", "A=mine"]), ["PATH=/x", "A=mine"]);
    }

    fn image() -> ImageConfiguration {
        serde_json::from_value(json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": ["/entry"],
                "Cmd": ["arg"],
                "Env": ["A=image"],
                "WorkingDir": "/work",
                "User": "web",
            },
            "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap()
    }

    #[test]
    fn a_request_without_a_program_takes_all_from_the_image() {
        let mut process = oci::Process::new();
        fill_process(&mut process, &image()).unwrap();
        assert_eq!(process.Args, ["/entry", "arg"]);
        assert_eq!(process.Env, ["A=image"]);
        assert_eq!(
            (process.Cwd.as_str(), process.User.Username.as_str()),
            ("/work", "web")
        );
    }

    #[test]
    fn what_the_request_says_stays() {
        let mut process = oci::Process::new();
        process.Args = vec!["mine".into()];
        process.Env = vec!["A=request".into(), "PATH=/bin".into()];
        process.User.mut_or_insert_default();
        fill_process(&mut process, &image()).unwrap();
        assert_eq!(process.Args, ["mine"]);
        assert_eq!(process.Env, ["A=request", "PATH=/bin"]);
        // The user of a request is always meant: zero is root.
        assert!(process.User.Username.is_empty());
        assert_eq!(process.Cwd, "/work");
        process.User.clear();
        fill_process(&mut process, &image()).unwrap();
        assert_eq!(process.User.Username, "web");
    }

    #[test]
    fn a_program_must_come_from_somewhere() {
        let bare = serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap();
        assert!(fill_process(&mut oci::Process::new(), &bare).is_err());
    }
}
