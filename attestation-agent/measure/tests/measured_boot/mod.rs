//! A guest that a real QEMU boots with real OVMF and a software TPM, the log that firmware and kernel wrote
//! meanwhile, and the files that make the ACPI tables. On a TD the same events extend RTMRs in place of PCRs.
//!
//! Its kernel is the guest image's; its initramfs has one program, which prints the log and the files.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use evidence::eventlog::{DigestAlgorithm, EventKind, EventLog};
use measure::tdx::Acpi;
use support::product;

pub(crate) const COMMAND_LINE: &str =
    "console=ttyS0 reboot=t panic=-1 quiet cryptomgr.notests no_timer_check mitigations=off";
/// 512 MiB.
pub(crate) const MEMORY: u64 = 512 << 20;
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
const BUSYBOX: &str = "/bin/busybox";
/// The kernel's driver for fw_cfg, among its modules where it is one.
const FW_CFG: &str = "modules/drivers/firmware/qemu_fw_cfg.ko.xz";
/// The list of the tables' files, in fw_cfg.
const LOADER: &str = "etc/table-loader";
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t securityfs securityfs /sys/kernel/security
exec >/dev/ttyS0 2>&1
[ ! -e /fw_cfg.ko ] || /bin/busybox insmod /fw_cfg.ko
show() {
    echo $1 BEGINS
    /bin/busybox od -An -v -tx1 $2
    echo $1 ENDS
}
show log /sys/kernel/security/tpm0/binary_bios_measurements
for name in etc/table-loader etc/acpi/rsdp etc/acpi/tables etc/tpm/log; do
    show $name /sys/firmware/qemu_fw_cfg/by_name/$name/raw
done
show dmi /sys/firmware/dmi/tables/DMI
/bin/busybox reboot -f
";

/// A QEMU and its firmware.
pub(crate) struct Platform {
    pub(crate) qemu: PathBuf,
    pub(crate) firmware: PathBuf,
    /// Whether this firmware measures ACPI tables, as edk2 does since stable202302.
    pub(crate) measures_acpi: bool,
    /// Whether it measures SMBIOS' tables, as edk2 does since stable202505.
    pub(crate) measures_smbios: bool,
}

/// What a boot leaves.
pub(crate) struct Boot {
    pub(crate) log: Vec<Logged>,
    /// `etc/table-loader` as the guest has it in fw_cfg, and the files that it asks for, in its order.
    pub(crate) loader: Vec<u8>,
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// SMBIOS' tables as the kernel found them.
    pub(crate) smbios: Vec<u8>,
}

/// An event: the register as logs of TDs count, its kind, and the SHA-384 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) pcr: u32,
    pub(crate) kind: EventKind,
    pub(crate) digest: [u8; 48],
}

impl Platform {
    /// The installed one: Debian 12's.
    pub(crate) fn installed() -> Self {
        Self {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            firmware: "/usr/share/ovmf/OVMF.fd".into(),
            measures_acpi: false,
            measures_smbios: false,
        }
    }

    /// Debian 13's, which `.ci/setup` keeps.
    pub(crate) fn next() -> Self {
        Self::kept("trixie", false)
    }

    /// The newest, which it keeps as well.
    pub(crate) fn newest() -> Self {
        Self::kept("testing", true)
    }

    fn kept(suite: &str, measures_smbios: bool) -> Self {
        let kept = product::top().join(".cache/qemu").join(suite);
        Self {
            qemu: kept.join("qemu-system-x86_64"),
            firmware: kept.join("root/usr/share/ovmf/OVMF.fd"),
            measures_acpi: true,
            measures_smbios,
        }
    }

    /// What lacks for a boot; `None` where nothing does.
    pub(crate) fn lacks(&self, kernel: &Path) -> Option<String> {
        let needed = [
            self.qemu.as_path(),
            &self.firmware,
            kernel,
            Path::new("/usr/bin/swtpm"),
            Path::new(BUSYBOX),
        ];
        let absent = needed.iter().find(|path| !path.exists())?;
        let text = format!(
            "no {}: .ci/setup and `make guest` provide it",
            absent.display()
        );
        assert!(std::env::var_os("CLOISTER_NO_SKIP").is_none(), "{text}");
        Some(text)
    }

