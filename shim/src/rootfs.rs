//! Where a container's root file system comes from: an image that the guest pulls itself, or a
//! directory of the host that is shared with a plain guest.

mod layers;
mod mapped;
mod served;
mod shared;

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use agent_api::agent::Storage;
use agent_api::{ErrorCode, GuestError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use containerd_shim_protos::types::mount::Mount;
use serde::Deserialize;
use thiserror::Error;

use crate::config::Config;
use crate::disk::FileSystem;
use crate::spec::amend::HostBind;
use crate::spec::group::{self, Role};
pub use layers::{ALLOWED, Layers};
pub use served::serve;
pub use shared::Shared;

/// The mount option by which a snapshotter hands over a volume of Kata's.
const VOLUME_OPTION: &str = "io.katacontainers.volume=";
/// The volume type by which a snapshotter leaves the image to the guest; the driver has this name.
const GUEST_PULL: &str = "image_guest_pull";
/// The image of a pod's sandbox container: the agent brings its own.
const PAUSE: &str = "pause";
/// The guest's directory for the containers' bundles.
pub const GUEST_BUNDLES: &str = "/run/kata-containers";
/// Where the guest mounts the shared directory.
pub const GUEST_SHARED: &str = "/run/kata-containers/shared/containers";
/// The option by which a file is mounted as a device.
const LOOP: &str = "loop";
/// The file systems of disks that every guest mounts.
const GUEST_FILE_SYSTEMS: [&str; 2] = ["ext4", "erofs"];
/// The longest JSON of a volume.
const MAX_VOLUME: usize = 256 * 1024;

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The guest pulls this image.
    GuestPull {
        /// A reference, or `PAUSE`.
        image: String,
        /// What the snapshotter knows of the image, for the agent.
        metadata: BTreeMap<String, String>,
    },
    /// A disk of the host, by its path, which the guest mounts.
    Disk(String, FileSystem),
    /// Files of the host, each a disk of which the guest makes one file system.
    Layers(Layers),
    /// The host's mounts, through the shared directory.
    Host,
}

/// Why there is no root file system.
#[derive(Debug, Error)]
pub enum RootfsError {
    /// The volume is not what Kata writes.
    #[error("mount option {VOLUME_OPTION}...: {0}")]
    Volume(String),
    /// The volume is of another type.
    #[error("volume type {0:?} is not supported: use {GUEST_PULL}")]
    VolumeType(String),
    /// Layers that cannot be disks.
    #[error("layers of EROFS: {0}")]
    Layers(String),
    /// Nothing names the image.
    #[error(
        "no image to pull: neither the volume nor the annotation io.kubernetes.cri.image-name names one"
    )]
    NoImage,
    /// A confidential guest cannot take the host's files.
    #[error(
        "the host's root file system cannot go into a confidential guest: use a guest-pull snapshotter, or \
         experimental = [\"force_guest_pull\"] in [runtime]"
    )]
    Confidential,
    /// A confidential guest cannot take the host's files.
    #[error(
        "mount of {source_path} at {destination}: files of the host cannot go into a confidential guest: remove it, or use a ConfigMap, Secret or emptyDir, which can"
    )]
    ConfidentialBind {
        /// The path on the host.
        source_path: String,
        /// The path in the container.
        destination: String,
    },
    /// The guest shares nothing.
    #[error(
        "the host's files are needed and shared_fs is \"none\": set it to \"virtio-fs\" in [hypervisor.qemu]"
    )]
    NotShared,
    /// The guest shares nothing.
    #[error(
        "mount of {source_path} at {destination}: shared_fs is \"none\": set it to \"virtio-fs\" in [hypervisor.qemu], or use a ConfigMap, Secret or emptyDir"
    )]
    BindNotShared {
        /// The path on the host.
        source_path: String,
        /// The path in the container.
        destination: String,
    },
    /// There is no root file system at all.
    #[error("the task has neither mounts nor a root.path")]
    Nothing,
    /// Owners cannot be mapped.
    #[error(
        "hostUsers: false: {path:?} cannot be mounted with mapped owners ({cause}): its file system must support idmapped mounts, as ext4, xfs, btrfs and tmpfs do"
    )]
    Owners {
        /// What is mounted.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The snapshotter's mappings are none.
    #[error(
        "mount option {0:?}: a mapping is containerID:hostID:size, several with commas between"
    )]
    Mapping(String),
    /// A directory or file to mount on cannot be made.
    #[error("make {path:?}: {source}")]
    Make {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The mount fails.
    #[error("mount {what} on {path:?}: {cause}")]
    Mount {
        /// What is mounted.
        what: String,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
}

/// Decides where the root file system comes from.
///
/// # Errors
/// [`RootfsError`] where the request contradicts itself, or the host's files are not allowed.
pub fn choose(
    config: &Config,
    role: &Role,
    annotations: &BTreeMap<String, String>,
    mounts: &[Mount],
) -> Result<Source, RootfsError> {
    if *role == Role::Sandbox {
        // Nothing of its image runs, wherever it comes from.
        return Ok(Source::GuestPull {
            image: PAUSE.to_owned(),
            metadata: BTreeMap::new(),
        });
    }
    let volume = mounts
        .iter()
        .flat_map(|mount| &mount.options)
        .find_map(|option| option.strip_prefix(VOLUME_OPTION));
    let volume = volume.map(Volume::parse).transpose()?;
    if volume.is_none() && !config.force_guest_pull {
        return match config.tee.is_confidential() {
            true => Err(RootfsError::Confidential),
            false => of_host(config, mounts),
        };
    }
    let volume = volume.unwrap_or_default();
    let named = Some(volume.source.as_str()).filter(|source| !source.is_empty());
    let image = named
        .or_else(|| group::image(annotations))
        .ok_or(RootfsError::NoImage)?;
    Ok(Source::GuestPull {
        image: image.to_owned(),
        metadata: volume.image_pull.unwrap_or_default().metadata,
    })
}

/// What a plain guest has of the host's mounts.
fn of_host(config: &Config, mounts: &[Mount]) -> Result<Source, RootfsError> {
    match layers::of(mounts) {
        Some(_) if config.vm.disable_block_devices => {
            let text = "disable_block_device_use is set in [hypervisor.qemu]: unset it";
            Err(RootfsError::Layers(text.to_owned()))
        }
        Some(layers) => layers.map(Source::Layers),
        None => Ok(disk(config, mounts).unwrap_or(Source::Host)),
    }
}

/// The disk that is the whole root file system, as snapshotters with block devices give it: of a type that the
/// guest mounts.
fn disk(config: &Config, mounts: &[Mount]) -> Option<Source> {
    let [mount] = mounts else { return None };
    let is_disk = std::fs::metadata(&mount.source).is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_block_device() || kind.is_file() && mount.options.iter().any(|o| o == LOOP)
    });
    let is_known = GUEST_FILE_SYSTEMS.contains(&mount.type_.as_str());
    if config.vm.disable_block_devices || !is_known || !is_disk {
        return None;
    }
    let options = mount.options.iter().filter(|option| *option != LOOP);
    let system = FileSystem {
        kind: mount.type_.clone(),
        options: options.cloned().collect(),
        ..FileSystem::default()
    };
    Some(Source::Disk(mount.source.clone(), system))
}

