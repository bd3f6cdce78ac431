//! The pod: its containers, its shared parts, its end.
//!
//! Every method that a request reaches takes it as [`Allowed`]: there is no other way in.

mod bundle;
mod create;
mod making;
mod processes;
mod remove;
mod root;
mod volume;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use agent_api::content::{PutContentRequest, PutContentResponse};
use agent_api::{ErrorCode, GuestError, Phase, agent};
use tokio::sync::{mpsc, watch};

use crate::container::Container;
use crate::content::{Place, Slots};
use crate::crypt::Crypt;
use crate::disk::Disks;
use crate::fault::{OrFail, unimplemented};
use crate::gate::Allowed;
use crate::host::Events;
use crate::huge::Pages;
use crate::image::Images;
use crate::module::Ability;
use crate::path::{self, check_id};
use crate::pulls::Pulls;
use crate::reaper::Reaper;
use crate::runtime::{self, Runtime};
use crate::storage::Storages;
use crate::users::Namespaces;
use crate::{guest, sealed};
use making::Making;

/// Containers of one pod.
const MAX_CONTAINERS: usize = 256;
/// Kills that wait to be told.
const MAX_OOM_EVENTS: usize = 64;

/// The pod.
#[derive(Debug)]
pub struct Sandbox {
    runtime: Runtime,
    storages: Storages,
    content: Arc<Slots>,
    disks: Disks,
    crypt: Arc<Crypt>,
    pages: Pages,
    containers: Mutex<HashMap<String, Slot>>,
    /// Set by `CreateSandbox`, once.
    created: OnceLock<String>,
    /// The PID namespace that containers share, once one has asked for it.
    pid_namespace: Mutex<Option<String>>,
    oom_sender: mpsc::Sender<String>,
    oom_events: tokio::sync::Mutex<mpsc::Receiver<String>>,
    images: Images,
    users: Namespaces,
    events: Events,
    destroyed: watch::Sender<bool>,
}

/// An id that is taken.
#[derive(Clone, Debug)]
enum Slot {
    Making(Making),
    Made(Arc<Container>),
}

impl Sandbox {
    /// A pod without containers.
    #[must_use]
    pub fn new(reaper: Arc<Reaper>, images: Images, events: Events) -> Self {
        let (oom_sender, oom_events) = mpsc::channel(MAX_OOM_EVENTS);
        Self {
            runtime: Runtime::new(reaper),
            storages: Storages::new(true),
            content: Arc::default(),
            disks: Disks::new(true, Ability::default(), Ability::default()),
            crypt: Arc::default(),
            pages: Pages::new(true),
            containers: Mutex::default(),
            created: OnceLock::new(),
            pid_namespace: Mutex::default(),
            oom_sender,
            oom_events: tokio::sync::Mutex::new(oom_events),
            images,
            users: Namespaces::default(),
            events,
            destroyed: watch::Sender::new(false),
        }
    }

    /// The same with the disks that the host may add, what encrypts them, and huge pages; without, it has nothing of
    /// these.
    #[must_use]
    pub fn with_hardware(self, disks: Disks, crypt: Crypt, pages: Pages) -> Self {
        Self {
            storages: Storages::new(pages.is_none()),
            disks,
            crypt: Arc::new(crypt),
            pages,
            ..self
        }
    }

    /// Waits until the pod was destroyed.
    pub async fn destroyed(&self) {
        let _ = self
            .destroyed
            .subscribe()
            .wait_for(|destroyed| *destroyed)
            .await;
    }

    /// Sets up what the pod's containers share.
    ///
    /// # Errors
    ///
    /// It was called before, or a part cannot be set up.
    pub async fn create(
        &self,
        request: &Allowed<agent::CreateSandboxRequest>,
    ) -> Result<(), GuestError> {
        let phase = "sandbox";
        check_id(phase, "sandbox_id", &request.sandbox_id)?;
        if !request.guest_hook_path.is_empty() {
            return Err(unimplemented(
                phase,
                "guest_hook_path: there are no hooks in the guest",
            ));
        }
        if !request.kernel_modules.is_empty() {
            let message = "kernel_modules: the image lists the modules that it loads";
            return Err(unimplemented(phase, message));
        }
        self.created.set(request.sandbox_id.clone()).map_err(|_| {
            GuestError::new(
                ErrorCode::AlreadyExists,
                phase,
                "the sandbox has been created",
            )
        })?;
        runtime::prepare().or_internal(phase, path::STATE)?;
        for directory in [path::SHARED, path::SANDBOX, path::IMAGE] {
            fs::create_dir_all(directory).or_internal(phase, directory)?;
        }
        if !request.hostname.is_empty() {
            guest::set_hostname(&request.hostname)?;
        }
        guest::write_resolv_conf(&request.dns)?;
        for storage in &request.storages {
            self.storages.attach(storage).await?;
        }
        Ok(())
    }

