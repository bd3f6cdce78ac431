//! What is measured: firmware, kernel, initramfs and command line, from a guest image or file by file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use guest_image::manifest::Manifest;
use measure::snp::{FIRMWARE_BYTES, Firmware, IGVM_BYTES, Igvm, KernelHashes, LaunchDigest};
use sha2::{Digest, Sha256};

use super::line::Configured;
use super::start::{Start, Vmm};
use super::{Input, Kind};

/// Bytes of a kernel.
pub(crate) const KERNEL_BYTES: usize = 256 << 20;
/// Bytes of an initramfs.
pub(crate) const INITRAMFS_BYTES: usize = 1 << 30;
/// The files of a guest image that QEMU is given for direct boot.
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const INITRAMFS: &str = "initramfs.cpio";

#[derive(Debug, Clone, Args)]
pub(super) struct Artifacts {
    /// The firmware: an OVMF image that can start such guests: OVMF.amdsev.fd, OVMF.inteltdx.fd. Without it and
    /// without an IGVM file the launches in the image's manifest are measured.
    #[arg(long, value_name = "FILE", group = "start", required_unless_present_any = ["image", "igvm"])]
    firmware: Option<PathBuf>,
    /// The IGVM file that an SEV-SNP guest starts from, in place of firmware: it holds that, and for QEMU the page of
    /// hashes of what is booted.
    #[arg(
        long,
        value_name = "FILE",
        group = "start",
        conflicts_with_all = ["firmware_digest", "id_key", "try_firmware"]
    )]
    igvm: Option<PathBuf>,
    /// Who launches.
    #[arg(long, value_enum, default_value = "qemu")]
    vmm: Vmm,
    /// The digest of a launch after the firmware's pages, where FILE is only the end of the firmware.
    #[arg(
        long,
        value_name = "HEX",
        requires = "firmware",
        conflicts_with = "dialect"
    )]
    firmware_digest: Option<LaunchDigest>,
    /// The directory of a guest image, whose kernel and initramfs are booted.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "initrd"])]
    image: Option<PathBuf>,
    /// The image's manifest, where it was read and judged before.
    #[arg(skip)]
    manifest: Option<Manifest>,
    /// The firmware's name in the image, where the manifest says it.
    #[arg(skip)]
    recorded_firmware: Option<String>,
    /// The kernel, a bzImage.
    #[arg(long, value_name = "FILE", requires = "line")]
    kernel: Option<PathBuf>,
    /// The initramfs.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// A launch without hashes (kernel-hashes=off), whose digest says nothing of what is booted.
    #[arg(
        long,
        required_unless_present_any = ["image", "kernel"],
        conflicts_with_all = ["image", "kernel", "line", "dialect"]
    )]
    no_kernel: bool,
    /// The kernel's command line, to the letter; an empty one is "".
    #[arg(long, value_name = "TEXT", group = "line", requires = "start")]
    append: Option<String>,
    /// The configuration of the shim, Kata's or Cloister's, whose pods are launched: their command line is
    /// measured. No file that it names is read.
    #[arg(long, value_name = "FILE", group = "line", requires = "start")]
    config: Option<Configured>,
    /// Another firmware that --explain tries.
    #[arg(long, value_name = "FILE", requires = "explain")]
    try_firmware: Vec<PathBuf>,
    /// Another command line that --explain tries.
    #[arg(long, value_name = "TEXT", requires_all = ["explain", "line"])]
    try_append: Vec<String>,
}

/// Firmware and kernel of a launch, with what tells them from others in words.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) start: Start,
    pub(super) kernel: Option<KernelHashes>,
    pub(super) words: Vec<String>,
}

/// What is booted.
pub(super) struct Boot {
    /// The kernel's file.
    path: PathBuf,
    pub(super) kernel: Vec<u8>,
    pub(super) initramfs: Option<Vec<u8>>,
}

