//! The generated machine is one that the installed QEMU takes: it starts, without running the
//! guest, and answers on its control socket.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::json;
use tokio::net::UnixStream;

use super::{Facts, VsockDevice, arguments};
use crate::accel::Resolved;
use crate::console;
use crate::disk::{Disks, HotDisk};
use crate::growth::{self, Growth, Hotplug, Size};
use crate::qmp::Qmp;
use crate::spec::{CheckedSpec, Disk, DiskFormat, Machine, Scratch, VmSpec};
use crate::supervise::{Launch, Status, spawn};
use crate::vsock::UserDevice;

#[tokio::test(flavor = "multi_thread")]
async fn qemu_takes_the_generated_q35() {
    is_taken(Machine::Q35).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_takes_the_generated_microvm() {
    is_taken(Machine::Microvm).await;
}

async fn is_taken(machine: Machine) {
    let found = std::process::Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .is_ok();
    if !found {
        assert!(
            std::env::var_os("CLOISTER_NO_SKIP").is_none(),
            "no qemu-system-x86_64 in PATH"
        );
        eprintln!("skipped: no qemu-system-x86_64 in PATH");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(machine, dir.path());
    let (incoming, _receiver) = tokio::sync::mpsc::channel(1);
    let (_device, vsock) = UserDevice::start(dir.path(), 1030, incoming).unwrap();
    let (qmp, qmp_end) = std::os::unix::net::UnixStream::pair().unwrap();
    let (_console, console_end) = std::os::unix::net::UnixStream::pair().unwrap();
    qmp.set_nonblocking(true).unwrap();
    let scratch = tempfile::tempfile_in(dir.path()).unwrap();
    scratch.set_len(1 << 20).unwrap();
    let facts = Facts {
        accel: Resolved::Tcg,
        tsc_khz: Some(2_000_000),
        vsock: VsockDevice::User {
            fd: vsock.as_raw_fd(),
        },
        host_port: 1030,
        qmp_fd: qmp_end.as_raw_fd(),
        console_fd: console_end.as_raw_fd(),
        scratch_fd: Some(scratch.as_raw_fd()),
        cards: Vec::new(),
        memory_encryption: None,
    };
    let mut words: Vec<OsString> = arguments(&spec, &facts)
        .into_iter()
        .map(Into::into)
        .collect();
    // As under KVM, where processors are plugged in.
    if let Some(at) = words.iter().position(|word| word == "-smp") {
        words[at + 1] = growth::processors(spec.spec(), Resolved::Kvm).into();
    }
    words.push("-S".into());
    let launch = Launch {
        program: spec.spec().qemu.clone(),
        arguments: words,
        directory: dir.path().to_owned(),
        descriptors: vec![vsock, qmp_end.into(), console_end.into(), scratch.into()],
        without_network: false,
    };
    let started = spawn(launch).await.unwrap();
    let stderr = tokio::net::unix::pipe::Receiver::from_owned_fd(started.stderr.into()).unwrap();
    let stderr = console::read(stderr, 4096, None);
    let connected = Qmp::connect(UnixStream::from_std(qmp).unwrap()).await;
    let Ok((qmp, version, _events)) = connected else {
        let _ = stderr.task.await;
        panic!("QEMU refused the machine: {}", stderr.tail.text());
    };
    assert!(version.major >= 7);
    assert_eq!(qmp.query_status().await.unwrap(), "prelaunch");
    let disks = Disks::new(&qmp, spec.spec()).unwrap();
    come_and_go(&qmp, &disks, &dir.path().join("disk.img")).await;
    if let Some(hotplug) = Hotplug::new(qmp.clone(), spec.spec(), Resolved::Kvm, true) {
        grows(&qmp, &hotplug).await;
    }
    qmp.quit().await.unwrap();
    assert_eq!(started.ended.await.unwrap(), Status::Code(0));
    stderr.task.await.unwrap();
    assert_eq!(
        stderr.tail.text(),
        "",
        "QEMU had something to complain about"
    );
}

/// A disk that is gone leaves its place and its file to others.
async fn come_and_go(qmp: &Qmp, disks: &Disks, image: &Path) {
    std::fs::write(image, [0; 4096]).unwrap();
    let disk = |read_only, is_shared| HotDisk {
        file: std::fs::File::open(image).unwrap(),
        path: image.to_owned(),
        is_device: false,
        read_only,
        is_shared,
    };
    let first = disks.attach(disk(false, false)).await.unwrap();
    assert_eq!(first.to_string(), "0:0");
    // The file is locked: two guests that write to one file system would destroy it.
    let second = disks.attach(disk(false, false)).await.unwrap_err();
    assert!(second.to_string().contains("lock"), "{second}");
    disks.detach(first, true).await.unwrap();
    let again = disks.attach(disk(true, false)).await.unwrap();
    assert_eq!(again, first, "what failed or is gone takes no place");
    let reader = disks.attach(disk(true, false)).await.unwrap();
    assert_eq!(reader.to_string(), "1:0");
    let blocks = qmp.ask("query-block", json!({})).await.unwrap();
    let listed = blocks.as_array().unwrap().iter();
    let ours: Vec<_> = listed
        .filter_map(|block| {
            block["inserted"]["node-name"]
                .as_str()
                .zip(block["inserted"]["ro"].as_bool())
        })
        .filter(|(node, _)| node.starts_with("hot"))
        .collect();
    assert_eq!(ours, [("hot0", true), ("hot1", true)]);
    for address in [again, reader] {
        disks.detach(address, true).await.unwrap();
    }
    let mut writers = Vec::new();
    for _ in 0..2 {
        writers.push(disks.attach(disk(false, true)).await.unwrap());
    }
    for address in writers {
        disks.detach(address, true).await.unwrap();
    }
}

/// As far as it may, in steps, and no further.
async fn grows(qmp: &Qmp, hotplug: &Hotplug) {
    let size = |vcpus, memory_mib| Size { vcpus, memory_mib };
    let none = hotplug.grow_to(size(1, 200), 128).await.unwrap();
    assert_eq!(none, size(0, 0));
    let some = hotplug.grow_to(size(3, 300), 128).await.unwrap();
    assert_eq!(some, size(1, 128));
    let rest = hotplug.grow_to(size(64, 100_000), 128).await.unwrap();
    assert_eq!(rest, size(1, 128));
    let cpus = qmp.ask("query-cpus-fast", json!({})).await.unwrap();
    assert_eq!(cpus.as_array().unwrap().len(), 4);
    let memory = qmp
        .ask("query-memory-size-summary", json!({}))
        .await
        .unwrap();
    assert_eq!(memory["plugged-memory"], 256 << 20);
}

fn spec(machine: Machine, dir: &Path) -> CheckedSpec {
    // QEMU looks at the kernel's first bytes before the machine is complete.
    let kernel = dir.join("vmlinux");
    std::fs::write(&kernel, pvh_kernel()).unwrap();
    let disk = dir.join("a,b.img");
    std::fs::write(&disk, vec![0; 1 << 16]).unwrap();
    let mut spec = VmSpec::new("accepted", &kernel, dir);
    spec.machine = machine;
    spec.vcpus = 2;
    spec.reclaims = true;
    spec.hot_disks = true;
    spec.hot_nics = true;
    if machine == Machine::Q35 {
        spec.growth = Some(Growth {
            max_vcpus: 4,
            max_memory_mib: 512,
            memory_slots: 2,
        });
    }
    spec.disks = vec![Disk {
        path: disk,
        format: DiskFormat::Raw,
        serial: "d0".to_owned(),
    }];
    spec.scratch = Some(Scratch {
        directory: dir.to_owned(),
        mib: 1,
        serial: "s0".to_owned(),
    });
    CheckedSpec::try_from(spec).unwrap()
}

/// The least that QEMU loads: an ELF of one segment, with the note that names its PVH entry.
fn pvh_kernel() -> Vec<u8> {
    let mut elf = Vec::new();
    let word =
        |elf: &mut Vec<u8>, value: u64, size: usize| elf.extend(&value.to_le_bytes()[..size]);
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for (value, size) in [
        (2, 2),
        (62, 2),
        (1, 4),
        (0x10_0000, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (2, 2),
        (0, 2),
        (0, 2),
        (0, 2),
    ] {
        word(&mut elf, value, size);
    }
    // Type, flags, offset, virtual and physical address, sizes in file and memory, alignment.
    for segment in [
        [1, 5, 0, 0x10_0000, 0x10_0000, 0x1000, 0x1000, 0x1000],
        [4, 4, 0xb0, 0, 0, 20, 20, 4],
    ] {
        let [kind, flags, rest @ ..] = segment;
        word(&mut elf, kind, 4);
        word(&mut elf, flags, 4);
        for value in rest {
            word(&mut elf, value, 8);
        }
    }
    // XEN_ELFNOTE_PHYS32_ENTRY = 18.
    for (value, size) in [(4, 4), (4, 4), (18, 4)] {
        word(&mut elf, value, size);
    }
    elf.extend(b"Xen\0");
    word(&mut elf, 0x10_0000, 4);
    elf.resize(0x1000, 0xf4);
    elf
}
