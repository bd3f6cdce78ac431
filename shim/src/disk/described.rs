//! What storage drivers do with a direct volume: describe it, take the description back, ask how full it is, make it
//! larger. The words are Kata's (`kata-runtime direct-volume`), and so are the places on the host.
//!
//! Which sandbox has a volume nobody writes down: each shim knows its own disks, and answers for them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use agent_api::csi::VolumeStatsResponse;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::direct::{self, Description, ROOT};
use crate::state_dir::write_whole;

/// The shim's path for how full a volume is: `?path=<its device on the host>`.
pub const STATS: &str = "/direct-volume/stats";
/// The shim's path for a volume's growth: [`Growth`] as JSON.
pub const RESIZE: &str = "/direct-volume/resize";
/// How long a guest may take for a growth: a large file system has many groups of blocks to write.
pub const RESIZE_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest body of a request, in bytes.
pub const MAX_REQUEST: usize = 8 * 1024;

/// Why a description was not written or taken back.
#[derive(Debug, Error)]
pub enum DescribedError {
    /// A path that no volume has.
    #[error(
        "{0:?} is no path of a volume: use the absolute path that the kubelet mounts, of at most 189 bytes"
    )]
    Path(String),
    /// What would be refused when a pod uses it.
    #[error("the description: {0}")]
    Description(String),
    /// The file system's refusal.
    #[error("{path}: {source}")]
    File {
        /// Of what.
        path: String,
        /// Its words.
        source: io::Error,
    },
}

/// What is asked of a volume's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Growth {
    /// Its device on the host.
    #[serde(rename = "VolumePath", alias = "volume_guest_path")]
    pub device: String,
    /// Bytes that its file system is to have.
    #[serde(rename = "Size", alias = "size")]
    pub bytes: u64,
}

/// Describes the volume that the kubelet mounts from `volume`, where the description is one that a pod can use.
///
/// # Errors
/// [`DescribedError`].
pub fn add(volume: &str, description: &str) -> Result<(), DescribedError> {
    add_in(Path::new(ROOT), volume, description)
}

fn add_in(root: &Path, volume: &str, description: &str) -> Result<(), DescribedError> {
    let file = file(root, volume)?;
    direct::parse(description.as_bytes()).map_err(DescribedError::Description)?;
    let failed = |source| DescribedError::File {
        path: file.display().to_string(),
        source,
    };
    let directory = file.parent().unwrap_or(root);
    let mut make = DirBuilder::new();
    make.recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    write_whole(&file, description.as_bytes()).map_err(failed)
}

/// Takes a description back; there may be none.
///
/// # Errors
/// [`DescribedError`].
pub fn remove(volume: &str) -> Result<(), DescribedError> {
    remove_in(Path::new(ROOT), volume)
}

fn remove_in(root: &Path, volume: &str) -> Result<(), DescribedError> {
    let file = file(root, volume)?;
    let directory = file.parent().unwrap_or(root);
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DescribedError::File {
            path: directory.display().to_string(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The device of a volume that is described.
///
/// # Errors
/// [`DescribedError`]; there is no description, for one.
pub fn device(volume: &str) -> Result<String, DescribedError> {
    let file = file(Path::new(ROOT), volume)?;
    let text = direct::read(&file).map_err(|source| DescribedError::File {
        path: file.display().to_string(),
        source,
    })?;
    let described: Description = direct::parse(&text).map_err(DescribedError::Description)?;
    Ok(described.device)
}

fn file(root: &Path, volume: &str) -> Result<std::path::PathBuf, DescribedError> {
    let refused = || DescribedError::Path(volume.chars().take(64).collect());
    match Path::new(volume).is_absolute() {
        true => direct::place(root, volume).ok_or_else(refused),
        false => Err(refused()),
    }
}

/// What the guest told of a volume, as Kata's shim writes it.
#[must_use]
pub fn stats(told: &VolumeStatsResponse) -> String {
    let usage: Vec<_> = told
        .usage
        .iter()
        .map(|one| {
            serde_json::json!({
                "available": one.available, "total": one.total, "used": one.used,
                "unit": one.unit.value(),
            })
        })
        .collect();
    let condition = serde_json::json!({
        "abnormal": told.volume_condition.abnormal, "message": told.volume_condition.message,
    });
    serde_json::json!({ "usage": usage, "volume_condition": condition }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pv/mount";
    const GOOD: &str = r#"{"volume-type":"block","device":"/dev/x","fstype":"ext4"}"#;

    #[test]
    fn a_description_is_written_whole_and_taken_back() {
        let root = tempfile::tempdir().unwrap();
        add_in(root.path(), VOLUME, GOOD).unwrap();
        let file = direct::place(root.path(), VOLUME).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), GOOD);
        remove_in(root.path(), VOLUME).unwrap();
        assert!(!file.exists());
        remove_in(root.path(), VOLUME).unwrap();
    }

    #[test]
    fn what_no_pod_could_use_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        for (volume, description, told) in [
            ("relative", GOOD, "absolute"),
            ("", GOOD, "absolute"),
            (VOLUME, "{", "EOF"),
            (VOLUME, &GOOD.replace("ext4", "xfs"), "\"xfs\""),
            (VOLUME, &GOOD.replace("block", "vfiovol"), "vfiovol"),
        ] {
            let error = add_in(root.path(), volume, description).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_growth_is_read_in_the_words_of_either_runtime() {
        let wanted = Growth {
            device: "/dev/x".into(),
            bytes: 7,
        };
        for text in [
            r#"{"VolumePath":"/dev/x","Size":7}"#,
            r#"{"volume_guest_path":"/dev/x","size":7}"#,
        ] {
            assert_eq!(serde_json::from_str::<Growth>(text).unwrap(), wanted);
        }
        assert!(serde_json::from_str::<Growth>(r#"{"VolumePath":"/x","Size":-1}"#).is_err());
    }
}
