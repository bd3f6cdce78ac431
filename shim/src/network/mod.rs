//! The pod's network: what the container network interface (CNI) left in the pod's network namespace
//! reaches the guest, and is as it was when the pod is gone.
//!
//! ```text
//!   the pod's network namespace                                     guest
//!   ┌──────────────────────────────────────────────┐
//!   │ eth0: veth, macvlan, ipvlan, vlan            │
//!   │   │▲ ingress qdisc, u32, mirred: every frame │  descriptor
//!   │   ▼│                                         │ ┌──────────► QEMU ─► virtio-net, the same
//!   │ ctap2: a tap, which goes with its descriptor ├─┘                    hardware address
//!   │                                              │
//!   │ net1: macvtap, a tap already                 ├────────────► QEMU ─► virtio-net
//!   └──────────────────────────────────────────────┘
//!   addresses, routes, neighbours, MTU  ── UpdateInterface, UpdateRoutes, AddARPNeighbors ──► agent
//! ```
//!
//! A thread that ends afterwards enters the namespace; the shim itself, QEMU and the host's network stay
//! where they are. A tap is gone with the last who has it open, and that is QEMU. Only the qdisc on CNI's
//! own interface outlives a killed VM: it is on record before it is made, and [`undo`] takes it away.

mod dns;
pub mod forward;
mod late;
mod macvtap;
mod namespace;
mod plan;
mod record;
mod redirect;
mod tap;
mod user;

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use agent_api::{ErrorCode, GuestError};
use hypervisor::Nic;
use netlink::{Change, Link, Socket};
use tracing::{info, warn};

use crate::guest::Guest;
use crate::spec::Spec;
use crate::state_dir::StateDir;

pub use dns::resolv_conf;
pub use late::Late;
pub use user::USER;

pub use plan::{Found, Plan, PlanError, Told, Way, Wire, plan};

use namespace::Namespace;
use record::Record;

const PHASE: &str = "network";

/// Why the pod does not get its network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It wants the host's.
    #[error(
        "the pod is to use the host's network, into which no VM can move: remove hostNetwork (--net-host of ctr), or run it with a runtime that has no VM"
    )]
    Host,
    /// The namespace cannot be entered.
    #[error("network namespace {path:?}: {step}")]
    Namespace {
        /// Where it is.
        path: PathBuf,
        /// What was done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no new one, or no use in it.
    #[error("a new network namespace: {step}")]
    New {
        /// What was done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What is in it cannot be given to a VM.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel refuses a change.
    #[error("interface {interface}: {advice}")]
    Interface {
        /// The interface.
        interface: String,
        /// What to do about it.
        advice: &'static str,
        /// What was asked and what it said.
        #[source]
        source: netlink::Error,
    },
    /// The namespace cannot be read.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
    /// There is no tap device.
    #[error("interface {interface}: {advice}")]
    Tap {
        /// The interface.
        interface: String,
        /// What to do about it.
        advice: &'static str,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Somebody else steers what comes in.
    #[error(
        "interface {interface} has an ingress qdisc that is not Cloister's, and there can be one: `tc qdisc del dev {interface} {kind}` removes it"
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// The qdisc.
        kind: String,
    },
    /// Ports of the pod cannot be reached by its loopback.
    #[error("listen on the pod's loopback")]
    Forward(#[source] io::Error),
    /// The VM has no place for it.
    #[error("interface {interface} came after the VM: {why}")]
    Late {
        /// The interface.
        interface: String,
        /// What to do about it.
        why: &'static str,
    },
    /// QEMU does not take it.
    #[error("interface {interface} came after the VM")]
    Add {
        /// The interface.
        interface: String,
        /// Why not.
        #[source]
        source: hypervisor::HotNicError,
    },
    /// What is needed for cleaning up cannot be written down.
    #[error("record of the pod's network")]
    Record(#[source] io::Error),
}

impl NetworkError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Host | Self::Foreign { .. } | Self::Plan(_) | Self::Late { .. } => {
                ErrorCode::FailedPrecondition
            }
            Self::Namespace { .. } => ErrorCode::InvalidArgument,
            Self::New { .. }
            | Self::Interface { .. }
            | Self::Kernel(_)
            | Self::Tap { .. }
            | Self::Add { .. }
            | Self::Forward(_)
            | Self::Record(_) => ErrorCode::Internal,
        }
    }
}

impl From<NetworkError> for GuestError {
    fn from(error: NetworkError) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        Self::new(error.code(), PHASE, text)
    }
}

/// The namespace that a pod's specification names; none where the pod has no network.
///
/// # Errors
/// [`NetworkError::Host`]: it names none at all, which means the host's.
pub fn wanted(spec: &Spec) -> Result<Option<PathBuf>, NetworkError> {
    let namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    let mut networks = namespaces.filter(|namespace| namespace.kind == "network");
    match networks.next() {
        None => Err(NetworkError::Host),
        // A new one, in which nothing is.
        Some(network) if network.path.is_empty() => Ok(None),
        Some(network) => Ok(Some(PathBuf::from(&network.path))),
    }
}

