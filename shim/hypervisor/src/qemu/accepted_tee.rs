//! The generated confidential machines are taken by real QEMUs, as far as a host without the hardware can
//! tell: of the whole line they complain about nothing but the missing hardware. What a QEMU has not is
//! found before, by asking it.
//!
//! The QEMUs are the installed one (Debian 12's 7.2 has neither kind) and those that `.ci/setup` keeps in
//! `.cache/qemu`: Debian 13's 10.0, which has SEV-SNP, and one that has TDX as well.

mod golden;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::{Facts, VsockDevice, arguments};
use crate::accel::Resolved;
use crate::console;
use crate::nic::Nic;
use crate::spec::{CheckedSpec, Disk, DiskFormat, Scratch, VmSpec};
use crate::supervise::{Launch, Status, spawn};
use crate::tee::ability::{self, Unable};
use crate::tee::host::MemoryEncryption;
use crate::tee::{
    Confidential, DEFAULT_CPU_MODEL, DEFAULT_POLICY, ID_AUTH_BYTES, IdBlock, Kind, QuoteService,
    Snp, Tdx,
};
use crate::vsock::UserDevice;

/// A QEMU of this name; `None` where there is none and tests may be skipped.
fn qemu(name: &str) -> Option<PathBuf> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/qemu");
    let program = match name {
        "installed" => PathBuf::from("qemu-system-x86_64"),
        name => kept.join(name).join("qemu-system-x86_64"),
    };
    let found = std::process::Command::new(&program)
        .arg("--version")
        .output();
    if found.is_ok() {
        return Some(program);
    }
    let text = format!("no {}: .ci/setup fetches it", program.display());
    assert!(std::env::var_os("CLOISTER_NO_SKIP").is_none(), "{text}");
    eprintln!("skipped: {text}");
    None
}

fn snp(cpu_model: &str) -> Confidential {
    let mut block = [0; 96];
    block[88..].copy_from_slice(&DEFAULT_POLICY.to_le_bytes());
    Confidential::Snp(Snp {
        cpu_model: cpu_model.to_owned(),
        policy: DEFAULT_POLICY,
        host_data: [7; 32],
        id_block: IdBlock::new(&block, &[1; ID_AUTH_BYTES]).ok(),
        vcek_disabled: true,
    })
}

fn tdx(quotes: QuoteService) -> Confidential {
    Confidential::Tdx(Tdx {
        mrconfigid: [7; 48],
        mrowner: [8; 48],
        mrownerconfig: [9; 48],
        quotes,
    })
}

const QUOTE_PORT: QuoteService = QuoteService::Vsock { port: 4050 };

/// The least that QEMU loads as a bzImage (Linux' `Documentation/arch/x86/boot.rst`): its header.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    image[0x1f1] = 1;
    image[0x202..0x208].copy_from_slice(b"HdrS\x0c\x02");
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
    image
}

/// All that a confidential guest can have besides what it begins with.
fn fill(spec: &mut VmSpec, file: impl Fn(&str) -> PathBuf) {
    let disk = |name: &str, serial: &str| Disk {
        path: file(name),
        format: DiskFormat::Raw,
        serial: serial.to_owned(),
    };
    spec.initrd = Some(file("initrd"));
    spec.disks = vec![disk("one.img", "initdata"), disk("two,2.img", "layers")];
    spec.scratch = Some(Scratch {
        directory: spec.state_dir.clone(),
        mib: 1,
        serial: "scratch".to_owned(),
    });
    spec.nics = vec![Nic::user([2, 0, 0, 0, 0, 1])];
    spec.hot_disks = true;
}

/// How a QEMU ends that is given the machine, changed by `change`: its status and its last words.
async fn ends(
    program: &Path,
    wanted: Confidential,
    accel: &str,
    change: fn(&mut Vec<String>),
) -> (Status, String) {
    ends_with(program, wanted, accel, Begin::Firmware, change).await
}

/// What the guest begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Firmware,
    Igvm,
}

