//! The golden lines of confidential guests are taken by real QEMUs to their last word. QEMU ends at a
//! confidential object that it cannot have before it looks at processors and devices, so each line is started
//! without it, under emulation, up to the guest's first instruction.
//!
//! Besides the object, other words stand for those that need hardware or a device of the host: no IGVM file,
//! which no QEMU here was built with; `tcg` and `max` for `kvm` and `host`; the user network for a tap.
//! `kernel-irqchip` is a word for KVM alone, which the test of whole lines misspells there.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use tokio::net::UnixStream;

use super::{bzimage, qemu};
use crate::console;
use crate::qemu::confidential::IGVM_MACHINE;
use crate::qmp::Qmp;
use crate::supervise::{Launch, Status, spawn};
use crate::vsock::UserDevice;

/// The descriptors in golden lines: control socket, console, vsock device and scratch disk.
const FDS: [i32; 4] = [10, 11, 12, 13];
/// What is no complaint: a feature of a model that is not emulated; and `-mon`, for which QEMU has
/// another word from 11.1 on that older ones do not know.
const NO_COMPLAINT: [&str; 2] = [
    "warning: TCG doesn't support requested feature",
    "warning: '-mon' is deprecated",
];

/// An option with its value, which is empty where it has none.
type Words = Vec<(String, String)>;

/// The golden lines of all shapes of a confidential guest.
fn golden() -> BTreeMap<String, Words> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(directory).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let named = files.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path));
    let tee = named.filter(|(name, _)| name.starts_with("snp") || name.starts_with("tdx"));
    tee.map(|(name, path)| (name, words(&std::fs::read_to_string(path).unwrap())))
        .collect()
}

fn words(text: &str) -> Words {
    text.lines()
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .map(|(option, value)| (option.to_owned(), value.to_owned()))
        .collect()
}

/// The words without those that need hardware or a device of the host.
fn without_hardware(words: &Words) -> Words {
    let needing = ["\"sev-snp-guest\"", "\"tdx-guest\"", "\"igvm-cfg\""];
    let others = words
        .iter()
        .filter(|(_, value)| !needing.iter().any(|object| value.contains(object)));
    others
        .map(|(option, value)| {
            let value = match option.as_str() {
                "-machine" => value
                    .replace(",confidential-guest-support=tee", "")
                    .replace(IGVM_MACHINE, ""),
                "-accel" => value.replace("kvm", "tcg,thread=single"),
                "-cpu" => value.replace("host,", "max,"),
                "-netdev" => value.replace("tap,id=net0,fd=14,vhost=off", "user,id=net0"),
                _ => value.clone(),
            };
            (option.clone(), value)
        })
        .collect()
}

/// The words as arguments, with the descriptors and the directory of this start.
fn arguments(words: &Words, fds: [i32; 4], dir: &Path) -> Vec<String> {
    let mut arguments = Vec::new();
    for (option, value) in words {
        let mut value = value.replace("$DIR", dir.to_str().unwrap());
        let named = FDS.iter().zip(fds);
        let fd = named
            .map(|(golden, fd)| (format!("fd={golden}"), format!("fd={fd}")))
            .find(|(golden, _)| value.split(',').any(|word| word == golden));
        if let Some((golden, fd)) = fd {
            value = value.replace(&golden, &fd);
        }
        arguments.push(option.clone());
        arguments.extend(Some(value).filter(|value| !value.is_empty()));
    }
    arguments.push("-S".to_owned());
    arguments
}

