//! From a plan to a VM whose agent answers, and what is known when that fails.
//!
//! Nothing polls: the agent says `READY` on the host port, and the end of QEMU is watched all the
//! time, so a boot that cannot succeed ends within milliseconds of the reason.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::agent::Storage;
use agent_api::{ErrorCode, GuestError, Target, ports};
use hypervisor::{Disks, HotNics, Hotplug, Incoming, SharedFs, Vm, VmSpec};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tracing::{debug, info, warn};
use ttrpc::r#async::transport::Socket;

use super::fault::{boot_error, exit_error, with_console};
use super::health::Health;
use crate::dev_tee::{self, DevTee};
use crate::guest::Guest;
use crate::mirror::Mirror;
use crate::network::forward::{self, Forwarding};
use crate::network::{self, Attached, Late};
use crate::relay::{HostPort, Notice};
use crate::state_dir::StateDir;
use crate::timeline::Timeline;
use crate::virtiofs::{self, Virtiofsd};
use crate::{cgroup, config};

/// Notices of the guest that wait for the driver; a guest that sends more waits.
const MAX_NOTICES: usize = 64;
/// Connections of the guest to the host port at a time; its containers may make some too.
const MAX_CONNECTIONS: usize = 256;
/// How long QEMU may still run after the agent's end is known. Then its end would have been seen.
const VM_END_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a guest may take to power off after it was asked.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(2);

/// All that a boot needs.
#[derive(Debug)]
pub struct Plan {
    /// The sandbox's id.
    pub id: String,
    /// The guest's host name; empty for the agent's choice.
    pub hostname: String,
    /// The VM, but for its shared directory and its network.
    pub vm: VmSpec,
    /// The configuration of the virtio-fs daemon, where host directories are shared.
    pub shared: Option<config::Vm>,
    /// The pod's network namespace, where it has one.
    pub network: Option<PathBuf>,
    /// Whether the VM waits for interfaces where that namespace has none yet.
    pub late_network: bool,
    /// Whether ports of the pod are forwarded from that namespace's loopback.
    pub forwards: bool,
    /// The lines of the pod's resolv.conf.
    pub dns: Vec<String>,
    /// The sandbox's directory.
    pub directory: StateDir,
    /// The pod's cgroup on the host, where it has one.
    pub cgroup: Option<cgroup::Wanted>,
    /// What the agent mounts for the whole pod.
    pub storages: Vec<Storage>,
    /// What the relay may dial.
    pub relay_allow: Vec<Target>,
    /// The node's mirror, where there is one.
    pub mirror: Option<Mirror>,
    /// How long the agent may not answer; zero is for ever.
    pub health_timeout: Duration,
    /// How long the agent may take to say `READY`.
    pub within: Duration,
    /// What is wanted of the firmware of a simulated TEE.
    pub dev_tee: Option<dev_tee::Wanted>,
}

/// A VM whose agent answers.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) guest: Guest,
    vm: Vm,
    virtiofsd: Option<Virtiofsd>,
    notices: mpsc::Receiver<Notice>,
    timeline: Timeline,
    /// Until when the end of QEMU is waited for, once the agent is known to have ended.
    agent_ended: Option<tokio::time::Instant>,
    network: Arc<Late>,
    health: Health,
    _host_port: AbortOnDrop,
    _forwarding: Option<Forwarding>,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Boots.
