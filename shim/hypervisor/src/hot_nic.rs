//! Network interfaces that come while a VM runs, for networks that are set up after the VM: a q35 that waits for one
//! has a port of PCI Express for each, which costs its start a little, so that only such a VM has them.
//!
//! | | QEMU |
//! |---|---|
//! | at the start | `pcie-root-port,id=port0` |
//! | comes | the descriptor beside `getfd`, `netdev_add`, `device_add virtio-net-pci,bus=port0` |

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::json;
use thiserror::Error;
use tokio::sync::Mutex;

use crate::nic::{self, Nic};
use crate::qmp::{Qmp, QmpError};
use crate::spec::{Machine, VmSpec};
use crate::vhost_net;

/// The most of them.
pub const MAX_HOT_NICS: usize = 2;

/// Why an interface did not come.
#[derive(Debug, Error)]
pub enum HotNicError {
    /// Too many.
    #[error(
        "{MAX_HOT_NICS} network interfaces were added to the VM already: set up the others before the pod"
    )]
    TooMany,
    /// Another kind than a tap.
    #[error("only a tap device can be added to a VM that runs")]
    Kind,
    /// Its descriptor cannot be passed on.
    #[error("descriptor of a tap device")]
    Descriptor(#[source] io::Error),
    /// QEMU's refusal.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// Lets interfaces come. Cheap to clone; those of all clones take turns.
#[derive(Debug, Clone)]
pub struct HotNics {
    qmp: Qmp,
    vhost: bool,
    /// How many ports are taken.
    taken: Arc<Mutex<usize>>,
}

impl HotNics {
    pub(crate) fn new(qmp: &Qmp, spec: &VmSpec, vhost: bool) -> Option<Self> {
        (spec.hot_nics && spec.machine == Machine::Q35).then(|| Self {
            qmp: qmp.clone(),
            vhost,
            taken: Arc::default(),
        })
    }

    /// Adds an interface.
    ///
    /// # Errors
    /// [`HotNicError`]; its port is not used again, for nobody knows what the guest has seen.
    pub async fn attach(&self, nic: &Nic) -> Result<(), HotNicError> {
        let mut taken = self.taken.lock().await;
        let port = *taken;
        if port >= MAX_HOT_NICS {
            return Err(HotNicError::TooMany);
        }
        let tap = nic.tap().ok_or(HotNicError::Kind)?;
        let tap = tap.try_clone_to_owned().map_err(HotNicError::Descriptor)?;
        *taken += 1;
        let added = self.add(port, nic, tap).await;
        if added.is_err() {
            // What QEMU holds of a tap keeps everybody from trying again.
            for name in [network(port), vhost(port)] {
                let _ = self.qmp.ask("closefd", json!({ "fdname": name })).await;
            }
        }
        Ok(added?)
    }

    async fn add(&self, port: usize, nic: &Nic, tap: OwnedFd) -> Result<(), QmpError> {
        let name = network(port);
        let mut backend = json!({ "type": "tap", "id": name, "fd": name, "vhost": false });
        self.pass(&name, tap).await?;
        if let Some(device) = self.vhost.then(vhost_net::open).flatten() {
            let vhost = vhost(port);
            self.pass(&vhost, device).await?;
            backend["vhost"] = true.into();
            backend["vhostfd"] = vhost.into();
        }
        self.qmp.ask("netdev_add", backend).await?;
        let device = json!({
            "driver": "virtio-net-pci", "id": format!("card{port}"), "netdev": name,
            "mac": nic::spelled(nic.mac), "bus": format!("port{port}"), "romfile": "",
        });
        let added = self.qmp.ask("device_add", device).await;
        if added.is_err() {
            let _ = self.qmp.ask("netdev_del", json!({ "id": name })).await;
        }
        added.map(drop)
    }

    async fn pass(&self, name: &str, descriptor: OwnedFd) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.qmp
            .ask_with("getfd", arguments, Some(descriptor))
            .await
            .map(drop)
    }
}

/// The names of what stands behind the card of a port: its tap, and the host's kernel that serves it.
fn network(port: usize) -> String {
    format!("hotnet{port}")
}

fn vhost(port: usize) -> String {
    format!("vhost{port}")
}

/// The device of a port.
pub(crate) fn port(index: usize) -> String {
    format!("pcie-root-port,id=port{index},chassis={}", index + 1)
}
