//! Boots the test guest: the kernel and modules of a guest image, with `guest/init.rs` in the place
//! of the agent. Linux unpacks several archives in a row, so the test's own is put after the image's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hypervisor::{Accel, Exit, Incoming, Machine, Vm, VmSpec, VsockStream};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

/// Longest wait for a guest under emulation on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// A guest whose services are up.
pub(crate) struct Guest {
    pub(crate) vm: Vm,
    pub(crate) incoming: Incoming,
    /// The line by which the guest said so.
    pub(crate) ready: String,
    _control: BufReader<VsockStream>,
    _dir: tempfile::TempDir,
}

/// A spec with the directory that its files are in.
pub(crate) struct Spec {
    pub(crate) vm: VmSpec,
    dir: tempfile::TempDir,
}

/// The spec of the test guest, or `None` with a message where a part is absent.
pub(crate) fn spec(machine: Machine) -> Option<Spec> {
    let Some(image) = image() else {
        return skip("no guest image: build target/guest, or set CLOISTER_GUEST_DIR");
    };
    if Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_err()
    {
        return skip("no qemu-system-x86_64 in PATH");
    }
    let dir = tempfile::tempdir().unwrap();
    let init = build_init(dir.path());
    let initrd = dir.path().join("initrd");
    let mut bytes = fs::read(image.join("initramfs.cpio")).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(archive(&fs::read(init).unwrap()));
    fs::write(&initrd, bytes).unwrap();
    let mut vm = VmSpec::new("test-guest", &image.join("vmlinux"), dir.path());
    vm.machine = machine;
    vm.accel = Accel::Auto;
    vm.initrd = Some(initrd);
    Some(Spec { vm, dir })
}

/// Boots a guest and waits until it said that it is ready.
pub(crate) async fn boot(machine: Machine, change: impl FnOnce(&mut VmSpec)) -> Option<Guest> {
    let Spec { mut vm, dir } = spec(machine)?;
    change(&mut vm);
    let start = Instant::now();
    let mut vm = Vm::boot(vm).await.unwrap();
    let mut incoming = vm.incoming().unwrap();
    let control = match timeout(BOOT_TIMEOUT, incoming.accept()).await {
        Ok(Some(control)) => control.unwrap(),
        other => panic!("{other:?}; console: {}", vm.console_tail()),
    };
    let mut control = BufReader::new(control);
    let mut ready = String::new();
    control.read_line(&mut ready).await.unwrap();
    eprintln!(
        "{machine:?} guest ready after {:?} ({:?})\n  {ready}",
        start.elapsed(),
        vm.timings()
    );
    Some(Guest {
        vm,
        incoming,
        ready,
        _control: control,
        _dir: dir,
    })
}

/// Boots a guest, lets it end in one way, and returns how it ended.
pub(crate) async fn boot_ended(machine: Machine, way: &str) -> Option<Exit> {
    let guest = boot(machine, |_| {}).await?;
    guest.tell_end(way).await;
    Some(
        timeout(Duration::from_secs(30), guest.vm.wait())
            .await
            .unwrap(),
    )
}

impl Guest {
    /// Says a line to a service and returns its answer.
    pub(crate) async fn ask(&self, port: u32, line: &str) -> String {
        let mut stream = self.vm.connect(port).await.unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(30), stream.read_to_string(&mut answer))
            .await
            .expect("stalled")
            .unwrap();
        answer.trim().to_owned()
    }

    /// Sends bytes and their end; returns the guest's count.
    pub(crate) async fn send(&self, bytes: &[u8]) -> String {
        let mut stream = self.vm.connect(9).await.unwrap();
        let mut answer = String::new();
        let exchange = async {
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        };
        timeout(Duration::from_secs(60), exchange)
            .await
            .expect("stalled");
        answer.trim().to_owned()
    }

    pub(crate) async fn power_off(&self) {
        self.tell_end("poweroff").await;
    }

    async fn tell_end(&self, way: &str) {
        let mut stream = self.vm.connect(23).await.unwrap();
        stream
            .write_all(format!("{way}\n").as_bytes())
            .await
            .unwrap();
        // The guest's answer is its end.
        let _ = stream.read_u8().await;
    }
}

/// What the guest's services send.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| u8::try_from(index % 251).unwrap())
        .collect()
}

fn image() -> Option<PathBuf> {
    let dir = match std::env::var_os("CLOISTER_GUEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
    };
    ["vmlinux", "initramfs.cpio"]
        .iter()
        .all(|name| dir.join(name).is_file())
        .then_some(dir)
}

fn skip<T>(reason: &str) -> Option<T> {
    assert!(
        std::env::var_os("CLOISTER_NO_SKIP").is_none(),
        "skipping is not allowed: {reason}"
    );
    eprintln!("skipped: {reason}");
    None
}

fn build_init(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs");
    let program = dir.join("init");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "-o",
        ])
        .arg(&program)
        .arg(source)
        .status();
    assert!(built.unwrap().success(), "the guest's init does not build");
    program
}

/// A cpio archive of the `newc` form with one file.
fn archive(init: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, mode, content) in [("init", 0o100_755, init), ("TRAILER!!!", 0, &[][..])] {
        let fields = [
            1,
            mode,
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
        bytes.extend(b"070701");
        bytes.extend(
            fields
                .iter()
                .flat_map(|field| format!("{field:08X}").into_bytes()),
        );
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