/// The same with what the guest begins with.
async fn ends_with(
    program: &Path,
    wanted: Confidential,
    accel: &str,
    begin: Begin,
    change: fn(&mut Vec<String>),
) -> (Status, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, bzimage()).unwrap();
        path
    };
    let mut spec = VmSpec::new("tee", &file("vmlinuz"), dir.path());
    match begin {
        Begin::Firmware => spec.firmware = Some(file("OVMF.fd")),
        Begin::Igvm => spec.igvm = Some(file("guest.igvm")),
    }
    spec.confidential = Some(wanted);
    fill(&mut spec, file);
    let spec = CheckedSpec::try_from(spec).unwrap();
    let (incoming, _receiver) = tokio::sync::mpsc::channel(1);
    let (_device, vsock) = UserDevice::start(dir.path(), 1030, incoming).unwrap();
    let (_qmp, qmp_end) = std::os::unix::net::UnixStream::pair().unwrap();
    let (_console, console_end) = std::os::unix::net::UnixStream::pair().unwrap();
    let scratch = tempfile::tempfile_in(dir.path()).unwrap();
    let is_snp = spec.spec().confidential.as_ref().unwrap().kind() == Kind::Snp;
    let facts = Facts {
        accel: Resolved::Kvm,
        tsc_khz: None,
        vsock: VsockDevice::User {
            fd: vsock.as_raw_fd(),
        },
        host_port: 1030,
        qmp_fd: qmp_end.as_raw_fd(),
        console_fd: console_end.as_raw_fd(),
        scratch_fd: Some(scratch.as_raw_fd()),
        cards: vec![None],
        memory_encryption: is_snp.then_some(MemoryEncryption { c_bit: 51 }),
    };
    let mut words = arguments(&spec, &facts);
    let at = words.iter().position(|word| word == "-accel").unwrap();
    accel.clone_into(&mut words[at + 1]);
    change(&mut words);
    let started = spawn(Launch {
        program: program.to_owned(),
        arguments: words.into_iter().map(Into::into).collect(),
        directory: dir.path().to_owned(),
        descriptors: vec![vsock, qmp_end.into(), console_end.into(), scratch.into()],
        without_network: false,
    });
    let started = started.await.unwrap();
    let stderr = tokio::net::unix::pipe::Receiver::from_owned_fd(started.stderr.into()).unwrap();
    let stderr = console::read(stderr, 4096, None);
    let status = started.ended.await.unwrap();
    stderr.task.await.unwrap();
    (status, stderr.tail.text())
}

/// The machine is taken but for the hardware; a property of another name is another complaint.
async fn is_taken(program: &Path, wanted: Confidential) {
    let object = match wanted.kind() {
        Kind::Snp => "sev-snp-guest",
        Kind::Tdx => "tdx-guest",
    };
    ability::check(program, &wanted, false).await.unwrap();
    let (status, words) = ends(program, wanted.clone(), "tcg", |_| {}).await;
    assert_eq!(status, Status::Code(1), "{words}");
    let expected = format!("cannot set up private guest memory for {object}: KVM required");
    assert!(words.contains(&expected), "{words}");

    // Where there is KVM, what is missing is named by it; where not, KVM is.
    let (status, words) = ends(program, wanted.clone(), "kvm", |_| {}).await;
    assert_eq!(status, Status::Code(1), "{words}");
    let of_hardware = [
        "not supported by KVM",
        "Could not access KVM kernel module",
        "failed to initialize kvm",
    ];
    assert!(
        of_hardware.iter().any(|text| words.contains(text)),
        "{words}"
    );

    let misspell = |words: &mut Vec<String>| {
        for word in words {
            *word = word.replace("kernel-irqchip=split", "kernel-irqchip=spilt");
        }
    };
    let (_, words) = ends(program, wanted.clone(), "kvm", misspell).await;
    assert!(words.contains("kernel-irqchip=spilt"), "{words}");

    let misspell = |words: &mut Vec<String>| {
        for word in words {
            *word = word.replace("\"policy\"", "\"polcy\"");
            *word = word.replace("\"mrconfigid\"", "\"mrconfgid\"");
        }
    };
    let (_, words) = ends(program, wanted, "tcg", misspell).await;
    assert!(words.contains("unexpected"), "{words}");
    assert!(!words.contains("KVM"), "{words}");
}

async fn lacks(program: &Path, wanted: Confidential, named: &str) {
    lacks_with(program, wanted, Begin::Firmware, named).await;
}

