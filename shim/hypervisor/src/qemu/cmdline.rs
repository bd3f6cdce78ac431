//! The command line of QEMU: a pure function of the checked spec and of what the host offers.
//!
//! QEMU gets no path of a socket but the virtio-fs daemon's: control socket, console and vsock
//! device are descriptors that it inherits, so that nothing is left behind in the file system and
//! no one else can connect to them.

use std::os::fd::RawFd;
use std::path::Path;

use crate::accel::Resolved;
use crate::disk;
use crate::growth;
use crate::hot_nic::{self, MAX_HOT_NICS};
use crate::nic::{self, CardFds};
use crate::qemu::{confidential, kernel};
use crate::spec::{CheckedSpec, Disk, DiskFormat, Machine, Scratch, SharedFs, VmSpec};
use crate::tee::host::MemoryEncryption;

/// What the host offers, and the descriptors that QEMU inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The accelerator.
    pub accel: Resolved,
    /// The frequency of the time-stamp counter in kHz, needed under emulation.
    pub tsc_khz: Option<u32>,
    /// The vsock device.
    pub vsock: VsockDevice,
    /// The port on which the host waits for the guest.
    pub host_port: u32,
    /// A connected stream socket for QMP.
    pub qmp_fd: RawFd,
    /// A connected stream socket for the serial console.
    pub console_fd: RawFd,
    /// The scratch disk's file, where the spec asks for one.
    pub scratch_fd: Option<RawFd>,
    /// The descriptors of each of the spec's network interfaces; none for one in the user network.
    pub cards: Vec<Option<CardFds>>,
    /// How the processor encrypts memory, where the guest is an SEV-SNP one.
    pub memory_encryption: Option<MemoryEncryption>,
}

/// How the vsock device is offered to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockDevice {
    /// The kernel's: an open `/dev/vhost-vsock` which has the guest's CID.
    Kernel {
        /// The device's descriptor.
        fd: RawFd,
        /// The guest's CID.
        cid: u64,
    },
    /// Ours: a connected vhost-user socket.
    User {
        /// The socket's descriptor.
        fd: RawFd,
    },
}

/// All arguments after the program's name.
#[must_use]
pub fn arguments(spec: &CheckedSpec, facts: &Facts) -> Vec<String> {
    let mut line = Line {
        machine: spec.spec().machine,
        words: Vec::new(),
    };
    line.machine(spec, facts);
    line.boot(spec, facts);
    line.control(facts);
    line.vsock(&facts.vsock);
    line.option("-object", "rng-random,id=entropy,filename=/dev/urandom");
    line.device("virtio-rng", "rng=entropy");
    if spec.spec().reclaims {
        line.device("virtio-balloon", "id=balloon,free-page-reporting=on");
    }
    for (index, disk) in spec.spec().disks.iter().enumerate() {
        line.disk(index, disk);
    }
    if let (Some(scratch), Some(fd)) = (&spec.spec().scratch, facts.scratch_fd) {
        line.scratch(scratch, fd);
    }
    if spec.spec().hot_disks {
        line.device("virtio-scsi", disk::CONTROLLER);
    }
    if let Some(fs) = &spec.spec().shared_fs {
        line.shared_fs(fs);
    }
    for (index, (nic, fds)) in spec.spec().nics.iter().zip(&facts.cards).enumerate() {
        line.nic(index, nic.mac, *fds);
    }
    if spec.spec().hot_nics && line.machine == Machine::Q35 {
        for index in 0..MAX_HOT_NICS {
            line.option("-device", hot_nic::port(index));
        }
    }
    line.words
}

/// Whether guest memory is another process's too.
pub(crate) fn is_shared(spec: &CheckedSpec, facts: &Facts) -> bool {
    spec.has_vhost_user_fs() || matches!(facts.vsock, VsockDevice::User { .. })
}

struct Line {
    machine: Machine,
    words: Vec<String>,
}