pub(super) async fn boot(
    plan: Plan,
    timeline: Timeline,
    gone: watch::Receiver<Option<GuestError>>,
) -> Result<Live, GuestError> {
    let started = Instant::now();
    let mut spec = plan.vm;
    let mut virtiofsd = None;
    if let Some(wanted) = &plan.cgroup {
        cgroup::enter(wanted, &plan.directory)?;
    }
    if let Some(shared) = &plan.shared {
        let daemon = Virtiofsd::start(shared, &plan.directory)
            .await
            .map_err(|error| GuestError::new(ErrorCode::Internal, "vmm", error))?;
        spec.shared_fs = Some(SharedFs {
            socket: daemon.socket().to_owned(),
            tag: virtiofs::TAG.to_owned(),
        });
        virtiofsd = Some(daemon);
    }
    let Attached { nics, told, cards } = match &plan.network {
        Some(path) => network::attach(path, &plan.directory)?,
        None => Attached::default(),
    };
    spec.hot_nics = plan.late_network && plan.network.is_some() && nics.is_empty();
    spec.nics = nics;
    timeline.spawned();
    let launch = plan.dev_tee.as_ref().map(|wanted| launch(wanted, &spec));
    let mut vm = Vm::boot(spec).await.map_err(|error| boot_error(&error))?;
    timeline.note("vmm", started.elapsed(), None);
    if let Err(error) = plan.directory.record("vmm", vm.pid()) {
        warn!(%error, "record of the VMM's pid");
    }
    if plan.cgroup.as_ref().is_some_and(|wanted| wanted.shim_apart) {
        cgroup::leave(&plan.directory);
    }
    let (sender, mut notices) = mpsc::channel(MAX_NOTICES);
    let mut service = HostPort::new(&plan.relay_allow, sender).with_mirror(plan.mirror);
    if let (Some(wanted), Some(mut launch)) = (&plan.dev_tee, launch) {
        vm.measured_command_line()
            .clone_into(&mut launch.command_line);
        info!(command_line = launch.command_line, "measured as a launch");
        let firmware = DevTee::start(&wanted.directory, &launch, &plan.directory).await?;
        service = service.with_tee(firmware);
    }
    let host_port = accept_all(vm.incoming(), service);
    let ready = match timeout(plan.within, ready(&vm, &mut notices)).await {
        Ok(ready) => ready?,
        Err(_) => {
            let text = format!(
                "the agent did not say READY in {:.1} s",
                plan.within.as_secs_f32()
            );
            return Err(with_console(
                GuestError::new(ErrorCode::AgentUnreachable, "agent", text),
                &vm,
            ));
        }
    };
    timeline.note_ready(&ready);
    let guest = connect(&vm, gone).await?;
    let opened = async {
        guest
            .create_sandbox(&plan.id, &plan.hostname, plan.dns, plan.storages)
            .await?;
        network::tell(&guest, told.clone()).await
    };
    tokio::select! {
        answer = opened => answer?,
        exit = vm.wait() => return Err(exit_error(&exit, &vm)),
    }
    let health = Health::watch(guest.clone(), vm.pulse(), plan.health_timeout);
    let network = Late::new(plan.network.clone(), plan.directory.clone(), told, cards);
    let forwarding = match &plan.network {
        Some(path) if plan.forwards => forward(path, &vm),
        _ => None,
    };
    debug!(
        milliseconds = started.elapsed().as_millis(),
        "the agent answers"
    );
    Ok(Live {
        guest,
        vm,
        virtiofsd,
        notices,
        timeline,
        agent_ended: None,
        _host_port: host_port,
        network: Arc::new(network),
        health,
        _forwarding: forwarding,
    })
}

/// What a TEE would have measured of a VM, but the command line, which is known when it runs.
fn launch(wanted: &dev_tee::Wanted, spec: &VmSpec) -> dev_tee::Launch {
    dev_tee::Launch {
        tee: wanted.tee,
        kernel: spec.kernel.clone(),
        initrd: spec.initrd.clone(),
        firmware: spec.firmware.clone(),
        command_line: String::new(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        init_data: wanted.init_data.clone(),
    }
}

/// Forwards ports of the pod; without, it lives on.
fn forward(path: &Path, vm: &Vm) -> Option<Forwarding> {
    let served = forward::open(path)?.serve(&vm.connector());
    served
        .inspect_err(|error| warn!(%error, "ports of the pod cannot be forwarded"))
        .ok()
}

/// Serves the host port for as long as the VM runs.
fn accept_all(incoming: Option<Incoming>, service: HostPort) -> AbortOnDrop {
    AbortOnDrop(tokio::spawn(async move {
        let Some(mut incoming) = incoming else { return };
        // Connections end with this task.
        let mut served = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = incoming.accept() => match accepted {
                    Some(Ok(_)) if served.len() >= MAX_CONNECTIONS => {
                        debug!("the guest has too many connections");
                    }
                    Some(Ok(stream)) => { served.spawn(service.clone().serve(stream)); }
                    Some(Err(error)) => warn!(%error, "connection of the guest"),
                    None => break,
                },
                Some(_) = served.join_next() => {}
            }
        }
    }))
}