    /// Boots, and gives what that leaves.
    pub(crate) fn boot(&self, kernel: &Path, initramfs: &[u8]) -> Boot {
        let dir = tempfile::tempdir().unwrap();
        let initrd = dir.path().join("initrd");
        fs::write(&initrd, initramfs).unwrap();
        let socket = dir.path().join("tpm");
        let tpm = Ended(tpm(dir.path(), &socket));
        let output = Command::new(&self.qemu)
            .args([
                "-machine",
                "q35,smm=off",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
            ])
            .arg(format!("{}M", MEMORY >> 20))
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            .args(["-serial", "stdio", "-device", "tpm-crb,tpmdev=tpm"])
            .args(["-tpmdev", "emulator,id=tpm,chardev=tpm", "-chardev"])
            .arg(format!("socket,id=tpm,path={}", socket.display()))
            .arg("-bios")
            .arg(&self.firmware)
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", COMMAND_LINE])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        drop(tpm);
        let console = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = String::from_utf8_lossy(&output.stderr);
        Boot::of(&console).unwrap_or_else(|| panic!("not all is on the console: {console}{told}"))
    }
}

impl Boot {
    /// What the guest printed.
    fn of(console: &str) -> Option<Self> {
        let loader = printed(console, LOADER)?;
        let asked = Acpi::asked(&loader).unwrap();
        let files = asked
            .into_iter()
            .map(|name| printed(console, &name).map(|file| (name, file)));
        Some(Self {
            log: events(&printed(console, "log")?)?,
            files: files.collect::<Option<_>>()?,
            smbios: printed(console, "dmi")?,
            loader,
        })
    }
}

/// The bytes between the two lines of this name.
fn printed(console: &str, name: &str) -> Option<Vec<u8>> {
    let (_, rest) = console.split_once(&format!("{name} BEGINS"))?;
    let (text, _) = rest.split_once(&format!("{name} ENDS"))?;
    let bytes = text
        .split_ascii_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.collect()
}

/// Firmware of this name, of the newest release that `.ci/setup` keeps; nothing where tests may be skipped.
pub(crate) fn kept_firmware(name: &str) -> Option<Vec<u8>> {
    let path = Platform::newest().firmware.with_file_name(name);
    let found = fs::read(&path).ok();
    if found.is_none() {
        support::skip(&format!("needs {}; `.ci/setup` fetches it", path.display()));
    }
    found
}

/// A process that ends with its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tpm(dir: &Path, socket: &Path) -> Child {
    let child = Command::new("/usr/bin/swtpm")
        .args(["socket", "--tpm2", "--flags", "startup-clear", "--tpmstate"])
        .arg(format!("dir={}", dir.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", socket.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while !socket.exists() {
        assert!(since.elapsed() < SOCKET_TIMEOUT, "swtpm has no socket");
        sleep(Duration::from_millis(20));
    }
    child
}

/// The events of a log.
fn events(bytes: &[u8]) -> Option<Vec<Logged>> {
    let log = EventLog::parse(bytes).unwrap();
    let logged = log.events().iter().map(|event| {
        let mut digests = event.digests.iter();
        let digest = digests.find(|digest| digest.algorithm == DigestAlgorithm::Sha384);
        Some(Logged {
            pcr: event.index,
            kind: event.kind,
            digest: digest?.digest.try_into().ok()?,
        })
    });
    logged.collect()
}

/// An initramfs for this kernel, whose program prints log and files.
pub(crate) fn initramfs(kernel: &[u8]) -> Vec<u8> {
    let busybox = fs::read(BUSYBOX).unwrap();
    let mut archive = Vec::new();
    for name in ["bin", "dev", "sys"] {
        entry(&mut archive, name, 0o40755, b"");
    }
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, INIT.as_bytes());
    if let Some(module) = module(kernel) {
        entry(&mut archive, "fw_cfg.ko", 0o100_644, &module);
    }
    entry(&mut archive, "TRAILER!!!", 0, b"");
    archive
}

/// The driver for fw_cfg of this kernel, from the directory that the kernel was taken from; none where it is
/// built in.
fn module(kernel: &[u8]) -> Option<Vec<u8>> {
    let kernels = fs::read_dir(product::top().join(".cache/guest-kernel")).ok()?;
    let mut places = kernels.flatten().map(|place| place.path());
    let place = places.find(|it| fs::read(it.join("vmlinuz")).is_ok_and(|it| it == kernel))?;
    let packed = fs::File::open(place.join(FW_CFG)).ok()?;
    let mut unpack = Command::new("xz");
    let unpacked = unpack.arg("-dc").stdin(packed).output().unwrap();
    assert!(unpacked.status.success(), "{unpacked:?}");
    Some(unpacked.stdout)
}

/// One file of an archive (cpio's `newc`).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    let numbers = [
        archive.len(),
        mode as usize,
        0,
        0,
        1,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.write_all(b"070701").unwrap();
    for number in numbers {
        write!(archive, "{number:08x}").unwrap();
    }
    write!(archive, "{name}\0").unwrap();
    pad(archive);
    archive.extend(content);
    pad(archive);
}