/// What a VM gets of its pod's network.
#[derive(Debug, Default)]
pub struct Attached {
    /// Its cards.
    pub nics: Vec<Nic>,
    /// What the guest is to make of them.
    pub told: Told,
    /// The numbers of the interfaces in the namespace that they are for.
    pub cards: BTreeSet<u32>,
}

/// Ties the interfaces of a namespace to devices for QEMU. What it made before an error, [`undo`] takes
/// away. It waits for the kernel alone, some milliseconds, and cannot be given up halfway.
///
/// # Errors
/// [`NetworkError`] names the interface.
pub fn attach(path: &Path, directory: &StateDir) -> Result<Attached, NetworkError> {
    if path == Path::new(USER) {
        return Ok(user::attach());
    }
    let namespace = Namespace::open(path)?;
    let directory = directory.clone();
    let record = namespace.record();
    namespace.inside(move || {
        let mut socket = Socket::open()?;
        let found = Found::read(&mut socket)?;
        let plan = plan(&found)?;
        if plan.wires.is_empty() {
            info!("the pod's network namespace has no interface that is up: no network");
            return Ok(Attached::default());
        }
        let cards: BTreeSet<_> = plan.wires.iter().map(|wire| wire.index).collect();
        let record = Record {
            links: cards.iter().copied().collect(),
            ..record
        };
        record.write(&directory)?;
        let wires = plan.wires.iter();
        let nics = wires.map(|wire| nic(&mut socket, wire, &directory));
        Ok(Attached {
            nics: nics.collect::<Result<_, _>>()?,
            told: plan.told,
            cards,
        })
    })
}

/// A card for an interface.
fn nic(socket: &mut Socket, wire: &Wire, directory: &StateDir) -> Result<Nic, NetworkError> {
    let tap = match wire.way {
        Way::Redirect => redirected(socket, wire)?,
        Way::Macvtap => macvtap::open(wire, directory)?,
    };
    Ok(Nic::new(wire.mac.0, tap))
}

/// Starts a program in the namespace at a path, or in a new one.
///
/// # Errors
/// [`NetworkError`]; the host's namespace is none for a pod.
pub fn spawn_in(path: Option<&Path>, mut command: Command) -> Result<Child, NetworkError> {
    let step = "start a program in it";
    match path.map(Path::to_owned) {
        Some(path) => Namespace::open(&path)?.inside(move || {
            let failed = |source| NetworkError::Namespace { path, step, source };
            command.spawn().map_err(failed)
        }),
        None => namespace::inside_new(move || {
            let failed = |source| NetworkError::New { step, source };
            command.spawn().map_err(failed)
        }),
    }
}

/// A tap that has every frame of the wire, and the other way round.
fn redirected(socket: &mut Socket, wire: &Wire) -> Result<std::os::fd::OwnedFd, NetworkError> {
    let interface = || wire.name.clone();
    let name = tap::name(wire.index);
    let device = tap::open(&name).map_err(|source| NetworkError::Tap {
        interface: interface(),
        advice: tap::advice(&source),
        source,
    })?;
    tap::keep_silent(&name);
    let refused = |source| NetworkError::Interface {
        interface: interface(),
        advice: "its tap device",
        source,
    };
    let links = socket.links()?;
    let link = links.iter().find(|link| link.name == name);
    let link: &Link = link.ok_or_else(|| NetworkError::Tap {
        interface: interface(),
        advice: "its tap device vanished",
        source: io::ErrorKind::NotFound.into(),
    })?;
    let change = Change {
        mtu: Some(wire.mtu),
        up: Some(true),
        ..Change::default()
    };
    socket.change_link(link, &change).map_err(refused)?;
    redirect::tie(socket, &wire.name, wire.index, link.index)?;
    redirect::tie(socket, &name, link.index, wire.index)?;
    Ok(device)
}

/// Tells the guest what its cards are.
///
/// # Errors
/// What the agent answers.
pub async fn tell(guest: &Guest, told: Told) -> Result<(), GuestError> {
    if told.interfaces.is_empty() {
        return Ok(());
    }
    for interface in told.interfaces {
        guest.update_interface(interface).await?;
    }
    guest.update_routes(told.routes).await?;
    if told.neighbours.is_empty() {
        return Ok(());
    }
    guest.add_neighbours(told.neighbours).await
}

/// Takes away what [`attach`] has made in the pod's namespace, as the record in the sandbox's directory has
/// it. Can be called any number of times, also where nothing was made or the namespace is gone.
pub fn undo(directory: &StateDir) {
    let Some(record) = Record::read(directory) else {
        return;
    };
    let links = record.links.clone();
    // A namespace that is gone has taken everything with it.
    if let Some(namespace) = Namespace::recorded(&record) {
        let undone = namespace.inside(move || {
            let mut socket = Socket::open()?;
            for link in socket.links()? {
                if links.contains(&link.index) {
                    redirect::untie(&mut socket, &link.name, link.index)?;
                }
            }
            Ok(())
        });
        if let Err(error) = undone {
            let error = GuestError::from(error);
            warn!(%error, "the pod's network is not as it was");
        }
    }
    Record::remove(directory);
}

#[cfg(test)]
mod tests;
