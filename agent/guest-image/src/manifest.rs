//! `manifest.json`: what an image was made of and what came out, so that anyone with the same
//! inputs can build the same bytes, and a broker can be told what to expect.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest;
use crate::kernel::Record;
use crate::launch::{LAUNCHES, Launch};

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
    /// That of a file with this content.
    #[must_use]
    pub fn new(name: &str, bytes: &[u8]) -> Self {
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
    /// What its owner counts images by, so that an older one is known as such; 0 where it is not counted.
    #[serde(default, skip_serializing_if = "is_uncounted")]
    pub number: u64,
    /// Where the kernel came from.
    pub kernel: Record,
    /// The agent as it was built; in the image it is without its symbols.
    pub agent: Digest,
    /// The modules, decompressed, by name.
    pub modules: Vec<Digest>,
    /// What the VMM is given: `vmlinux` or `vmlinuz`, and `initramfs.cpio`; and the files of launches.
    pub outputs: Vec<Digest>,
    /// How hosts may start it, where its owner has said so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launches: Vec<Launch>,
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
    /// It has more launches than one image may have.
    #[error("`{path}` has {found} launches, and an image has {LAUNCHES} at most")]
    Launches {
        /// Which.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// A name that leads out of the image.
    #[error("the manifest in `{dir}` lists {name:?}, which is no name of a file in it")]
    Name {
        /// The image's directory.
        dir: PathBuf,
        /// The name.
        name: String,
    },
    /// It lists no file, so that all would be good.
    #[error("the manifest in `{dir}` lists no file; build the image with `make build`")]
    Empty {
        /// The image's directory.
        dir: PathBuf,
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
        Self::parse(dir, &text)
    }

    /// The manifest with these bytes, of the image in a directory.
    ///
    /// # Errors
    /// [`ManifestError`] when it is none that this program knows.
    pub fn parse(dir: &Path, text: &[u8]) -> Result<Self, ManifestError> {
        let path = dir.join(FILE);
        let manifest: Self =
            serde_json::from_slice(text).map_err(|source| ManifestError::Parse {
                path: path.clone(),
                source,
            })?;
        if manifest.version != VERSION {
            let found = manifest.version;
            return Err(ManifestError::Version { path, found });
        }
        let found = manifest.launches.len();
        if found > LAUNCHES {
            return Err(ManifestError::Launches { path, found });
        }
        Ok(manifest)
    }

    /// The manifest as its file has it: the same for the same image.
    ///
    /// # Errors
    /// None that is known; a caller passes it on.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Whether it lists a file.
    #[must_use]
    pub fn lists(&self, name: &str) -> bool {
        self.outputs.iter().any(|output| output.name == name)
    }

    /// Checks that the files beside the manifest are the ones that it describes.
    ///
    /// # Errors
    /// [`ManifestError::Differs`] names the first that is not.
    pub fn verify(&self, dir: &Path) -> Result<(), ManifestError> {
        if self.outputs.is_empty() {
            return Err(ManifestError::Empty {
                dir: dir.to_owned(),
            });
        }
        for output in &self.outputs {
            if !is_inside(&output.name) {
                let (dir, name) = (dir.to_owned(), output.name.clone());
                return Err(ManifestError::Name { dir, name });
            }
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
        if !is_uncounted(&self.number) {
            rows.push(format!("number         {}", self.number));
        }
        for (number, launch) in self.launches.iter().enumerate() {
            rows.push(format!(
                "launch {number:<7} {} by {}",
                launch.tee(),
                launch.firmware()
            ));
        }
        rows.join("\n")
    }
}

/// Whether an image has no number of its own.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_uncounted(number: &u64) -> bool {
    *number == 0
}

/// Whether a file of this name is in the directory that it is looked for in.
fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn kib(bytes: u64) -> u64 {
    bytes.div_ceil(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::{SnpLaunch, TdLaunch, TdShape};

    const OLD: &str = r#"{"version": 1, "kernel": {"flavour": "debian", "release": "6", "packages": []},
        "agent": {"name": "cloister-agent", "sha256": "00", "size": 1}, "modules": [], "outputs": [LISTED]}"#;
    /// A file without content.
    const LISTED: &str = r#"{"name": "vmlinuz", "size": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#;

    fn read(text: &str) -> Result<Manifest, ManifestError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vmlinuz"), "").unwrap();
        fs::write(
            dir.path().join(FILE),
            text.replace("[LISTED]", &format!("[{LISTED}]")),
        )
        .unwrap();
        let manifest = Manifest::read(dir.path())?;
        manifest.verify(dir.path())?;
        Ok(manifest)
    }

    fn launches() -> [Launch; 2] {
        let snp = SnpLaunch {
            firmware: "launch-0/firmware.fd".to_owned(),
            command_line: "quiet".to_owned(),
            vcpus: vec![1, 2],
            cpu_models: vec!["EPYC-v4".to_owned()],
            guest_features: 1,
        };
        let word = |text: &str| text.to_owned();
        let td = TdLaunch {
            firmware: word("launch-1/firmware.fd"),
            command_line: word("quiet"),
            dialect: word("edk2-202508"),
            page_order: word("each-page"),
            kernel_form: word("as-in-file"),
            secure_boot: word("absent"),
            authorities: Vec::new(),
            xfam: Some(word("e702060000000000")),
            rtmr_0: true,
            shapes: vec![TdShape {
                memory_mib: 2048,
                vcpus: Some(2),
                acpi: word("launch-1/acpi-2048-2"),
            }],
        };
        [Launch::Snp(snp), Launch::Tdx(td)]
    }

    #[test]
    fn a_manifest_without_launches_is_read_and_written_as_before() {
        let old = read(OLD).unwrap();
        assert!(old.launches.is_empty());
        let text = String::from_utf8(old.to_bytes().unwrap()).unwrap();
        assert!(!text.contains("launches"), "{text}");
        assert_eq!(read(&text).unwrap(), old);
    }

    #[test]
    fn an_image_without_a_number_has_0_and_is_written_as_before() {
        let mut manifest = read(OLD).unwrap();
        assert_eq!(manifest.number, 0);
        let text = |manifest: &Manifest| String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
        assert!(!text(&manifest).contains("number"));
        manifest.number = u64::MAX;
        assert_eq!(read(&text(&manifest)).unwrap(), manifest);
        assert!(manifest.table().contains(&u64::MAX.to_string()));
        for wrong in ["-1", "1.5", "\"7\"", "18446744073709551616"] {
            let text = OLD.replacen('{', &format!("{{\"number\": {wrong}, "), 1);
            let error = read(&text).unwrap_err();
            assert!(matches!(error, ManifestError::Parse { .. }), "{wrong}");
        }
    }

    #[test]
    fn launches_are_read_as_they_were_written_and_a_member_that_is_missing_is_named() {
        let mut manifest = read(OLD).unwrap();
        manifest.launches = launches().to_vec();
        let text = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(read(&text).unwrap(), manifest);
        let said = |text: &str| {
            let error = read(text).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        };
        for name in ["firmware", "command_line", "vcpus", "dialect", "shapes"] {
            let without = text.replace(&format!("\"{name}\""), "\"other\"");
            assert!(said(&without).contains("other"), "{name}");
        }
        manifest.launches = vec![manifest.launches[0].clone(); LAUNCHES + 1];
        let many = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
        assert!(said(&many).contains("65 launches"));
    }

    #[test]
    fn no_file_outside_of_the_image_is_one_of_it() {
        for name in ["../x", "/x", "a/../../x", ""] {
            let listed = LISTED.replace("vmlinuz", name);
            let error = read(&OLD.replace("LISTED", &listed)).unwrap_err();
            assert!(matches!(error, ManifestError::Name { .. }), "{error}");
        }
    }

    #[test]
    fn an_image_without_files_is_none() {
        let error = read(&OLD.replace("LISTED", "")).unwrap_err();
        assert!(matches!(error, ManifestError::Empty { .. }), "{error}");
    }
}
