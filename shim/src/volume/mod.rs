//! A pod's volumes: what of them does not go through a shared file system, and how.
//!
//! ```text
//!   mount of the specification ─► kind ─┬─ small content ──► slot: bytes over ttRPC, the guest answers where
//!                                       ├─ termination log ► slot, read back when the container has ended,
//!                                       │                    where it is a file that may be written
//!                                       ├─ emptyDir ───────► storage of the guest's own, for the whole pod,
//!                                       │                    or a disk in the kubelet's directory
//!                                       └─ else ───────────► refused, by the mount's name
//! ```
//!
//! What a volume is shows in its path: the kubelet has a directory for each pod, and in it one for each kind.
//! A guest with a shared file system gets all through that but ConfigMaps and their like: they go into slots
//! there too, because no program in a guest is told (inotify) of what the host changes in a shared one; and so
//! do files of the sandbox's own directory, which nobody but the shim writes.

pub mod content;
mod empty_dir;
mod kind;
mod watch;

use std::path::{Path, PathBuf};

use agent_api::agent::Storage;
use agent_api::content::put_content_request::Kind as SlotKind;
use agent_api::{GuestError, limit};
use thiserror::Error;

use crate::config::{Config, EmptyDirs};
use crate::disk::{self, DiskError};
use crate::guest::Guest;
use crate::spec::Spec;
use crate::spec::amend::HostBind;
use crate::spec::oci::Mount;
use crate::state_dir;
use content::{ContentError, Set};
use empty_dir::{Medium, Mounted};
use kind::{EmptyDir, Kind};
use watch::{Seen, Watch};

/// The options of a mount that nobody writes to.
const READ_ONLY: [&str; 2] = ["ro", "rro"];

/// What a container's mounts become.
#[derive(Debug, Default)]
pub struct Planned {
    /// Mounts of the host's files that remain: to be shared, or refused.
    pub binds: Vec<HostBind>,
    /// What the guest is to prepare.
    pub storages: Vec<Storage>,
    /// What is to be sent.
    pub slots: Vec<Wanted>,
    /// The disks of emptyDirs.
    pub disks: Vec<disk::Wanted>,
}

/// A slot that is to be filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The index of the mount.
    pub index: usize,
    /// The host's file or directory.
    pub source: PathBuf,
    name: String,
    is_log: bool,
}

/// Why a volume cannot go into the guest.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// A part of an emptyDir.
    #[error(
        "mount at {0}: which part of the emptyDir it is (subPath) shows in no mount of the host: mount the emptyDir itself"
    )]
    SubPath(String),
    /// Huge pages.
    #[error("mount at {0}: a confidential guest has no huge pages: use medium: Memory")]
    HugePages(String),
    /// An emptyDir has no disk.
    #[error(transparent)]
    Disk(Box<DiskError>),
    /// The host's files cannot be sent.
    #[error("mount of {path:?} at {destination}: {source}")]
    Content {
        /// The path on the host.
        path: PathBuf,
        /// The path in the container.
        destination: String,
        /// Why not.
        source: ContentError,
    },
}

