//! The command line of every shape of VM, compared with a file each. What a TEE measures hangs on
//! these words, so a change of them must be seen. `UPDATE_GOLDEN=1` writes the files anew.
#![allow(clippy::unwrap_used, reason = "a test says what failed by its line")]

use std::fs;
use std::path::Path;

use hypervisor::accel::Resolved;
use hypervisor::nic::CardFds;
use hypervisor::qemu::{
    Facts, VsockDevice, arguments, measured_command_line, predicted_command_line,
};
use hypervisor::spec::DiskFormat;
use hypervisor::tee::host::MemoryEncryption;
use hypervisor::tee::{
    DEFAULT_CPU_MODEL, DEFAULT_POLICY, ID_AUTH_BYTES, IdBlock, QuoteService, Snp, Tdx,
};
use hypervisor::{
    CheckedSpec, Confidential, Disk, Growth, Machine, Nic, Scratch, SharedFs, VmSpec,
};

const USER: VsockDevice = VsockDevice::User { fd: 12 };
const KERNEL: VsockDevice = VsockDevice::Kernel { fd: 12, cid: 4242 };
const EPYC: Option<MemoryEncryption> = Some(MemoryEncryption { c_bit: 51 });

/// A directory with every file that a spec here names.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "vmlinux",
        "initrd",
        "one.img",
        "two,2.img",
        "fs.sock",
        "OVMF.fd",
        "guest.igvm",
    ] {
        fs::write(dir.path().join(name), b"x").unwrap();
    }
    dir
}

fn lines(
    machine: Machine,
    accel: Resolved,
    vsock: VsockDevice,
    change: impl FnOnce(&mut VmSpec),
) -> String {
    let dir = files();
    let mut spec = VmSpec::new("pod-1", &dir.path().join("vmlinux"), dir.path());
    spec.machine = machine;
    spec.vhost_net = false;
    spec.initrd = Some(dir.path().join("initrd"));
    spec.kernel_params = vec!["cloister.tee=none".to_owned()];
    change(&mut spec);
    let spec = CheckedSpec::try_from(spec).unwrap();
    let is_measured = spec.spec().confidential.is_some();
    let tsc_khz = (accel == Resolved::Tcg).then_some(2_445_379);
    let facts = Facts {
        accel,
        tsc_khz,
        vsock,
        host_port: 1030,
        qmp_fd: 10,
        console_fd: 11,
        scratch_fd: spec.spec().scratch.is_some().then_some(13),
        cards: (14..)
            .take(spec.spec().nics.len())
            .map(|tap| {
                Some(CardFds {
                    tap,
                    vhost: spec.spec().vhost_net.then_some(tap + 10),
                })
            })
            .collect(),
        memory_encryption: EPYC.filter(|_| spec.spec().confidential.is_some()),
    };
    let mut text = String::new();
    let words = arguments(&spec, &facts);
    assert!(!is_measured || words.contains(&measured_command_line(&spec)));
    // Memory is accepted as the guest comes to use it, which is the kernel's default.
    let is_eager = |word: &String| word.contains("accept_memory");
    assert!(!is_measured || !words.iter().any(is_eager));
    let predicted = predicted_command_line(spec.spec()).unwrap();
    assert_eq!(predicted, measured_command_line(&spec));
    for word in words {
        text.push_str(if word.starts_with('-') { "\n" } else { " " });
        text.push_str(&word);
    }
    text.trim_start()
        .replace(dir.path().to_str().unwrap(), "$DIR")
        + "\n"
}

#[track_caller]
fn holds(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
        .with_extension("txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text, golden,
        "{name} changed: if that is meant, run with UPDATE_GOLDEN=1"
    );
}

fn disks(spec: &mut VmSpec) {
    let disk = |name: &str, serial: &str| Disk {
        path: spec.state_dir.join(name),
        format: DiskFormat::Raw,
        serial: serial.to_owned(),
    };
    spec.disks = vec![disk("one.img", "initdata"), disk("two,2.img", "layers")];
}

fn shared_fs(spec: &mut VmSpec) {
    spec.shared_fs = Some(SharedFs {
        socket: spec.state_dir.join("fs.sock"),
        tag: "kataShared".to_owned(),
    });
}