/// An error as it is answered.
#[must_use]
pub fn told(error: &RootfsError) -> GuestError {
    let code = match error {
        RootfsError::Volume(_)
        | RootfsError::VolumeType(_)
        | RootfsError::NoImage
        | RootfsError::Layers(_)
        | RootfsError::Mapping(_)
        | RootfsError::Nothing => ErrorCode::InvalidArgument,
        RootfsError::Confidential
        | RootfsError::ConfidentialBind { .. }
        | RootfsError::BindNotShared { .. }
        | RootfsError::Owners { .. }
        | RootfsError::NotShared => ErrorCode::FailedPrecondition,
        RootfsError::Make { .. } | RootfsError::Mount { .. } => ErrorCode::Internal,
    };
    GuestError::new(code, "rootfs", error)
}

/// Where the guest has a container's root file system.
#[must_use]
pub fn guest_path(source: &Source, container: &str) -> String {
    match source {
        Source::GuestPull { .. } | Source::Disk(..) | Source::Layers(_) => {
            format!("{GUEST_BUNDLES}/{container}/rootfs")
        }
        Source::Host => format!("{GUEST_SHARED}/{container}/rootfs"),
    }
}

/// The mount option by which whoever prepares a root file system leaves it to the guest: the image, and what is known
/// of it. An empty image leaves the name to the container's annotations.
#[must_use]
pub fn guest_pull_option(image: &str, metadata: &BTreeMap<String, String>) -> String {
    let volume = serde_json::json!({
        "volume_type": GUEST_PULL, "source": image, "image_pull": { "metadata": metadata },
    });
    format!("{VOLUME_OPTION}{}", STANDARD.encode(volume.to_string()))
}

/// The agent's work order for an image that it pulls.
#[must_use]
pub fn guest_pull_storage(
    image: &str,
    metadata: &BTreeMap<String, String>,
    container: &str,
) -> Storage {
    let volume = serde_json::json!({ "metadata": metadata });
    Storage {
        driver: GUEST_PULL.to_owned(),
        driver_options: vec![format!("{GUEST_PULL}={volume}")],
        source: image.to_owned(),
        fstype: "overlay".to_owned(),
        mount_point: format!("{GUEST_BUNDLES}/{container}/rootfs"),
        ..Default::default()
    }
}

/// The work order for the shared directory, once for a pod.
#[must_use]
pub fn shared_storage() -> Storage {
    Storage {
        driver: "virtio-fs".to_owned(),
        source: crate::virtiofs::TAG.to_owned(),
        fstype: "virtiofs".to_owned(),
        mount_point: format!("{GUEST_SHARED}/"),
        ..Default::default()
    }
}