/// What QEMU said against the words; nothing where it stands before the guest's first instruction.
async fn refusal(program: &Path, words: &Words) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("vmlinux", bzimage()),
        ("initrd", vec![0; 4096]),
        ("OVMF.fd", vec![0; 1 << 20]),
        ("one.img", vec![0; 4096]),
        ("two,2.img", vec![0; 4096]),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let (incoming, _receiver) = tokio::sync::mpsc::channel(1);
    let (_device, vsock) = UserDevice::start(dir.path(), 1030, incoming).unwrap();
    let (qmp, qmp_end) = StdUnixStream::pair().unwrap();
    let (_console, console_end) = StdUnixStream::pair().unwrap();
    let scratch = tempfile::tempfile_in(dir.path()).unwrap();
    scratch.set_len(1 << 20).unwrap();
    let inherited: [OwnedFd; 4] = [qmp_end.into(), console_end.into(), vsock, scratch.into()];
    let fds = inherited.each_ref().map(AsRawFd::as_raw_fd);
    let started = spawn(Launch {
        program: program.to_owned(),
        arguments: arguments(words, fds, dir.path())
            .into_iter()
            .map(Into::into)
            .collect(),
        directory: dir.path().to_owned(),
        descriptors: inherited.into(),
        without_network: false,
    });
    let started = started.await.unwrap();
    let stderr = tokio::net::unix::pipe::Receiver::from_owned_fd(started.stderr.into()).unwrap();
    let stderr = console::read(stderr, 1 << 18, None);
    qmp.set_nonblocking(true).unwrap();
    let connected = Qmp::connect(UnixStream::from_std(qmp).unwrap()).await;
    if let Ok((qmp, _, _events)) = connected
        && qmp.query_status().await.is_ok_and(|it| it == "prelaunch")
    {
        qmp.quit().await.unwrap();
    }
    let status = started.ended.await.unwrap();
    stderr.task.await.unwrap();
    let said = stderr.tail.text();
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| !NO_COMPLAINT.iter().any(|known| line.contains(known)))
        .collect();
    match (status, complaints.as_slice()) {
        (Status::Code(0), []) => None,
        _ => Some(format!("{status:?}: {}", complaints.join("\n"))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_golden_line_is_taken_but_for_the_hardware() {
    let lines = golden();
    assert!(lines.contains_key("snp-pod") && lines.contains_key("tdx-pod"));
    for name in ["trixie", "testing"] {
        let Some(program) = qemu(name) else {
            continue;
        };
        for (shape, words) in &lines {
            let said = refusal(&program, &without_hardware(words)).await;
            assert_eq!(said, None, "{name}, {shape}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_nonsense_is_taken_with_a_golden_line() {
    let lines = golden();
    for name in ["trixie", "testing"] {
        let Some(program) = qemu(name) else {
            continue;
        };
        for (from, to, named) in [
            ("virtio-scsi-pci", "nonsense-pci,foo=bar", "nonsense-pci"),
            ("hotplug=off", "hotplug=off,foo=bar", "foo"),
            ("pmu=off", "pmx=off", "pmx"),
            ("EPYC-v4", "EPYC-v99", "EPYC-v99"),
            ("dump-guest-core", "dump-guest-heart", "dump-guest-heart"),
            ("cache.no-flush", "cache.no-flash", "cache.no-flash"),
            ("obsolete=deny", "obsolete=dany", "obsolete"),
        ] {
            let mut words = without_hardware(&lines["snp-pod"]);
            for (_, value) in &mut words {
                *value = value.replace(from, to);
            }
            let said = refusal(&program, &words).await.unwrap_or_default();
            assert!(said.contains(named), "{name}, {to}: {said:?}");
        }
    }
}

/// A tap is a device of the host: of its words none is refused but its descriptor, which is no tap here.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_tap_only_the_descriptor_is_refused() {
    let lines = golden();
    let pod = &lines["snp-pod"];
    let tap = pod.iter().find(|(option, _)| option == "-netdev").unwrap();
    for name in ["trixie", "testing"] {
        let Some(program) = qemu(name) else {
            continue;
        };
        for (value, named) in [
            (tap.1.replace("fd=14", "fd=13"), "file descriptor"),
            (tap.1.replace("vhost", "vhosd"), "vhosd"),
        ] {
            let mut words = without_hardware(pod);
            let netdev = words.iter_mut().find(|(option, _)| option == "-netdev");
            netdev.unwrap().1 = value;
            let said = refusal(&program, &words).await.unwrap_or_default();
            assert!(said.contains(named), "{name}: {said:?}");
        }
    }
}