impl Line {
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.words.extend([name.to_owned(), value.into()]);
    }

    /// A virtio device under its name on this machine's bus.
    fn device(&mut self, kind: &str, properties: &str) {
        let bus = match self.machine {
            Machine::Q35 => "pci",
            Machine::Microvm => "device",
        };
        self.option("-device", format!("{kind}-{bus},{properties}"));
    }

    fn machine(&mut self, spec: &CheckedSpec, facts: &Facts) {
        let VmSpec {
            name,
            machine,
            memory_mib,
            ..
        } = spec.spec();
        let shared = is_shared(spec, facts);
        self.option("-name", format!("{name},debug-threads=on"));
        let mut kind = match machine {
            // Nothing that a Linux guest does not use: each costs a probe at start, and is code
            // of QEMU within the guest's reach.
            Machine::Q35 => "q35,smm=off,vmport=off,sata=off,smbus=off,i8042=off,hpet=off,usb=off,graphics=off,dump-guest-core=off".to_owned(),
            Machine::Microvm => "microvm,acpi=on,isa-serial=on,auto-kernel-cmdline=off,usb=off,graphics=off,dump-guest-core=off".to_owned(),
        };
        if shared {
            // A vhost-user device reads and writes guest memory from its own process.
            kind.push_str(",memory-backend=ram");
            self.option(
                "-object",
                format!("memory-backend-memfd,id=ram,size={memory_mib}M,share=on"),
            );
        }
        if let Some(wanted) = &spec.spec().confidential {
            kind.push_str(confidential::MACHINE);
            let igvm = spec.spec().igvm.as_deref();
            let object = confidential::object(wanted, facts.memory_encryption, igvm.is_some());
            self.option("-object", object.to_string());
            if let Some(path) = igvm {
                kind.push_str(confidential::IGVM_MACHINE);
                self.option("-object", confidential::igvm(path).to_string());
            }
        }
        self.option("-machine", kind);
        let (accel, cpu) = match facts.accel {
            Resolved::Kvm => ("kvm", "host"),
            // One thread for all processors: with a thread for each, a guest's kernel that patches
            // its own code now and then trips over a breakpoint that it has already taken back.
            Resolved::Tcg => ("tcg,thread=single", "max"),
        };
        let confidential = spec.spec().confidential.as_ref();
        self.option("-accel", accel);
        self.option(
            "-cpu",
            confidential.map_or(cpu.to_owned(), confidential::cpu),
        );
        self.option("-smp", growth::processors(spec.spec(), facts.accel));
        self.option("-m", growth::memory(spec.spec()));
        self.words
            .extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        self.option("-display", "none");
        self.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        if *machine == Machine::Microvm {
            // The vhost-user devices exist in their modern form only.
            self.option("-global", "virtio-mmio.force-legacy=false");
        }
    }

    fn boot(&mut self, spec: &CheckedSpec, facts: &Facts) {
        let VmSpec {
            machine,
            kernel,
            initrd,
            firmware,
            ..
        } = spec.spec();
        match (firmware, machine) {
            (Some(path), _) => self.option("-bios", plain(path)),
            // SeaBIOS' microvm build puts the initrd over the ACPI tables from QEMU 10 on.
            (None, Machine::Microvm) => self.option("-bios", "qboot.rom"),
            (None, Machine::Q35) => {}
        }
        self.option("-kernel", plain(kernel));
        if let Some(initrd) = initrd {
            self.option("-initrd", plain(initrd));
        }
        self.option("-append", kernel::command_line(spec, facts));
    }

    fn control(&mut self, facts: &Facts) {
        self.option("-chardev", format!("socket,id=qmp,fd={}", facts.qmp_fd));
        self.option("-mon", "chardev=qmp,mode=control");
        self.option(
            "-chardev",
            format!("socket,id=console,fd={}", facts.console_fd),
        );
        self.option("-serial", "chardev:console");
    }

    fn vsock(&mut self, vsock: &VsockDevice) {
        match vsock {
            VsockDevice::Kernel { fd, cid } => {
                self.device(
                    "vhost-vsock",
                    &format!("id=vsock,guest-cid={cid},vhostfd={fd}"),
                );
            }
            VsockDevice::User { fd } => {
                self.option("-chardev", format!("socket,id=vsock-backend,fd={fd}"));
                self.device("vhost-user-vsock", "id=vsock,chardev=vsock-backend");
            }
        }
    }

    fn disk(&mut self, index: usize, disk: &Disk) {
        let driver = match disk.format {
            DiskFormat::Raw => "raw",
        };
        let path = escaped(&disk.path);
        self.option(
            "-blockdev",
            format!(
                "driver=file,node-name=file{index},filename={path},read-only=on,auto-read-only=off"
            ),
        );
        self.option(
            "-blockdev",
            format!("driver={driver},node-name=disk{index},file=file{index},read-only=on"),
        );
        self.device(
            "virtio-blk",
            &format!("drive=disk{index},serial={}", disk.serial),
        );
    }

    /// Nothing of it has to reach the host's disk: what is left of it when QEMU ends is of no use. A host
    /// without room is the guest's I/O error; the default is a VM that stands still.
    fn scratch(&mut self, scratch: &Scratch, fd: RawFd) {
        self.option("-add-fd", format!("fd={fd},set=1"));
        self.option(
            "-blockdev",
            "driver=file,node-name=scratch-file,filename=/dev/fdset/1,locking=off,cache.no-flush=on",
        );
        self.option(
            "-blockdev",
            "driver=raw,node-name=scratch,file=scratch-file,cache.no-flush=on",
        );
        self.device(
            "virtio-blk",
            &format!(
                "drive=scratch,serial={},rerror=report,werror=report",
                scratch.serial
            ),
        );
    }

    /// Without the option ROM, from which nobody boots.
    fn nic(&mut self, index: usize, mac: [u8; 6], fds: Option<CardFds>) {
        self.option("-netdev", nic::backend(index, fds));
        let rom = match self.machine {
            Machine::Q35 => ",romfile=",
            Machine::Microvm => "",
        };
        self.device("virtio-net", &format!("{}{rom}", nic::card(index, mac)));
    }

    fn shared_fs(&mut self, fs: &SharedFs) {
        self.option(
            "-chardev",
            format!("socket,id=fs-backend,path={}", escaped(&fs.socket)),
        );
        let SharedFs { tag, .. } = fs;
        self.device(
            "vhost-user-fs",
            &format!("chardev=fs-backend,tag={tag},queue-size=1024"),
        );
    }
}

/// A path as an argument of its own.
fn plain(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A path inside of a list of options, where a comma is written twice.
fn escaped(path: &Path) -> String {
    plain(path).replace(',', ",,")
}
