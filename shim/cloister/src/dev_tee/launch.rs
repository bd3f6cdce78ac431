//! What a pod's VM was launched with, in the form that its TEE would have measured.
//!
//! A VM under emulation may be started from the ELF file that is in the kernel: that saves seconds. No
//! firmware of a TEE starts one. What is measured then is the bzImage of the same image, whose manifest
//! says of both that they are one kernel.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use guest_image::manifest::Manifest;
use measure::Binding;
use sha2::{Digest, Sha256};
use shim::dev_tee::Launch;

use super::directory::{Directory, FIRMWARE};
use crate::measure::artifact::{INITRAMFS_BYTES, KERNEL, KERNEL_BYTES, listed, read};

/// What an ELF file begins with.
const ELF: &[u8] = b"\x7fELF";

/// All bytes that are measured.
pub(super) struct Booted {
    pub(super) firmware: Vec<u8>,
    pub(super) kernel: Vec<u8>,
    pub(super) initramfs: Option<Vec<u8>>,
    pub(super) launch: Launch,
}

impl Booted {
    pub(super) fn read(launch: Launch, directory: &Directory) -> anyhow::Result<Self> {
        let own = || directory.path(FIRMWARE);
        let firmware = launch.firmware.clone().unwrap_or_else(own);
        let initramfs = launch.initrd.as_ref();
        let initramfs = initramfs
            .map(|path| read(path, INITRAMFS_BYTES))
            .transpose()?;
        Ok(Self {
            firmware: read(&firmware, measure::snp::FIRMWARE_BYTES)?,
            kernel: kernel(&launch.kernel)?,
            initramfs,
            launch,
        })
    }

    /// What the launch bound, as the hardware would have it.
    pub(super) fn bound(&self, tee: evidence::Tee) -> Binding {
        Binding::of(tee, self.launch.init_data.as_ref())
    }
}

fn kernel(path: &Path) -> anyhow::Result<Vec<u8>> {
    let booted = read(path, KERNEL_BYTES)?;
    if !booted.starts_with(ELF) {
        return Ok(booted);
    }
    let dir: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    let said = || {
        format!(
            "{} is an ELF file, which no TEE's firmware starts: it is measured by the {KERNEL} of its image",
            path.display()
        )
    };
    let manifest = Manifest::read(&dir).with_context(said)?;
    let digest = hex::encode(Sha256::digest(&booted));
    let known = manifest
        .outputs
        .iter()
        .any(|output| output.sha256 == digest);
    ensure!(known, "{}, whose manifest does not know it", said());
    listed(&dir, &manifest, KERNEL, KERNEL_BYTES).with_context(said)
}
