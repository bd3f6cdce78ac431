//! The workload API's doors in this guest, and who stands at them.
//!
//! A connection's processes are in the cgroup of one container, which no process leaves that cannot write to
//! `/sys/fs/cgroup`. The owner's policy is asked for each request, by a rule of the request's name with
//! `{"container": {"id", "name", "annotations"}, ...}`. Where a policy has no such rule, as one that was generated for
//! Kata, a container may read resources, as with CoCo, and nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use async_trait::async_trait;
use attestation_agent::api::{
    self, Abilities, Addresses, Ask, Authorize, Caller, MountRequest, Peer, Refused, Seldom,
    Serving, Volumes,
};
use evidence::init_data::content::WorkloadApi;
use oci_spec::runtime::{Mount, Spec};
use serde_json::json;

use crate::cgroup;
use crate::fault::OrFail;
use crate::gate::Gate;
use crate::sandbox::Sandbox;

const PHASE: &str = "workload";
/// The annotations that have a container's name: containerd's, and CRI-O's.
const NAMES: [&str; 2] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri-o.ContainerName",
];
/// What is read of `/proc/<pid>/cgroup`, in bytes.
const MAX_CGROUP: u64 = 16 * 1024;

/// Opens the doors that init-data wants open, and has the broker's token kept fresh. A plain VM has nothing to offer.
///
/// # Errors
///
/// An address is taken.
pub async fn serve(gate: Arc<Gate>, sandbox: Arc<Sandbox>) -> Result<Option<Serving>, GuestError> {
    tokio::spawn(sandbox.images().hub().keep_fresh());
    let wanted = sandbox.images().workload_api();
    if !gate.is_confidential() || wanted == CLOSED {
        return Ok(None);
    }
    let hub = Arc::clone(sandbox.images().hub());
    let log = sandbox.images().log().cloned();
    let abilities = Abilities {
        log,
        volumes: Some(Arc::new(Disks(Arc::clone(&sandbox)))),
    };
    let owner = Arc::new(Owner {
        gate,
        sandbox,
        warned: Seldom::default(),
    });
    let addresses = Addresses {
        rest: wanted.rest.then(|| Addresses::of_guest().rest).flatten(),
        ..Addresses::of_guest()
    };
    let serving = api::serve(hub, owner, abilities, &addresses).await;
    serving.or_internal("boot", "the workload API").map(Some)
}

const CLOSED: WorkloadApi = WorkloadApi {
    rest: false,
    sockets: false,
};

/// Gives a container the directory of the sockets, where init-data says so.
pub fn mount_sockets(wanted: WorkloadApi, spec: &mut Spec) {
    if !wanted.sockets {
        return;
    }
    let mut mount = Mount::default();
    mount.set_destination(Addresses::DIRECTORY.into());
    mount.set_source(Some(Addresses::DIRECTORY.into()));
    mount.set_typ(Some("bind".to_owned()));
    let options = ["rbind", "ro", "nosuid", "nodev", "noexec"];
    mount.set_options(Some(options.map(str::to_owned).to_vec()));
    spec.mounts_mut().get_or_insert_default().push(mount);
}

/// The owner's policy at the doors.
struct Owner {
    gate: Arc<Gate>,
    sandbox: Arc<Sandbox>,
    warned: Seldom,
}

#[async_trait]
impl Authorize for Owner {
    async fn identify(&self, peer: Peer) -> Result<Caller, Refused> {
        let mut container = None;
        for process in peer.processes {
            let text = read_cgroup(process);
            let own = text.as_deref().and_then(container_of);
            let own = own.ok_or_else(|| Refused("the caller is in no container".to_owned()))?;
            if container.get_or_insert_with(|| own.to_owned()) != own {
                return Err(Refused("two containers hold the connection".to_owned()));
            }
        }
        let id = container.ok_or_else(|| Refused("nobody holds the connection".to_owned()))?;
        let annotations = self.sandbox.annotations(&id);
        let annotations = annotations.map_err(|error| Refused(error.message))?;
        Ok(Caller { id, annotations })
    }

    fn allow(&self, caller: &Caller, ask: &Ask<'_>) -> Result<(), Refused> {
        let name = NAMES.iter().find_map(|key| caller.annotations.get(*key));
        let mut input = ask.input();
        input["container"] = json!({
            "id": caller.id, "name": name, "annotations": caller.annotations,
        });
        let allowed = self.gate.admit_workload(ask.rule(), &input, ask.is_usual());
        allowed.map_err(|error| {
            if let Some(left_out) = self.warned.due() {
                let (container, rule) = (&caller.id, ask.rule());
                tracing::warn!(container, rule, left_out, "refused to a workload");
            }
            Refused(error.message)
        })
    }
}

/// The disks that the pod has.
struct Disks(Arc<Sandbox>);

#[async_trait]
impl Volumes for Disks {
    async fn mount(&self, request: MountRequest) -> Result<(), String> {
        let mounted = self.0.secure_mount(&request).await;
        mounted.map_err(|error| error.to_string())
    }
}

fn read_cgroup(process: i32) -> Option<String> {
    use std::io::Read;
    let path = PathBuf::from(format!("/proc/{process}/cgroup"));
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MAX_CGROUP).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The container of a process by its line for cgroup v2 (cgroups(7)): `0::/cloister/<id>` or below.
fn container_of(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = path.strip_prefix(cgroup::PARENT)?.strip_prefix('/')?;
    below.split('/').next().filter(|id| !id.is_empty())
}

/// Refuses the host's way to the doors: what it forwards comes from the agent, and is nobody's.
///
/// # Errors
///
/// [`ErrorCode::PolicyDenied`] for the port of the workload API, where it is served.
pub fn check_forward(port: u16, is_confidential: bool) -> Result<(), GuestError> {
    let rest = Addresses::of_guest().rest.map(|address| address.port());
    if !is_confidential || rest != Some(port) {
        return Ok(());
    }
    let message = format!("port {port} is the workload API's, which is for containers");
    Err(GuestError::new(ErrorCode::PolicyDenied, PHASE, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_the_container_whose_cgroup_it_is_in() {
        assert_eq!(container_of("0::/cloister/web\n"), Some("web"));
        assert_eq!(
            container_of("1:x:/y\n0::/cloister/web/deep/er\n"),
            Some("web")
        );
        for other in [
            "",
            "0::/\n",
            "0::/cloister\n",
            "0::/cloister/\n",
            "0::/cloisters/a\n",
            "0::/init\n",
        ] {
            assert_eq!(container_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_host_does_not_reach_the_workload_api() {
        assert!(check_forward(8006, true).is_err());
        assert!(check_forward(8006, false).is_ok());
        assert!(check_forward(80, true).is_ok());
    }
}