#[test]
fn every_shape_has_its_golden_line() {
    let machines = [("q35", Machine::Q35), ("microvm", Machine::Microvm)];
    let accels = [("kvm", Resolved::Kvm), ("tcg", Resolved::Tcg)];
    let vsocks = [("vhost-user", USER), ("vhost-vsock", KERNEL)];
    for (machine_name, machine) in machines {
        for (accel_name, accel) in accels {
            for (vsock_name, vsock) in &vsocks {
                let name = format!("{machine_name}-{accel_name}-{vsock_name}");
                holds(&name, &lines(machine, accel, vsock.clone(), |_| {}));
                let name = format!("{name}-fs");
                holds(&name, &lines(machine, accel, vsock.clone(), shared_fs));
            }
        }
        let name = format!("{machine_name}-disks");
        holds(&name, &lines(machine, Resolved::Tcg, USER, disks));
        let hot = |spec: &mut VmSpec| spec.hot_disks = true;
        let hot_nics = |spec: &mut VmSpec| spec.hot_nics = true;
        let name = format!("{machine_name}-hot-nics");
        holds(&name, &lines(machine, Resolved::Kvm, KERNEL, hot_nics));
        let name = format!("{machine_name}-hot-disks");
        holds(&name, &lines(machine, Resolved::Kvm, KERNEL, hot));
        let reclaims = |spec: &mut VmSpec| {
            spec.reclaims = true;
            let growth = Growth {
                max_vcpus: 4,
                max_memory_mib: 4096,
                memory_slots: 10,
            };
            spec.growth = (machine == Machine::Q35).then_some(growth);
        };
        for (accel_name, accel) in accels {
            let name = format!("{machine_name}-{accel_name}-grows");
            holds(&name, &lines(machine, accel, KERNEL, reclaims));
        }
        let name = format!("{machine_name}-scratch");
        let scratch = |spec: &mut VmSpec| {
            disks(spec);
            spec.scratch = Some(Scratch {
                directory: spec.state_dir.clone(),
                mib: 1024,
                serial: "scratch".to_owned(),
            });
        };
        holds(&name, &lines(machine, Resolved::Tcg, USER, scratch));
        let nics = |spec: &mut VmSpec| {
            let nic = |last| {
                Nic::new(
                    [2, 0, 0, 0, 0, last],
                    fs::File::open("/dev/null").unwrap().into(),
                )
            };
            spec.nics = vec![nic(1), nic(0xfe)];
        };
        holds(
            &format!("{machine_name}-nics"),
            &lines(machine, Resolved::Kvm, KERNEL, nics),
        );
        let vhost = |spec: &mut VmSpec| {
            nics(spec);
            spec.vhost_net = true;
        };
        let name = format!("{machine_name}-nics-vhost");
        holds(&name, &lines(machine, Resolved::Kvm, KERNEL, vhost));
        let all = |spec: &mut VmSpec| {
            disks(spec);
            shared_fs(spec);
            spec.vcpus = 4;
            spec.memory_mib = 2048;
            spec.firmware = Some(spec.state_dir.join("OVMF.fd"));
        };
        holds(
            &format!("{machine_name}-all"),
            &lines(machine, Resolved::Kvm, KERNEL, all),
        );
    }
}

fn snp() -> Snp {
    Snp {
        cpu_model: DEFAULT_CPU_MODEL.to_owned(),
        policy: DEFAULT_POLICY,
        host_data: [7; 32],
        id_block: None,
        vcek_disabled: false,
    }
}

fn tdx() -> Tdx {
    Tdx {
        mrconfigid: [7; 48],
        mrowner: [0; 48],
        mrownerconfig: [0; 48],
        quotes: QuoteService::Vsock { port: 4050 },
    }
}

/// All that such a VM can have.
fn confidential(spec: &mut VmSpec, wanted: Confidential) {
    disks(spec);
    spec.scratch = Some(Scratch {
        directory: spec.state_dir.clone(),
        mib: 1024,
        serial: "scratch".to_owned(),
    });
    spec.vcpus = 4;
    spec.memory_mib = 2048;
    spec.firmware = Some(spec.state_dir.join("OVMF.fd"));
    spec.confidential = Some(wanted);
}

#[test]
fn every_shape_of_a_confidential_guest_has_its_golden_line() {
    let mut block = [0; 96];
    block[88..].copy_from_slice(&DEFAULT_POLICY.to_le_bytes());
    let pinned = |author| Snp {
        id_block: IdBlock::new(&block, &[author; ID_AUTH_BYTES]).ok(),
        cpu_model: "EPYC-Genoa-v1".to_owned(),
        ..snp()
    };
    let lent = Snp {
        vcek_disabled: true,
        ..snp()
    };
    let owned = Tdx {
        mrowner: [8; 48],
        mrownerconfig: [9; 48],
        quotes: QuoteService::Unix("/run/tdx-qgs/qgs.socket".into()),
        ..tdx()
    };
    for (name, wanted) in [
        ("snp", Confidential::Snp(snp())),
        ("snp-id-block", Confidential::Snp(pinned(0))),
        ("snp-author", Confidential::Snp(pinned(1))),
        ("snp-vlek", Confidential::Snp(lent)),
        ("tdx", Confidential::Tdx(tdx())),
        ("tdx-owner", Confidential::Tdx(owned)),
    ] {
        let change = |spec: &mut VmSpec| confidential(spec, wanted);
        let lines = lines(Machine::Q35, Resolved::Kvm, USER, change);
        // 5464 letters of which all are one: a file of them says no more than their number.
        let short = lines
            .replace(&"A".repeat(5460), "$A5460")
            .replace(&"AQEB".repeat(1365), "$AQEB1365");
        holds(name, &short);
    }
    for (name, wanted) in [
        ("snp-pod", Confidential::Snp(snp())),
        ("tdx-pod", Confidential::Tdx(tdx())),
    ] {
        let change = |spec: &mut VmSpec| {
            confidential(spec, wanted);
            let tap = fs::File::open("/dev/null").unwrap();
            spec.nics = vec![Nic::new([2, 0, 0, 0, 0, 1], tap.into())];
            spec.hot_disks = true;
        };
        holds(name, &lines(Machine::Q35, Resolved::Kvm, USER, change));
    }
    let change = |spec: &mut VmSpec| {
        confidential(spec, Confidential::Snp(snp()));
        igvm(spec);
    };
    let lines = lines(Machine::Q35, Resolved::Kvm, USER, change);
    // The file brings the page of hashes, for which QEMU has no place then.
    assert!(!lines.contains("-bios") && !lines.contains("kernel-hashes"));
    holds("snp-igvm", &lines);
}

