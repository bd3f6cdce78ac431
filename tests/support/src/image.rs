//! OCI images made by hand: busybox and a marker, written as a layout that any tool can push.
//!
//! Written here and not with a build tool, so that every byte is known and the same each time.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where Debian's `busybox-static` has its program.
pub const BUSYBOX: &str = "/bin/busybox";

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Layers, lowest first: each a list of path, mode and content.
    pub layers: Vec<Vec<Entry>>,
    /// The image's entry point.
    pub entrypoint: Vec<String>,
    /// Arguments when none are given.
    pub cmd: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// `user`, `uid:gid`, or empty.
    pub user: String,
    /// Working directory.
    pub dir: String,
}

/// One thing in a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Path, mode, content.
    File(String, u32, Vec<u8>),
    /// Path.
    Dir(String),
    /// Path and what it points at.
    Link(String, String),
}

impl Recipe {
    /// busybox with the applets a test needs, `/etc/passwd`, and `/marker` holding `marker` in a
    /// layer of its own.
    ///
    /// # Errors
    /// When busybox is not installed.
    pub fn busybox(marker: &str) -> Result<Self> {
        let program = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
        let mut base = vec![
            Entry::Dir("bin".into()),
            Entry::Dir("etc".into()),
            Entry::Dir("tmp".into()),
            Entry::Dir("proc".into()),
            Entry::Dir("sys".into()),
            Entry::Dir("dev".into()),
            Entry::File("bin/busybox".into(), 0o755, program),
            Entry::File(
                "etc/passwd".into(),
                0o644,
                b"root:x:0:0:root:/:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n".to_vec(),
            ),
            Entry::File(
                "etc/group".into(),
                0o644,
                b"root:x:0:\nguest:x:1000:\n".to_vec(),
            ),
        ];
        for applet in APPLETS {
            base.push(Entry::Link(format!("bin/{applet}"), "busybox".into()));
        }
        let marked = vec![Entry::File(
            "marker".into(),
            0o644,
            format!("{marker}\n").into_bytes(),
        )];
        Ok(Self {
            layers: vec![base, marked],
            entrypoint: Vec::new(),
            cmd: ["/bin/cat", "/marker"].map(str::to_owned).to_vec(),
            env: vec!["PATH=/bin".to_owned(), "FROM_IMAGE=yes".to_owned()],
            user: String::new(),
            dir: "/".to_owned(),
        })
    }

    /// Writes the image as an OCI layout with tag `latest` and answers skopeo's name of it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, layout: &Path) -> Result<String> {
        let blobs = layout.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let tar = tarball(layer)?;
            diff_ids.push(digest(&tar));
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&tar)?;
            layers.push(blob(
                &blobs,
                "application/vnd.oci.image.layer.v1.tar+gzip",
                &gzip.finish()?,
            )?);
        }
        let config = blob(
            &blobs,
            "application/vnd.oci.image.config.v1+json",
            &self.config(&diff_ids),
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let mut entry = blob(
            &blobs,
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )?;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(layout.join("index.json"), index.to_string())?;
        std::fs::write(
            layout.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        Ok(format!("oci:{}:latest", layout.display()))
    }

    /// Unpacks the layers below `root`, for containers whose root file system the host provides.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn unpack(&self, root: &Path) -> Result<()> {
        for layer in &self.layers {
            tar::Archive::new(tarball(layer)?.as_slice()).unpack(root)?;
        }
        Ok(())
    }

    fn config(&self, diff_ids: &[String]) -> Vec<u8> {
        json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.cmd,
                "Env": self.env,
                "User": self.user,
                "WorkingDir": self.dir,
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes()
    }
}

const APPLETS: &[&str] = &[
    "cat", "dd", "df", "echo", "env", "false", "free", "grep", "head", "hostname", "id", "kill",
    "ls", "mount", "ps", "pwd", "sh", "sleep", "stat", "stty", "sync", "tail", "test", "touch",
    "true", "tty", "wc",
];

fn tarball(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::File(path, mode, content) => {
                header.set_mode(*mode);
                header.set_size(u64::try_from(content.len())?);
                header.set_entry_type(tar::EntryType::Regular);
                tar.append_data(&mut header, path, content.as_slice())?;
            }
            Entry::Dir(path) => {
                header.set_mode(if path == "tmp" { 0o1777 } else { 0o755 });
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::Link(path, target) => {
                header.set_mode(0o777);
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

fn blob(blobs: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let digest = digest(content);
    let file: PathBuf = blobs.join(digest.trim_start_matches("sha256:"));
    std::fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
}

/// `sha256:<hex>` of some bytes.
#[must_use]
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}
