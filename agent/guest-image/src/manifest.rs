//! `manifest.json`: what an image was made of and what came out, so that anyone with the same
//! inputs can build the same bytes, and a broker can be told what to expect.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::kernel::Record;

/// The version of the format. Another one is refused.
pub const VERSION: u32 = 1;
/// The name of the file in an image's directory.
pub const FILE: &str = "manifest.json";
/// The largest manifest that is read, in bytes.
const MANIFEST_MAX: u64 = 1 << 20;

/// A file, by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// Its name: a file of the image, a program, or a module.
    pub name: String,
    /// SHA-256 as hex.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

impl Digest {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            sha256: digest::of_bytes(bytes),
            size: bytes.len() as u64,
        }
    }
}

/// All that there is to say about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Where the kernel came from.
    pub kernel: Record,
    /// The agent as it was built; in the image it is without its symbols.
    pub agent: Digest,
    /// The modules, decompressed, by name.
    pub modules: Vec<Digest>,
    /// What the VMM is given: `vmlinux` or `vmlinuz`, and `initramfs.cpio`.
    pub outputs: Vec<Digest>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file of the image cannot be used.
    #[error("cannot use `{path}`; build the image with `make build`")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The manifest does not say what it should.
    #[error("`{path}` is no manifest of a guest image")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where it went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another version.
    #[error("`{path}` is a manifest of version {found}, and this program knows version {VERSION}")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A file of the image is not the one that was built.
    #[error("`{path}` has digest {found}, and its manifest says {expected}")]
    Differs {
        /// Which.
        path: PathBuf,
        /// From the manifest.
        expected: String,
        /// Of the file.
        found: String,
    },
}

impl Manifest {
    /// Reads the manifest of the image in a directory.
    ///
    /// # Errors
    /// [`ManifestError`] when there is none that this program knows.
    pub fn read(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(FILE);
        let file = |source| ManifestError::File {
            path: path.clone(),
            source,
        };
        if fs::metadata(&path).map_err(file)?.len() > MANIFEST_MAX {
            return Err(file(io::Error::other("larger than 1 MiB")));
        }
        let text = fs::read(&path).map_err(file)?;
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|source| ManifestError::Parse {
                path: path.clone(),
                source,
            })?;
        if manifest.version != VERSION {
            let found = manifest.version;
            return Err(ManifestError::Version { path, found });
        }
        Ok(manifest)
    }

    /// Checks that the files beside the manifest are the ones that it describes.
    ///
    /// # Errors
    /// [`ManifestError::Differs`] names the first that is not.
    pub fn verify(&self, dir: &Path) -> Result<(), ManifestError> {
        for output in &self.outputs {
            let path = dir.join(&output.name);
            let (found, _) = digest::of_file(&path).map_err(|source| ManifestError::File {
                path: path.clone(),
                source,
            })?;
            if found != output.sha256 {
                let expected = output.sha256.clone();
                return Err(ManifestError::Differs {
                    path,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// What a person wants to see after a build: each part and its size.
    #[must_use]
    pub fn table(&self) -> String {
        let modules: u64 = self.modules.iter().map(|module| module.size).sum();
        let packages: Vec<_> = self
            .kernel
            .packages
            .iter()
            .map(|p| p.version.as_str())
            .collect();
        let mut rows = vec![
            format!(
                "kernel         {} ({}, {})",
                self.kernel.release,
                self.kernel.flavour,
                packages.join(", ")
            ),
            format!("agent          {:>9} KiB", kib(self.agent.size)),
            format!(
                "modules        {:>9} KiB  {} files",
                kib(modules),
                self.modules.len()
            ),
        ];
        for output in &self.outputs {
            rows.push(format!(
                "{:<14} {:>9} KiB  sha256 {}",
                output.name,
                kib(output.size),
                output.sha256
            ));
        }
        rows.join("\n")
    }
}

fn kib(bytes: u64) -> u64 {
    bytes.div_ceil(1024)
}