/// Decides what becomes of a container's mounts. `binds` are those of the host's files.
///
/// # Errors
/// [`VolumeError`] names the mount.
pub fn plan(
    config: &Config,
    sandbox: &str,
    container: &str,
    spec: &mut Spec,
    binds: Vec<HostBind>,
) -> Result<Planned, VolumeError> {
    let mut planned = Planned::default();
    let shares = config.shares_files();
    for bind in binds {
        let Some(mount) = spec.mounts.get_mut(bind.index) else {
            continue;
        };
        let kind = match kind::of(&config.kubelet_root, &bind.source, &mount.destination) {
            Kind::TerminationLog if !takes_words(Path::new(&bind.source), mount) => Kind::Host,
            // These are the guest's own, whatever is shared.
            Kind::EmptyDir(dir) if Medium::of(&dir) == Medium::HugePages => {
                if config.tee.is_confidential() {
                    return Err(VolumeError::HugePages(mount.destination.clone()));
                }
                Kind::EmptyDir(dir)
            }
            Kind::EmptyDir(dir) if has_disk(config, &dir) => Kind::EmptyDir(dir),
            kind if !shares => kind,
            Kind::Content
                if goes_by_slot(Path::new(&bind.source)) || is_own(Path::new(&bind.source)) =>
            {
                Kind::Content
            }
            _ => Kind::Host,
        };
        let is_log = match kind {
            Kind::Host => {
                planned.binds.push(bind);
                continue;
            }
            Kind::EmptyDir(dir) => {
                let mounted = Mounted {
                    sandbox,
                    container,
                    index: bind.index,
                    destination: &mount.destination,
                };
                if has_disk(config, &dir) {
                    planned.disks.push(mounted.disk(config, &dir)?);
                    continue;
                }
                let asked = mounted.storages(&dir)?;
                if let Some(last) = asked.last() {
                    mount.source.clone_from(&last.mount_point);
                }
                planned.storages.extend(asked);
                continue;
            }
            Kind::Content => false,
            Kind::TerminationLog => true,
        };
        let name = Path::new(&mount.destination).file_name();
        planned.slots.push(Wanted {
            index: bind.index,
            source: PathBuf::from(bind.source),
            name: name.unwrap_or_default().to_string_lossy().into_owned(),
            is_log,
        });
    }
    Ok(planned)
}

/// Whether an emptyDir is on a disk of its own.
fn has_disk(config: &Config, dir: &EmptyDir) -> bool {
    config.empty_dirs != EmptyDirs::Shared && Medium::of(dir) == Medium::Disk
}

/// Whether a container's last words may be written there: the path alone can be any file's of the host, which
/// somebody mounts where the kubelet has its own.
fn takes_words(source: &Path, mount: &Mount) -> bool {
    let is_read_only = mount
        .options
        .iter()
        .any(|option| READ_ONLY.contains(&option.as_str()));
    let found = std::fs::symlink_metadata(source);
    !is_read_only && found.is_ok_and(|found| found.is_file())
}

/// Whether a directory changes as one, and is small enough for a slot.
fn goes_by_slot(directory: &Path) -> bool {
    content::is_replaced_as_one(directory) && content::set(directory).is_ok()
}

/// Whether it is a file of ours, in the host's memory: no container writes to it.
fn is_own(source: &Path) -> bool {
    source.starts_with(state_dir::root())
}

/// Reads the host's files where it holds nobody up.
async fn read(
    path: &Path,
    how: fn(&Path) -> Result<Set, ContentError>,
) -> Result<Set, ContentError> {
    let source = path.to_owned();
    let done = tokio::task::spawn_blocking(move || how(&source)).await;
    done.unwrap_or_else(|error| {
        Err(ContentError::Read {
            path: path.to_owned(),
            source: error.into(),
        })
    })
}

/// What a container has in slots. Dropping it ends what follows the host's changes.
#[derive(Debug, Default)]
pub struct Volumes {
    sent: bool,
    watches: Vec<Watch>,
    log: Option<PathBuf>,
}

impl Volumes {
    /// Those of a container to which something is about to be sent.
    #[must_use]
    pub fn begun() -> Self {
        Self {
            sent: true,
            ..Self::default()
        }
    }