/// Refuses host binds where they cannot be.
///
/// # Errors
/// [`RootfsError`] names the first mount, or the setting.
pub fn check_binds(
    config: &Config,
    binds: &[HostBind],
    destination: impl Fn(&HostBind) -> String,
) -> Result<(), RootfsError> {
    match binds.first() {
        Some(bind) if config.tee.is_confidential() => Err(RootfsError::ConfidentialBind {
            source_path: bind.source.clone(),
            destination: destination(bind),
        }),
        Some(bind) if config.vm.shared_fs == crate::config::SharedFs::None => {
            Err(RootfsError::BindNotShared {
                source_path: bind.source.clone(),
                destination: destination(bind),
            })
        }
        _ => Ok(()),
    }
}

/// Kata's volume, as far as it is needed. Its other fields belong to other types of volume.
#[derive(Debug, Default, Deserialize)]
struct Volume {
    #[serde(default)]
    volume_type: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    image_pull: Option<ImagePull>,
}

#[derive(Debug, Default, Deserialize)]
struct ImagePull {
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

impl Volume {
    fn parse(text: &str) -> Result<Self, RootfsError> {
        if text.len() > MAX_VOLUME {
            return Err(RootfsError::Volume(format!(
                "has more than {MAX_VOLUME} bytes"
            )));
        }
        let json = STANDARD
            .decode(text)
            .map_err(|error| RootfsError::Volume(format!("not base64: {error}")))?;
        let volume: Self = serde_json::from_slice(&json)
            .map_err(|error| RootfsError::Volume(format!("not a volume: {error}")))?;
        match volume.volume_type.as_str() {
            GUEST_PULL => Ok(volume),
            other => Err(RootfsError::VolumeType(other.chars().take(64).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tee;

    fn volume(json: &str) -> Vec<Mount> {
        let option = format!("{VOLUME_OPTION}{}", STANDARD.encode(json));
        vec![Mount {
            type_: "fuse.nydus-overlayfs".into(),
            options: vec![option],
            ..Default::default()
        }]
    }

    fn none() -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    #[test]
    fn a_plain_guest_takes_the_hosts_files_and_a_confidential_one_does_not() {
        let config = Config::default();
        assert_eq!(
            choose(&config, &Role::Single, &none(), &[]).unwrap(),
            Source::Host
        );
        let config = Config {
            tee: Tee::Sample,
            ..config
        };
        assert!(matches!(
            choose(&config, &Role::Single, &none(), &[]),
            Err(RootfsError::Confidential)
        ));
    }

    #[test]
    fn a_volume_names_the_image_or_the_annotation_does() {
        let config = Config::default();
        let mounts = volume(
            r#"{"volume_type":"image_guest_pull","source":"r/a:1","image_pull":{"metadata":{"k":"v"}}}"#,
        );
        let Source::GuestPull { image, metadata } =
            choose(&config, &Role::Single, &none(), &mounts).unwrap()
        else {
            panic!()
        };
        assert_eq!((image.as_str(), metadata["k"].as_str()), ("r/a:1", "v"));
        let mounts = volume(r#"{"volume_type":"image_guest_pull"}"#);
        let named = BTreeMap::from([(
            "io.kubernetes.cri.image-name".to_owned(),
            "r/b:2".to_owned(),
        )]);
        let source = choose(&config, &Role::Single, &named, &mounts).unwrap();
        assert!(matches!(source, Source::GuestPull { image, .. } if image == "r/b:2"));
        assert!(matches!(
            choose(&config, &Role::Single, &none(), &mounts),
            Err(RootfsError::NoImage)
        ));
    }

    #[test]
    fn a_sandbox_needs_no_image() {
        for force_guest_pull in [true, false] {
            let config = Config {
                force_guest_pull,
                ..Config::default()
            };
            let source = choose(&config, &Role::Sandbox, &none(), &[]).unwrap();
            assert!(matches!(source, Source::GuestPull { image, .. } if image == PAUSE));
        }
    }

    #[test]
    fn other_volumes_are_refused_by_name() {
        let config = Config::default();
        for (json, named) in [
            (r#"{"volume_type":"direct_block"}"#, "direct_block"),
            ("nonsense", "not a volume"),
        ] {
            let error = choose(&config, &Role::Single, &none(), &volume(json)).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn host_binds_are_refused_in_a_confidential_guest() {
        let config = Config {
            tee: Tee::Sample,
            ..Config::default()
        };
        let binds = [HostBind {
            index: 0,
            source: "/h".into(),
            read_only: false,
        }];
        let error = check_binds(&config, &binds, |_| "/etc/hosts".into()).unwrap_err();
        assert!(error.to_string().contains("/etc/hosts"), "{error}");
        check_binds(&Config::default(), &binds, |_| String::new()).unwrap();
    }
}
