//! A guest that a real QEMU boots with real OVMF and a software TPM, and the log that firmware and kernel
//! wrote meanwhile. On a TD the same events extend RTMRs in place of PCRs.
//!
//! Its kernel is the guest image's; its initramfs has one program, which prints the log.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use evidence::eventlog::{DigestAlgorithm, EventKind, EventLog};

pub(crate) const COMMAND_LINE: &str =
    "console=ttyS0 reboot=t panic=-1 quiet cryptomgr.notests no_timer_check mitigations=off";
/// 512 MiB.
pub(crate) const MEMORY: u64 = 512 << 20;
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t securityfs securityfs /sys/kernel/security
exec >/dev/ttyS0 2>&1
echo LOG BEGINS
/bin/busybox od -An -v -tx1 /sys/kernel/security/tpm0/binary_bios_measurements
echo LOG ENDS
/bin/busybox reboot -f
";

/// A QEMU and its firmware.
pub(crate) struct Platform {
    pub(crate) qemu: PathBuf,
    pub(crate) firmware: PathBuf,
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
        }
    }

    /// The newest, which `.ci/setup` keeps.
    pub(crate) fn newest() -> Self {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/qemu/testing");
        Self {
            qemu: kept.join("qemu-system-x86_64"),
            firmware: kept.join("root/usr/share/ovmf/OVMF.fd"),
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

    /// Boots, and gives the events of the log.
    pub(crate) fn boot(&self, kernel: &Path, initramfs: &[u8]) -> Vec<Logged> {
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
        events(&console).unwrap_or_else(|| panic!("no log on the console: {console}{told}"))
    }
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

/// The events of the log between the two lines of a console.
fn events(console: &str) -> Option<Vec<Logged>> {
    let (_, rest) = console.split_once("LOG BEGINS")?;
    let (text, _) = rest.split_once("LOG ENDS")?;
    let bytes = text
        .split_ascii_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).ok());
    let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
    let log = EventLog::parse(&bytes).unwrap();
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

const BUSYBOX: &str = "/bin/busybox";

/// An initramfs whose program prints the log.
pub(crate) fn initramfs() -> Vec<u8> {
    let busybox = fs::read(BUSYBOX).unwrap();
    let mut archive = Vec::new();
    for name in ["bin", "dev", "sys"] {
        entry(&mut archive, name, 0o40755, b"");
    }
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, INIT.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, b"");
    archive
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