    /// Whether the guest may hold something.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.sent
    }

    /// The host's file for the termination message.
    #[must_use]
    pub fn termination_log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// Fills one slot of a container; answers where the guest has it.
    ///
    /// # Errors
    /// The host's files do not fit, or what the guest answers.
    pub async fn fill(
        &mut self,
        guest: &Guest,
        container: &str,
        wanted: &Wanted,
        destination: &str,
    ) -> Result<String, GuestError> {
        let slot = Slot {
            container: container.to_owned(),
            name: wanted.name.clone(),
            source: wanted.source.clone(),
        };
        if wanted.is_log {
            let answer = guest
                .put_content(slot.request("", SlotKind::TERMINATION_LOG, Set::default(), false))
                .await?;
            self.log = Some(wanted.source.clone());
            return Ok(answer.path);
        }
        let unreadable = |source: ContentError| {
            let code = source.code();
            let error = VolumeError::Content {
                path: wanted.source.clone(),
                destination: destination.to_owned(),
                source,
            };
            GuestError::new(code, "volume", error)
        };
        if !wanted.source.is_dir() {
            let set = read(&wanted.source, content::file).await;
            let set = set.map_err(unreadable)?;
            let request = slot.request("", SlotKind::FILE, set, false);
            return guest.put_content(request).await.map(|answer| answer.path);
        }
        // Before the files are read, so that no change falls between.
        let seen = Seen::of(&slot.source);
        let set = read(&slot.source, content::set).await;
        let set = set.map_err(unreadable)?;
        let (name, path) = slot.send(guest, "", set).await?;
        if content::is_replaced_as_one(&slot.source) {
            self.watches
                .push(Watch::start(guest.clone(), slot, name, seen));
        }
        Ok(path)
    }
}

/// A directory of the host and its container.
#[derive(Debug)]
pub(crate) struct Slot {
    container: String,
    name: String,
    source: PathBuf,
}

impl Slot {
    /// Sends a set in as many requests as it takes; answers the slot's name and its path.
    async fn send(
        &self,
        guest: &Guest,
        slot: &str,
        set: Set,
    ) -> Result<(String, String), GuestError> {
        let mut name = slot.to_owned();
        let mut path = String::new();
        let mut parts = set.split(limit::MAX_CONTENT_REQUEST).into_iter().peekable();
        while let Some(part) = parts.next() {
            let more = parts.peek().is_some();
            let request = self.request(&name, SlotKind::DIRECTORY, part, more);
            let answer = guest.put_content(request).await?;
            (name, path) = (answer.slot, answer.path);
        }
        Ok((name, path))
    }