    /// Its images, and the services that they are opened with.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The annotations of a container.
    ///
    /// # Errors
    ///
    /// There is no such container.
    pub fn annotations(&self, id: &str) -> Result<BTreeMap<String, String>, GuestError> {
        Ok(self.container(id)?.annotations().clone())
    }

    /// Puts the host's small files in their place, with what is sealed opened.
    ///
    /// # Errors
    ///
    /// A sealed file does not open, or [`Slots::put`].
    pub async fn put_content(
        &self,
        mut request: Allowed<PutContentRequest>,
        place: &Place,
    ) -> Result<PutContentResponse, GuestError> {
        let hub = self.images.hub();
        let loans = sealed::open_files(hub, request.files_mut()).await?;
        let (answer, lending) = self.content.put(&request, place, loans);
        sealed::wipe(request.files_mut());
        lending.keep(&self.content, hub);
        answer
    }

    /// The pulls that are on their way.
    #[must_use]
    pub fn pulls(&self) -> &Pulls {
        self.images.pulls()
    }

    /// Checks that there is a sandbox.
    ///
    /// # Errors
    ///
    /// It has not been created.
    pub fn check_created(&self, phase: &'static str) -> Result<(), GuestError> {
        if self.created.get().is_some() {
            return Ok(());
        }
        let message = "there is no sandbox: call CreateSandbox first";
        Err(GuestError::new(
            ErrorCode::FailedPrecondition,
            phase,
            message,
        ))
    }

    /// The host's small files for the containers.
    #[must_use]
    pub fn content(&self) -> &Slots {
        &self.content
    }

    /// Lets a container's process go.
    ///
    /// # Errors
    ///
    /// There is no such container, or it has been started.
    pub async fn start_container(
        &self,
        request: Allowed<agent::StartContainerRequest>,
    ) -> Result<(), GuestError> {
        let began = Instant::now();
        self.container(&request.container_id)?
            .start(&self.runtime)
            .await?;
        self.tell(Phase::Start, began, &request.container_id);
        // What it took to pull and make it, running it does not. The answer waits for nothing of that.
        tokio::task::spawn_blocking(footprint::give_back);
        Ok(())
    }

    /// Usage of a container's cgroup and of the pod's network.
    ///
    /// # Errors
    ///
    /// There is no such container.
    pub fn stats(
        &self,
        request: &Allowed<agent::StatsContainerRequest>,
    ) -> Result<agent::StatsContainerResponse, GuestError> {
        let container = self.container(&request.container_id)?;
        Ok(agent::StatsContainerResponse {
            cgroup_stats: Some(container.cgroup().stats()).into(),
            network_stats: guest::network_stats(),
            ..Default::default()
        })
    }

    /// Stops every process of a container.
    ///
    /// # Errors
    ///
    /// There is no such container, or the kernel refuses.
    pub async fn pause(
        &self,
        request: Allowed<agent::PauseContainerRequest>,
    ) -> Result<(), GuestError> {
        self.container(&request.container_id)?
            .cgroup()
            .freeze(true)
            .await
    }

    /// Lets every process of a container go on.
    ///
    /// # Errors
    ///
    /// There is no such container, or the kernel refuses.
    pub async fn resume(
        &self,
        request: Allowed<agent::ResumeContainerRequest>,
    ) -> Result<(), GuestError> {
        self.container(&request.container_id)?
            .cgroup()
            .freeze(false)
            .await
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    ///
    /// There is no such container, or the kernel does not take a value.
    pub fn update(
        &self,
        request: &Allowed<agent::UpdateContainerRequest>,
    ) -> Result<(), GuestError> {
        let container = self.container(&request.container_id)?;
        request
            .resources
            .as_ref()
            .map_or(Ok(()), |resources| container.cgroup().update(resources))
    }

    /// Waits until a container runs out of memory; gives its id.
    ///
    /// # Errors
    ///
    /// Never while the pod lives.
    pub async fn oom_event(
        &self,
        _request: Allowed<agent::GetOOMEventRequest>,
    ) -> Result<String, GuestError> {
        let event = self.oom_events.lock().await.recv().await;
        event.ok_or_else(|| GuestError::new(ErrorCode::Cancelled, "oom", "the pod has ended"))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, GuestError> {
        match self.containers().get(id) {
            Some(Slot::Made(container)) => Ok(Arc::clone(container)),
            Some(Slot::Making(_)) | None => {
                let shown: String = id.chars().take(agent_api::limit::MAX_ID).collect();
                let message = format!("there is no container {shown}");
                Err(GuestError::new(ErrorCode::NotFound, "container", message))
            }
        }
    }

    fn tell(&self, phase: Phase, began: Instant, container: &str) {
        self.events.tell(phase, began.elapsed(), Some(container));
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

const STDIO_PORTS: &str = "stdio on ports of the host's choice: connect to the stream port, \
                           or use WriteStdin, ReadStdout and ReadStderr";
