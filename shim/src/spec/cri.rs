//! What the container runtime interface says of a pod (`runtime.v1.PodSandboxConfig`), as the sandbox
//! service gets it.
//!
//! It becomes the specification that containerd writes for the sandbox container of a pod where it uses no
//! sandbox service: size, cgroup, network, sysctls and annotations follow from that one, whichever way a
//! pod comes. The message is read field by field, because a dozen of its hundred fields count here.
//! <https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::oci::{IdMapping, Linux, Namespace, Spec};
use super::size::{CPU_PERIOD, CPU_QUOTA, MEMORY};
use crate::fields::{FieldError, each};

/// The name of the message; some clients put a host before it.
pub const NAME: &str = "runtime.v1.PodSandboxConfig";
/// The mode of a namespace that is the host's.
const NODE: u64 = 2;
/// The mode of a namespace that the containers of the pod share.
const POD: u64 = 0;
/// What containerd and the kubelet call systemd's form of a cgroup.
const SLICE: &str = ".slice";

/// Why the message cannot be read.
#[derive(Debug, Error)]
pub enum CriError {
    /// It is another one.
    #[error("the sandbox's options are {0:?}: use {NAME}")]
    Other(String),
    /// It is none, or a field is not as the interface has it.
    #[error("{NAME}: {0}")]
    Malformed(#[from] FieldError),
}

/// What counts of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodConfig {
    /// The pod's host name; empty where none is asked for.
    pub hostname: String,
    /// The lines of its resolv.conf; none where it is to have the host's.
    pub dns: Vec<String>,
    name: String,
    uid: String,
    namespace: String,
    log_directory: String,
    annotations: BTreeMap<String, String>,
    cgroup_parent: String,
    sysctls: BTreeMap<String, String>,
    modes: Modes,
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
    cpu_period: i64,
    cpu_quota: i64,
    memory: i64,
}

/// Whose the namespaces are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Modes {
    network: u64,
    pid: u64,
    ipc: u64,
}

/// Where a pod is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The pod's id.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Its network namespace; empty for none.
    pub netns: &'a str,
    /// Annotations that come beside the message.
    pub annotations: &'a std::collections::HashMap<String, String>,
}