/// An IGVM file in place of firmware.
fn igvm(spec: &mut VmSpec) {
    spec.firmware = None;
    spec.igvm = Some(spec.state_dir.join("guest.igvm"));
}

#[test]
fn what_a_confidential_guest_cannot_have_is_refused() {
    type Change = fn(&mut VmSpec);
    let changes: [(Change, &str); 14] = [
        (|spec| spec.machine = Machine::Microvm, "q35"),
        (|spec| spec.accel = hypervisor::Accel::Tcg, "KVM"),
        (|spec| spec.reclaims = true, "memory back"),
        (|spec| spec.hot_nics = true, "card later"),
        (shared_fs, "directory"),
        (|spec| spec.firmware = None, "firmware"),
        (|spec| spec.vsock = hypervisor::Vsock::Kernel, "vsock"),
        (
            |spec| {
                spec.growth = Some(Growth {
                    max_vcpus: 8,
                    max_memory_mib: 4096,
                    memory_slots: 1,
                });
            },
            "grow",
        ),
        (
            |spec| spec.kernel_params = vec!["accept_memory=eager".to_owned()],
            "accept_memory=eager",
        ),
        (
            |spec| {
                let policy = 1 << 19;
                spec.confidential = Some(Confidential::Snp(Snp { policy, ..snp() }));
            },
            "DEBUG",
        ),
        (
            |spec| {
                igvm(spec);
                spec.firmware = Some(spec.state_dir.join("OVMF.fd"));
            },
            "no second one",
        ),
        (
            |spec| {
                igvm(spec);
                spec.confidential = Some(Confidential::Tdx(tdx()));
            },
            "none into a TD",
        ),
        (
            |spec| {
                igvm(spec);
                spec.confidential = None;
            },
            "for SEV-SNP guests",
        ),
        (
            |spec| {
                igvm(spec);
                let id_block = IdBlock::new(&[0; 96], &[0; ID_AUTH_BYTES]).ok();
                spec.confidential = Some(Confidential::Snp(Snp { id_block, ..snp() }));
            },
            "ID block",
        ),
    ];
    let dir = files();
    for (change, named) in changes {
        let mut spec = VmSpec::new("pod-1", &dir.path().join("vmlinux"), dir.path());
        confidential(&mut spec, Confidential::Snp(snp()));
        change(&mut spec);
        let error = CheckedSpec::try_from(spec).unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn only_emulation_gets_the_words_for_emulation() {
    let kvm = lines(Machine::Q35, Resolved::Kvm, USER, |_| {});
    for word in [
        "mitigations=off",
        "cryptomgr.notests",
        "tsc_early_khz",
        "no_timer_check",
    ] {
        assert!(!kvm.contains(word), "{word}");
    }
}

#[test]
fn memory_is_shared_only_where_another_process_reads_it() {
    assert!(!lines(Machine::Q35, Resolved::Kvm, KERNEL, |_| {}).contains("share=on"));
    assert!(lines(Machine::Q35, Resolved::Kvm, KERNEL, shared_fs).contains("share=on"));
    assert!(lines(Machine::Q35, Resolved::Kvm, USER, |_| {}).contains("share=on"));
}

#[test]
fn a_port_other_than_the_wanted_one_is_told_to_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("vmlinux"), b"x").unwrap();
    let spec =
        CheckedSpec::try_from(VmSpec::new("a", &dir.path().join("vmlinux"), dir.path())).unwrap();
    let mut facts = Facts {
        accel: Resolved::Kvm,
        tsc_khz: None,
        vsock: KERNEL,
        host_port: 1030,
        qmp_fd: 10,
        console_fd: 11,
        scratch_fd: None,
        cards: Vec::new(),
        memory_encryption: None,
    };
    assert!(!arguments(&spec, &facts).join(" ").contains("host_port"));
    facts.host_port = 40_000;
    assert!(
        arguments(&spec, &facts)
            .join(" ")
            .contains("cloister.host_port=40000")
    );
}
