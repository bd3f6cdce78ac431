//! A pod's init-data: from its annotation, or the operator's file, to the disk that the guest reads
//! and the digest that a TEE would bind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use evidence::init_data::{InitData, InitDataDigest, InitDataError, annotation, disk};
use hypervisor::Disk;
use thiserror::Error;

use crate::config::annotation::INIT_DATA;
use crate::state_dir::StateDir;

/// The disk's name in the state directory.
const FILE: &str = "init-data.img";
/// The disk's serial in the guest.
const SERIAL: &str = "cloister-initdata";
/// A document that is larger than this is refused by the format too.
const MAX_TEXT: u64 = 8 * 1024 * 1024;

/// What the VM gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The disk.
    pub disk: Disk,
    /// What the launch binds.
    pub digest: InitDataDigest,
}

/// Why there is no disk.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The annotation is not init-data.
    #[error("annotation {INIT_DATA}: {0}")]
    Annotation(#[source] InitDataError),
    /// The operator's file cannot be read.
    #[error("cloister.init_data {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The operator's file is not init-data.
    #[error("cloister.init_data {path:?}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: InitDataError,
    },
    /// The disk cannot be made.
    #[error("init-data disk: {0}")]
    Disk(#[source] InitDataError),
    /// The disk cannot be written.
    #[error("write the init-data disk: {0}")]
    Write(#[source] io::Error),
}

/// Writes the disk for a pod; `None` where the pod has no init-data. A pod's own comes before the
/// operator's.
///
/// # Errors
/// [`PrepareError`] says which source is wrong and how.
pub fn prepare(
    annotations: &BTreeMap<String, String>,
    file: Option<&Path>,
    directory: &StateDir,
) -> Result<Option<Prepared>, PrepareError> {
    let data = match (annotations.get(INIT_DATA), file) {
        (Some(value), _) => annotation::decode(value).map_err(PrepareError::Annotation)?,
        (None, Some(path)) => read(path)?,
        (None, None) => return Ok(None),
    };
    let image = disk::encode(&data).map_err(PrepareError::Disk)?;
    directory.write(FILE, &image).map_err(PrepareError::Write)?;
    let disk = Disk {
        path: directory.path().join(FILE),
        format: hypervisor::spec::DiskFormat::Raw,
        serial: SERIAL.to_owned(),
    };
    Ok(Some(Prepared {
        disk,
        digest: data.digest(),
    }))
}

fn read(path: &Path) -> Result<InitData, PrepareError> {
    let unreadable = |source| PrepareError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(MAX_TEXT)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    InitData::parse(&text).map_err(|source| PrepareError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n";

    #[test]
    fn a_file_becomes_a_disk_and_a_digest() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(root.path());
        let file = root.path().join("init.toml");
        std::fs::write(&file, TEXT).unwrap();
        let prepared = prepare(&BTreeMap::new(), Some(&file), &directory)
            .unwrap()
            .unwrap();
        let digest = evidence::init_data::Algorithm::Sha256.digest(TEXT.as_bytes());
        assert_eq!(prepared.digest, digest);
        let read = disk::decode(File::open(&prepared.disk.path).unwrap()).unwrap();
        assert_eq!(read.text(), TEXT);
    }

    #[test]
    fn the_pods_own_comes_first_and_nonsense_is_named() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(root.path());
        let annotations = BTreeMap::from([(INIT_DATA.to_owned(), "!!".to_owned())]);
        let error = prepare(&annotations, Some(Path::new("/none")), &directory).unwrap_err();
        assert!(error.to_string().contains("cc_init_data"), "{error}");
        assert_eq!(prepare(&BTreeMap::new(), None, &directory).unwrap(), None);
    }
}