impl Artifacts {
    /// The firmware's file.
    pub(super) fn firmware_bytes(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.image, &self.recorded_firmware) {
            (Some(dir), Some(name)) => listed(dir, &self.manifest(dir)?, name, FIRMWARE_BYTES),
            _ => read(self.firmware_path()?, FIRMWARE_BYTES),
        }
    }

    /// The same, where it is all that there is of the firmware, as an image records it.
    pub(super) fn whole_firmware(&self) -> anyhow::Result<Vec<u8>> {
        ensure!(
            self.igvm.is_none(),
            "--igvm: an image records launches by firmware alone; give the file to `cloister measure` and \
             `cloister image-set publish`, which take --igvm beside --image"
        );
        ensure!(
            self.firmware_digest.is_none(),
            "--firmware-digest stands for a part of the firmware: give the whole file"
        );
        self.firmware_bytes()
    }

    /// Whether flags say what is launched, and the image's manifest does not.
    pub(super) fn is_given(&self) -> bool {
        self.firmware.is_some() || self.igvm.is_some()
    }

    /// Whether what is said of a launch of this kind is all that has to be, and of this kind.
    pub(super) fn check(&self, kind: Kind) -> anyhow::Result<()> {
        self.vmm.check(kind, self.igvm.is_some())?;
        ensure!(
            self.try_append.is_empty() || !self.brings_hashes(),
            "--try-append: QEMU adds nothing to an IGVM file, whose digest is the same with every command line"
        );
        let has_line = self.append.is_some() || self.config.is_some();
        ensure!(
            has_line || self.image.is_none() || !self.is_given(),
            "the kernel's command line is missing: give --config, or --append with it to the letter"
        );
        let configured = self.config.as_ref();
        configured.map_or(Ok(()), |configured| configured.check(kind))
    }

    /// Whether the page of hashes is the IGVM file's, so that its digest is the same whatever is booted.
    fn brings_hashes(&self) -> bool {
        self.igvm.is_some() && self.vmm == Vmm::Qemu
    }

    /// Whether a model of vCPUs counts: in what Cloud Hypervisor starts none does.
    pub(super) fn has_models(&self) -> bool {
        self.vmm == Vmm::Qemu
    }

    /// From now on this is the image's manifest, whatever becomes of the file.
    pub(super) fn trust(&mut self, manifest: Manifest) {
        self.manifest = Some(manifest);
    }

    /// The manifest of the image in this directory.
    pub(super) fn manifest(&self, dir: &Path) -> anyhow::Result<Manifest> {
        match &self.manifest {
            Some(manifest) => Ok(manifest.clone()),
            None => Ok(Manifest::read(dir)?),
        }
    }

    /// The same image with this manifest, launched by a firmware of it with a command line.
    pub(super) fn launched(
        &self,
        dir: &Path,
        manifest: &Manifest,
        firmware: &str,
        command_line: &str,
    ) -> Self {
        Self {
            firmware: Some(dir.join(firmware)),
            recorded_firmware: Some(firmware.to_owned()),
            manifest: Some(manifest.clone()),
            append: Some(command_line.to_owned()),
            ..self.clone()
        }
    }

    /// The same image, launched by this firmware with a command line.
    pub(super) fn with(&self, firmware: &Path, command_line: &str) -> Self {
        Self {
            firmware: Some(firmware.to_owned()),
            append: Some(command_line.to_owned()),
            ..self.clone()
        }
    }

    /// What is launched, with one input of another launch. All is read as loose files then, since no manifest
    /// lists such a mixture.
    pub(super) fn exchanged(&self, input: Input, other: &Self) -> Self {
        let (mut mixed, other) = (self.loose(), other.loose());
        match input {
            Input::Firmware => mixed.firmware = other.firmware,
            Input::Kernel => mixed.kernel = other.kernel,
            Input::Initramfs => mixed.initrd = other.initrd,
            Input::CommandLine => mixed.append = other.append,
            Input::GuestFeatures
            | Input::Generation
            | Input::PageOrder
            | Input::KernelForm
            | Input::SecureBoot
            | Input::Tables => {}
        }
        mixed
    }

    fn loose(&self) -> Self {
        let of_image = |name: &str| self.image.as_ref().map(|dir| dir.join(name));
        Self {
            kernel: of_image(KERNEL).or_else(|| self.kernel.clone()),
            initrd: of_image(INITRAMFS).or_else(|| self.initrd.clone()),
            append: Some(self.line().to_owned()),
            image: None,
            manifest: None,
            recorded_firmware: None,
            ..self.clone()
        }
    }

    /// Files of firmware that `--explain` tries.
    pub(super) fn other_images(
        &self,
    ) -> impl Iterator<Item = anyhow::Result<(&Path, Vec<u8>)>> + '_ {
        let paths = self.try_firmware.iter();
        paths.map(|path| Ok((path.as_path(), read(path, FIRMWARE_BYTES)?)))
    }

    pub(super) fn image(&self) -> Option<&Path> {
        self.image.as_deref()
    }

    /// # Errors
    /// Where an IGVM file stands in its place, of which only SEV-SNP guests start.
    pub(super) fn firmware_path(&self) -> anyhow::Result<&Path> {
        let path = self.firmware.as_deref();
        path.context("--igvm is of SEV-SNP guests: QEMU loads none into a TD, so give --firmware")
    }

    /// The command line.
    pub(super) fn line(&self) -> &str {
        let configured = self
            .config
            .as_ref()
            .map(|configured| configured.line.as_str());
        self.append.as_deref().or(configured).unwrap_or_default()
    }

    /// Command lines that `--explain` tries.
    pub(super) fn other_lines(&self) -> &[String] {
        &self.try_append
    }

    pub(super) fn read(&self) -> anyhow::Result<(Start, Option<KernelHashes>)> {
        Ok((self.start()?, self.kernel()?))
    }

    fn start(&self) -> anyhow::Result<Start> {
        if let Some(path) = &self.igvm {
            let file = Igvm::parse(&read(path, IGVM_BYTES)?, self.vmm.into());
            let file = file.with_context(|| path.display().to_string())?;
            return Ok(Start::Igvm(Box::new(file)));
        }
        let path = self.firmware_path()?;
        let image = self.firmware_bytes()?;
        let mut firmware = Firmware::parse(&image).with_context(|| path.display().to_string())?;
        if let Some(digest) = self.firmware_digest {
            firmware = firmware.with_digest(digest);
        }
        Ok(Start::Firmware(Box::new(firmware)))
    }

    /// What is measured, and then all that might have been launched in its place.
    pub(super) fn candidates(&self) -> anyhow::Result<Vec<Candidate>> {
        let (start, kernel) = self.read()?;
        let words = Vec::new();
        let mut lines = vec![Candidate {
            start,
            kernel,
            words,
        }];
        let first = lines[0].clone();
        if let Some(kernel) = first.kernel.as_ref().filter(|_| !self.brings_hashes()) {
            for line in &self.try_append {
                lines.push(Candidate {
                    kernel: Some(kernel.clone().with_command_line(line)?),
                    words: vec![format!("command line `{line}`")],
                    ..first.clone()
                });
            }
            lines.push(Candidate {
                kernel: None,
                words: vec!["kernel-hashes off: it says nothing of what was booted".to_owned()],
                ..first.clone()
            });
        }
        let mut all = lines.clone();
        for path in &self.try_firmware {
            let firmware = Firmware::parse(&read(path, FIRMWARE_BYTES)?)
                .with_context(|| path.display().to_string())?;
            for line in &lines {
                let mut words = vec![format!("firmware {}", path.display())];
                words.extend(line.words.iter().cloned());
                all.push(Candidate {
                    start: Start::Firmware(Box::new(firmware.clone())),
                    kernel: line.kernel.clone(),
                    words,
                });
            }
        }
        Ok(all)
    }

    fn kernel(&self) -> anyhow::Result<Option<KernelHashes>> {
        let Some(boot) = self.boot()? else {
            return Ok(None);
        };
        let initramfs = boot.initramfs.as_deref();
        let hashes = KernelHashes::by(self.vmm.into(), &boot.kernel, initramfs, self.line());
        let said = || boot.path.display().to_string();
        hashes.map(Some).with_context(said)
    }

    /// Kernel and initramfs, where there are some.
    pub(super) fn boot(&self) -> anyhow::Result<Option<Boot>> {
        let (path, kernel, initramfs) = match (&self.image, &self.kernel) {
            (Some(dir), _) => {
                let manifest = self.manifest(dir)?;
                let file = |name, most| listed(dir, &manifest, name, most);
                let initramfs = Some(file(INITRAMFS, INITRAMFS_BYTES)?);
                (dir.join(KERNEL), file(KERNEL, KERNEL_BYTES)?, initramfs)
            }
            (None, Some(path)) => {
                let initrd = self.initrd.as_deref();
                let initramfs = initrd.map(|path| read(path, INITRAMFS_BYTES)).transpose()?;
                (path.clone(), read(path, KERNEL_BYTES)?, initramfs)
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Boot {
            path,
            kernel,
            initramfs,
        }))
    }
}

/// A file of an image, if it is the one that was built.
pub(crate) fn listed(
    dir: &Path,
    manifest: &Manifest,
    name: &str,
    most: usize,
) -> anyhow::Result<Vec<u8>> {
    let path = dir.join(name);
    let mut outputs = manifest.outputs.iter();
    let listed = outputs
        .find(|output| output.name == name)
        .with_context(|| {
            format!(
                "the manifest in {} lists no {name}: build the image anew",
                dir.display()
            )
        })?;
    let content = read(&path, most)?;
    let found = hex::encode(Sha256::digest(&content));
    ensure!(
        found == listed.sha256,
        "{} has digest {found}, and its manifest says {}: build the image anew",
        path.display(),
        listed.sha256
    );
    Ok(content)
}

/// A file of at most so many bytes.
pub(crate) fn read(path: &Path, most: usize) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let cap = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)
        .and_then(|file| file.take(cap).read_to_end(&mut content))
        .with_context(|| format!("read {}", path.display()))?;
    ensure!(
        content.len() <= most,
        "{} has more than {most} bytes",
        path.display()
    );
    Ok(content)
}