    fn request(
        &self,
        slot: &str,
        kind: SlotKind,
        set: Set,
        more: bool,
    ) -> agent_api::content::PutContentRequest {
        agent_api::content::PutContentRequest {
            container_id: self.container.clone(),
            slot: slot.to_owned(),
            name: self.name.clone(),
            kind: kind.into(),
            files: set.into_files(),
            more,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SharedFs;

    fn planned(config: &Config, mounts: &[(&str, &str)]) -> (Spec, Result<Planned, VolumeError>) {
        planned_with(config, mounts, &[])
    }

    fn planned_with(
        config: &Config,
        mounts: &[(&str, &str)],
        options: &[&str],
    ) -> (Spec, Result<Planned, VolumeError>) {
        let mut spec = Spec::default();
        let mut binds = Vec::new();
        for (index, (source, destination)) in mounts.iter().enumerate() {
            spec.mounts.push(Mount {
                destination: (*destination).to_owned(),
                source: (*source).to_owned(),
                kind: "bind".to_owned(),
                options: options.iter().map(|one| (*one).to_owned()).collect(),
                ..Mount::default()
            });
            let source = (*source).to_owned();
            let read_only = false;
            binds.push(HostBind {
                index,
                source,
                read_only,
            });
        }
        let planned = plan(config, "pod", "c", &mut spec, binds);
        (spec, planned)
    }

    const MOUNTS: [(&str, &str); 4] = [
        ("pods/u/etc-hosts", "/etc/hosts"),
        ("pods/u/containers/c/1f", "/dev/termination-log"),
        ("pods/u/volumes/kubernetes.io~empty-dir/tmp", "/tmp"),
        ("/srv/data", "/data"),
    ];

    /// A kubelet's directory with the file for last words, and the mounts with their sources there.
    fn kubelet(root: &Path) -> Vec<(String, &'static str)> {
        let log = root.join(MOUNTS[1].0);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(&log, "").unwrap();
        let placed = MOUNTS.map(|(source, destination)| {
            let source = root.join(source);
            (source.to_str().unwrap().to_owned(), destination)
        });
        placed.to_vec()
    }

    fn borrowed<'a>(mounts: &'a [(String, &'a str)]) -> Vec<(&'a str, &'a str)> {
        mounts.iter().map(|(a, b)| (a.as_str(), *b)).collect()
    }

    fn shared(root: &Path) -> Config {
        Config {
            kubelet_root: root.to_owned(),
            ..Config::default()
        }
    }

    fn nothing_shared(root: &Path) -> Config {
        let mut config = shared(root);
        config.vm.shared_fs = SharedFs::None;
        config
    }

    #[test]
    fn where_nothing_is_shared_each_kind_has_its_way() {
        let root = tempfile::tempdir().unwrap();
        let mounts = kubelet(root.path());
        let (spec, planned) = planned(&nothing_shared(root.path()), &borrowed(&mounts));
        let planned = planned.unwrap();
        let slots: Vec<_> = planned
            .slots
            .iter()
            .map(|slot| (slot.index, slot.name.as_str(), slot.is_log))
            .collect();
        assert_eq!(slots, [(0, "hosts", false), (1, "termination-log", true)]);
        assert_eq!(planned.storages.len(), 1);
        assert_eq!(spec.mounts[2].source, planned.storages[0].mount_point);
        assert_eq!(planned.binds.len(), 1);
        assert_eq!(planned.binds[0].source, "/srv/data");
    }

    #[test]
    fn only_a_regular_file_that_may_be_written_takes_last_words() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("pods/u/containers/c");
        std::fs::create_dir_all(&own).unwrap();
        let at = |name: &str| own.join(name);
        std::fs::write(at("file"), "").unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), mode).unwrap();
        let logs = |name: &str, options: &[&str]| {
            let source = at(name);
            let mounts = [(source.to_str().unwrap(), "/dev/termination-log")];
            let (_, planned) = planned_with(&nothing_shared(root.path()), &mounts, options);
            let planned = planned.unwrap();
            assert_eq!(planned.slots.len() + planned.binds.len(), 1);
            planned.slots.len()
        };
        assert_eq!(logs("file", &["rbind", "rw"]), 1);
        assert_eq!(logs("file", &["rbind", "ro"]), 0);
        for other in ["directory", "link", "fifo", "nothing"] {
            assert_eq!(logs(other, &["rbind", "rw"]), 0, "{other}");
        }
    }

    #[test]
    fn a_file_of_ours_is_copied_for_each_container() {
        let own = state_dir::root().join("ns/pod/pod/hosts");
        let mounts = [
            (own.to_str().unwrap(), "/etc/hosts"),
            ("/srv/hosts", "/etc/hostname"),
        ];
        let (_, planned) = planned(&Config::default(), &mounts);
        let planned = planned.unwrap();
        let slots: Vec<_> = planned.slots.iter().map(|slot| &slot.source).collect();
        assert_eq!(slots, [&own]);
        assert_eq!(planned.binds.len(), 1);
    }

    #[test]
    fn a_shared_file_system_takes_all_but_what_programs_watch() {
        let root = tempfile::tempdir().unwrap();
        let config = shared(root.path());
        let (_, all) = planned(&config, &borrowed(&kubelet(root.path())));
        let all = all.unwrap();
        assert_eq!(all.binds.len(), MOUNTS.len());
        assert!(all.slots.is_empty() && all.storages.is_empty());
        let volume = root.path().join("pods/u/volumes/kubernetes.io~configmap/c");
        std::fs::create_dir_all(volume.join("..1")).unwrap();
        std::os::unix::fs::symlink("..1", volume.join("..data")).unwrap();
        let path = volume.to_str().unwrap();
        let (_, small) = planned(&config, &[(path, "/etc/c")]);
        assert_eq!(small.unwrap().slots.len(), 1);
        let large = vec![0; limit::MAX_CONTENT_FILE + 1];
        std::fs::write(volume.join("..1/large"), large).unwrap();
        let (_, shared) = planned(&config, &[(path, "/etc/c")]);
        assert_eq!(shared.unwrap().binds.len(), 1);
    }
}