impl PodConfig {
    /// Reads the options of a sandbox.
    ///
    /// # Errors
    /// They are of another type, or malformed.
    pub fn read(type_url: &str, value: &[u8]) -> Result<Self, CriError> {
        if type_url.rsplit('/').next() != Some(NAME) {
            return Err(CriError::Other(type_url.to_owned()));
        }
        let mut config = Self::default();
        each(value, |field| {
            match field.number {
                1 => config.metadata(field.message()?)?,
                2 => config.hostname = field.text()?,
                3 => config.log_directory = field.text()?,
                4 => config.dns = dns(field.message()?)?,
                7 => insert(&mut config.annotations, field.message()?)?,
                8 => config.linux(field.message()?)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(config)
    }

    fn metadata(&mut self, message: &[u8]) -> Result<(), FieldError> {
        each(message, |field| {
            match field.number {
                1 => self.name = field.text()?,
                2 => self.uid = field.text()?,
                3 => self.namespace = field.text()?,
                _ => {}
            }
            Ok(())
        })
    }

    fn linux(&mut self, message: &[u8]) -> Result<(), FieldError> {
        each(message, |field| {
            match field.number {
                1 => self.cgroup_parent = field.text()?,
                2 => each(field.message()?, |inner| match inner.number {
                    1 => self.namespaces(inner.message()?),
                    _ => Ok(()),
                })?,
                3 => insert(&mut self.sysctls, field.message()?)?,
                5 => self.resources(field.message()?)?,
                _ => {}
            }
            Ok(())
        })
    }

    fn namespaces(&mut self, message: &[u8]) -> Result<(), FieldError> {
        each(message, |field| {
            match field.number {
                1 => self.modes.network = field.number()?,
                2 => self.modes.pid = field.number()?,
                3 => self.modes.ipc = field.number()?,
                5 => self.users(field.message()?)?,
                _ => {}
            }
            Ok(())
        })
    }

    /// A mode that is the host's has no mappings that count.
    fn users(&mut self, message: &[u8]) -> Result<(), FieldError> {
        let (mut mode, mut uids, mut gids) = (POD, Vec::new(), Vec::new());
        each(message, |field| {
            match field.number {
                1 => mode = field.number()?,
                2 => uids.push(mapping(field.message()?)?),
                3 => gids.push(mapping(field.message()?)?),
                _ => {}
            }
            Ok(())
        })?;
        if mode == POD {
            (self.uids, self.gids) = (uids, gids);
        }
        Ok(())
    }

    fn resources(&mut self, message: &[u8]) -> Result<(), FieldError> {
        each(message, |field| {
            match field.number {
                1 => self.cpu_period = field.number()?.cast_signed(),
                2 => self.cpu_quota = field.number()?.cast_signed(),
                4 => self.memory = field.number()?.cast_signed(),
                _ => {}
            }
            Ok(())
        })
    }

    /// Whether its containers see each other's processes.
    #[must_use]
    pub fn shares_processes(&self) -> bool {
        self.modes.pid == POD
    }

    /// The specification that containerd writes for such a pod.
    #[must_use]
    pub fn spec(&self, place: Place<'_>) -> Spec {
        Spec {
            hostname: self.hostname.clone(),
            annotations: self.all_annotations(place),
            linux: Some(Linux {
                sysctl: self.sysctls.clone(),
                cgroups_path: self.cgroups_path(place),
                namespaces: self.own_namespaces(place.netns),
                uid_mappings: self.uids.clone(),
                gid_mappings: self.gids.clone(),
                ..Linux::default()
            }),
            ..Spec::default()
        }
    }

    /// containerd's own are over those that people write.
    fn all_annotations(&self, place: Place<'_>) -> BTreeMap<String, String> {
        let beside = place.annotations.clone().into_iter();
        let mut all: BTreeMap<_, _> = beside.chain(self.annotations.clone()).collect();
        let own = |key: &str| format!("io.kubernetes.cri.{key}");
        for (key, value) in [
            (own("container-type"), "sandbox"),
            (own("sandbox-id"), place.id),
            (own("sandbox-name"), &self.name),
            (own("sandbox-namespace"), &self.namespace),
            (own("sandbox-uid"), &self.uid),
            (own("sandbox-log-directory"), &self.log_directory),
            (CPU_PERIOD.to_owned(), &self.cpu_period.to_string()),
            (CPU_QUOTA.to_owned(), &self.cpu_quota.to_string()),
            (MEMORY.to_owned(), &self.memory.to_string()),
        ] {
            all.insert(key, value.to_owned());
        }
        all
    }

    fn own_namespaces(&self, netns: &str) -> Vec<Namespace> {
        let Modes { network, pid, ipc } = self.modes;
        let all = [
            ("network", network, netns),
            ("pid", pid, ""),
            ("ipc", ipc, ""),
            ("uts", POD, ""),
            ("mount", POD, ""),
        ];
        let own = all.into_iter().filter(|(_, mode, _)| *mode != NODE);
        own.map(|(kind, _, path)| Namespace {
            kind: kind.to_owned(),
            path: path.to_owned(),
        })
        .collect()
    }

    fn cgroups_path(&self, place: Place<'_>) -> String {
        let parent = Path::new(&self.cgroup_parent);
        let base = parent.file_name().unwrap_or_default().to_string_lossy();
        let path = match base.ends_with(SLICE) {
            true => return format!("{base}:cri-containerd:{}", place.id),
            false if self.cgroup_parent.is_empty() => Path::new("/").join(place.namespace),
            false => PathBuf::from(parent),
        };
        path.join(place.id).display().to_string()
    }
}

fn dns(message: &[u8]) -> Result<Vec<String>, FieldError> {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    each(message, |field| {
        match field.number {
            1 => servers.push(format!("nameserver {}", field.text()?)),
            2 => searches.push(field.text()?),
            3 => options.push(field.text()?),
            _ => {}
        }
        Ok(())
    })?;
    let line = |word: &str, values: &[String]| {
        (!values.is_empty()).then(|| format!("{word} {}", values.join(" ")))
    };
    let search = line("search", &searches);
    let options = line("options", &options);
    Ok(search.into_iter().chain(servers).chain(options).collect())
}

fn mapping(message: &[u8]) -> Result<IdMapping, FieldError> {
    let mut mapping = IdMapping::default();
    each(message, |field| {
        let number = || u32::try_from(field.number()?).map_err(|_| field.malformed());
        match field.number {
            1 => mapping.host_id = number()?,
            2 => mapping.container_id = number()?,
            3 => mapping.size = number()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(mapping)
}

/// An entry of a map of text.
fn insert(map: &mut BTreeMap<String, String>, message: &[u8]) -> Result<(), FieldError> {
    let (mut key, mut value) = (String::new(), String::new());
    each(message, |field| {
        match field.number {
            1 => key = field.text()?,
            2 => value = field.text()?,
            _ => {}
        }
        Ok(())
    })?;
    map.insert(key, value);
    Ok(())
}

#[cfg(test)]
mod tests;
