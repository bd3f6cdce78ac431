//! A kernel directory: what an image is built from, whichever way the kernel was had.
//!
//! ```text
//!   vmlinux          the ELF kernel with a PVH entry
//!   vmlinuz          the bzImage that it is in, which the firmware of a TEE starts
//!   config           its configuration
//!   modules/         its modules, as they were packaged (empty when all is built in)
//!   modules.builtin  which modules are part of vmlinux
//!   kernel.json      a [`Record`]: where all of it came from
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::Package;

/// The name of the record in a kernel directory.
const RECORD: &str = "kernel.json";
/// The largest record that is read, in bytes.
const RECORD_MAX: u64 = 64 << 10;

/// Which way a kernel was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// Debian's cloud kernel, as Debian built and signed it.
    Debian,
    /// Compiled from Debian's source with Cloister's configuration, everything built in.
    Own,
}

impl std::fmt::Display for Flavour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::Own => "own",
        })
    }
}

/// Where a kernel came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Which way.
    pub flavour: Flavour,
    /// The kernel's release, what `uname -r` prints.
    pub release: String,
    /// The packages that it was made from.
    pub packages: Vec<Package>,
    /// SHA-256 of the configuration fragment that it was compiled with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment_sha256: Option<String>,
    /// The compiler that compiled it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compiler: Option<String>,
}

/// A kernel directory that is complete.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    record: Record,
}

/// Why a directory is no kernel directory.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file is missing or cannot be used.
    #[error("cannot use `{path}`; make it with `guest-image kernel`")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The record does not say what it should.
    #[error("`{path}` is no record of a kernel")]
    Record {
        /// Which.
        path: PathBuf,
        /// Where it went wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl Kernel {
    /// Opens a kernel directory.
    ///
    /// # Errors
    /// [`KernelError`] when it is not complete: the record is written last.
    pub fn open(dir: &Path) -> Result<Self, KernelError> {
        let path = dir.join(RECORD);
        let file = |source| KernelError::File {
            path: path.clone(),
            source,
        };
        if fs::metadata(&path).map_err(file)?.len() > RECORD_MAX {
            return Err(file(io::Error::other("larger than 64 KiB")));
        }
        let text = fs::read(&path).map_err(file)?;
        let record = serde_json::from_slice(&text).map_err(|source| KernelError::Record {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            record,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it came from.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The ELF kernel.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The bzImage.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The directory of its modules.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// The list of modules that are part of it.
    #[must_use]
    pub fn builtin(&self) -> PathBuf {
        self.dir.join("modules.builtin")
    }
}

/// Completes a directory under construction by writing its record, and puts it in its place.
pub(crate) fn seal(
    fresh: tempfile::TempDir,
    record: &Record,
    place: &Path,
) -> Result<Kernel, KernelError> {
    let path = fresh.path().join(RECORD);
    let file = |source| KernelError::File {
        path: path.clone(),
        source,
    };
    let mut text = serde_json::to_vec_pretty(record).map_err(|source| KernelError::Record {
        path: path.clone(),
        source,
    })?;
    text.push(b'\n');
    fs::write(&path, text).map_err(file)?;
    if place.exists() {
        fs::remove_dir_all(place).map_err(file)?;
    }
    fs::rename(fresh.keep(), place).map_err(file)?;
    Kernel::open(place)
}