async fn lacks_with(program: &Path, wanted: Confidential, begin: Begin, named: &str) {
    let unable = ability::check(program, &wanted, begin == Begin::Igvm).await;
    let unable = unable.unwrap_err();
    assert!(matches!(unable, Unable::Lacks { .. }), "{unable}");
    assert!(unable.to_string().contains(named), "{unable}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_qemu_is_named_with_what_it_lacks() {
    let Some(program) = qemu("installed") else {
        return;
    };
    let text = std::process::Command::new(&program)
        .arg("--version")
        .output();
    let text = String::from_utf8(text.unwrap().stdout).unwrap();
    if !text.contains("version 7.2") {
        eprintln!("skipped: the installed QEMU is not 7.2: {text}");
        return;
    }
    lacks(
        &program,
        snp(DEFAULT_CPU_MODEL),
        "has no object sev-snp-guest: use 9.1",
    )
    .await;
    lacks(
        &program,
        tdx(QUOTE_PORT),
        "has no object tdx-guest: use 10.1",
    )
    .await;
    // What QEMU itself would have said, had it not been asked before.
    let (_, words) = ends(&program, snp(DEFAULT_CPU_MODEL), "tcg", |_| {}).await;
    assert!(
        words.contains("sev-snp-guest") && !words.contains("KVM"),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_with_snp_takes_its_machine_and_is_told_to_lack_tdx() {
    let Some(program) = qemu("trixie") else {
        return;
    };
    for model in [
        DEFAULT_CPU_MODEL,
        "EPYC-Milan-v2",
        "EPYC-Genoa",
        "EPYC-Genoa-v1",
    ] {
        is_taken(&program, snp(model)).await;
    }
    lacks(
        &program,
        snp("EPYC-Turin"),
        "has no CPU model EPYC-Turin: use 10.1",
    )
    .await;
    lacks(
        &program,
        tdx(QUOTE_PORT),
        "has no object tdx-guest: use 10.1",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_with_both_takes_both_machines() {
    let Some(program) = qemu("testing") else {
        return;
    };
    is_taken(&program, snp("EPYC-Turin-v1")).await;
    is_taken(&program, tdx(QUOTE_PORT)).await;
    let socket = QuoteService::Unix("/run/tdx-qgs/qgs.socket".into());
    is_taken(&program, tdx(socket)).await;
}

/// Debian builds its QEMUs without the library, also the new one: none of them takes the file, which is
/// said before a launch, and of all other words of the line none makes them complain.
#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_without_igvm_is_named_and_takes_the_rest_of_the_line() {
    for name in ["trixie", "testing"] {
        let Some(program) = qemu(name) else {
            continue;
        };
        let mut wanted = snp(DEFAULT_CPU_MODEL);
        if let Confidential::Snp(snp) = &mut wanted {
            snp.id_block = None;
        }
        let named = "has no object igvm-cfg: use 10.1 or newer, built with it";
        lacks_with(&program, wanted.clone(), Begin::Igvm, named).await;

        let (_, words) = ends_with(&program, wanted.clone(), "tcg", Begin::Igvm, |_| {}).await;
        assert!(
            words.contains("igvm-cfg") && !words.contains("KVM"),
            "{words}"
        );
        let without = |words: &mut Vec<String>| {
            let at = words.iter().position(|word| word.contains("\"igvm-cfg\""));
            words.drain(at.unwrap() - 1..=at.unwrap());
            for word in words {
                *word = word.replace(",igvm-cfg=igvm", "");
            }
        };
        let (_, words) = ends_with(&program, wanted, "tcg", Begin::Igvm, without).await;
        let expected = "cannot set up private guest memory for sev-snp-guest: KVM required";
        assert!(words.contains(expected), "{words}");
    }
}

#[tokio::test]
async fn a_program_that_is_no_qemu_is_named() {
    let missing = ability::check(Path::new("/nonexistent/qemu"), &tdx(QUOTE_PORT), false).await;
    assert!(matches!(missing.unwrap_err(), Unable::Spawn { .. }));
    let other = ability::check(Path::new("/bin/true"), &tdx(QUOTE_PORT), false).await;
    let said = other.unwrap_err().to_string();
    assert!(said.starts_with("/bin/true does not answer"), "{said}");
}