async fn ready(
    vm: &Vm,
    notices: &mut mpsc::Receiver<Notice>,
) -> Result<agent_api::Ready, GuestError> {
    loop {
        tokio::select! {
            biased;
            notice = notices.recv() => match notice {
                Some(Notice::Ready(ready)) => return Ok(ready),
                Some(Notice::Failed(error)) => return Err(error),
                Some(Notice::Event(_) | Notice::Ended) => {}
                None => return Err(exit_error(&vm.wait().await, vm)),
            },
            exit = vm.wait() => return Err(exit_error(&exit, vm)),
        }
    }
}

async fn connect(vm: &Vm, gone: watch::Receiver<Option<GuestError>>) -> Result<Guest, GuestError> {
    let stream = tokio::select! {
        stream = vm.connect(ports::AGENT) => stream,
        exit = vm.wait() => return Err(exit_error(&exit, vm)),
    };
    let stream = stream.map_err(|error| {
        let text = format!("connect to the agent's port {}: {error}", ports::AGENT);
        with_console(
            GuestError::new(ErrorCode::AgentUnreachable, "agent", text),
            vm,
        )
    })?;
    let client = ttrpc::r#async::Client::new(Socket::new(stream));
    Ok(Guest::new(client, gone).with_ports(vm.connector()))
}

impl Live {
    pub(super) fn hotplug(&self) -> Option<Hotplug> {
        self.vm.hotplug().cloned()
    }

    pub(super) fn disks(&self) -> Option<Disks> {
        self.vm.disks().cloned()
    }

    pub(super) fn network(&self) -> (Arc<Late>, Option<HotNics>) {
        (Arc::clone(&self.network), self.vm.hot_nics().cloned())
    }

    pub(super) fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// Waits for the end of the guest and returns its cause. Can be dropped and called again.
    pub(super) async fn gone(&mut self) -> GuestError {
        loop {
            let deadline = self.agent_ended;
            let overdue = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let unshared = async {
                match &mut self.virtiofsd {
                    Some(daemon) => daemon.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = self.vm.wait() => return exit_error(&exit, &self.vm),
                () = unshared => return self.share_lost().await,
                error = self.health.stuck() => return with_console(error, &self.vm),
                () = overdue => {
                    let error = GuestError::new(ErrorCode::AgentUnreachable, "agent", "the agent ended");
                    return with_console(error, &self.vm);
                }
                notice = self.notices.recv(), if deadline.is_none() => match notice {
                    Some(Notice::Event(event)) => self.timeline.note_event(&event),
                    Some(Notice::Failed(error)) => return error,
                    Some(Notice::Ready(_)) => warn!("the guest said READY again"),
                    Some(Notice::Ended) | None => {
                        self.agent_ended = Some(tokio::time::Instant::now() + VM_END_TIMEOUT);
                    }
                },
            }
        }
    }

    /// The daemon ends with the VM; where it ends alone, the guest has lost its files.
    async fn share_lost(&self) -> GuestError {
        match timeout(VM_END_TIMEOUT, self.vm.wait()).await {
            Ok(exit) => exit_error(&exit, &self.vm),
            Err(_) => GuestError::new(ErrorCode::Internal, "vmm", "virtiofsd ended by itself"),
        }
    }

    /// Ends the guest: politely, then not.
    pub(super) async fn end(self) {
        let has_disks = match self.vm.disks() {
            Some(disks) => disks.has_any().await,
            None => false,
        };
        if let Err(error) = self.guest.destroy_sandbox(has_disks).await {
            debug!(%error, "the guest does not end by itself");
            self.vm.kill().await;
        } else {
            self.vm.shutdown(POWER_OFF_TIMEOUT).await;
        }
        self.discard().await;
    }

    /// Lets go of everything at once.
    pub(super) async fn discard(self) {
        self.vm.kill().await;
        if let Some(daemon) = self.virtiofsd {
            daemon.stop().await;
        }
    }
}
