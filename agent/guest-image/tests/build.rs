//! Images built from a small kernel directory made here: the same inputs give the same bytes, and
//! what could not boot is refused.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use guest_image::{Manifest, build, lz4};
use tempfile::TempDir;

/// The modules of the kernel made here: path, and what it depends on.
const MODULES: &[(&str, &str)] = &[
    ("drivers/virtio/virtio_mmio.ko", ""),
    ("net/vmw_vsock/vsock.ko", ""),
    (
        "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
        "vsock",
    ),
    (
        "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
        "vmw_vsock_virtio_transport_common,vsock",
    ),
    ("drivers/block/virtio_blk.ko", ""),
    ("drivers/scsi/scsi_mod.ko", ""),
    ("drivers/scsi/virtio_scsi.ko", "scsi_mod"),
    ("drivers/scsi/sd_mod.ko", "scsi_mod"),
    ("drivers/net/virtio_net.ko", ""),
    ("drivers/char/hw_random/virtio-rng.ko", ""),
    ("drivers/virtio/virtio_balloon.ko", ""),
    ("fs/overlayfs/overlay.ko", ""),
    ("fs/configfs/configfs.ko", ""),
    ("fs/erofs/erofs.ko", ""),
    ("drivers/block/loop.ko", ""),
    ("drivers/md/dm-mod.ko", ""),
    ("drivers/md/dm-verity.ko", "dm-mod"),
    ("drivers/md/dm-crypt.ko", "dm-mod"),
    ("drivers/md/dm-integrity.ko", "dm-mod"),
    ("crypto/xts.ko", ""),
    ("crypto/gcm.ko", ""),
    ("drivers/virt/coco/tsm.ko", "configfs"),
    ("drivers/virt/coco/sev-guest.ko", "tsm"),
    ("drivers/virt/coco/tdx-guest.ko", "tsm"),
    ("drivers/usb/unwanted.ko", ""),
];

/// What the owner counts these images by.
const NUMBER: u64 = 7;

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(order: impl Iterator<Item = usize>) -> Self {
        let dir = TempDir::new().unwrap();
        let kernel = dir.path().join("kernel");
        for index in order {
            let (path, depends) = MODULES[index];
            let path = kernel.join("modules").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, elf(&format!("depends={depends}\0"), &[])).unwrap();
        }
        fs::write(
            kernel.join("modules.builtin"),
            "kernel/arch/x86/crypto/aesni-intel.ko\n",
        )
        .unwrap();
        fs::write(kernel.join("vmlinux"), elf("", &pvh_note())).unwrap();
        fs::write(kernel.join("vmlinuz"), "bzImage").unwrap();
        let record = r#"{"flavour":"debian","release":"6.12.1","packages":[]}"#;
        fs::write(kernel.join("kernel.json"), record).unwrap();
        fs::write(dir.path().join("agent"), elf("agent", &[])).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn build(&self, out: &Path) -> Result<Manifest, guest_image::image::ImageError> {
        build(&self.path("agent"), &self.path("kernel"), out, NUMBER)
    }

    fn refusal(&self) -> String {
        self.build(&self.path("out")).unwrap_err().to_string()
    }
}

#[test]
fn two_builds_are_the_same_bit_for_bit() {
    let first = Bench::new(0..MODULES.len());
    let second = Bench::new((0..MODULES.len()).rev());
    first.build(&first.path("out")).unwrap();
    second.build(&second.path("elsewhere")).unwrap();
    for name in ["vmlinux", "vmlinuz", "initramfs.cpio", "manifest.json"] {
        let one = fs::read(first.path("out").join(name)).unwrap();
        let other = fs::read(second.path("elsewhere").join(name)).unwrap();
        assert!(one == other, "{name} differs");
    }
}

#[test]
fn builds_into_one_directory_at_once_take_turns() {
    let bench = Bench::new(0..MODULES.len());
    let out = bench.path("out");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| bench.build(&out).unwrap());
        }
    });
    let manifest = Manifest::read(&out).unwrap();
    manifest.verify(&out).unwrap();
    assert_eq!(manifest.number, NUMBER);
}

#[test]
fn the_initramfs_has_the_agent_and_the_modules_in_load_order_and_nothing_else() {
    let bench = Bench::new(0..MODULES.len());
    bench.build(&bench.path("out")).unwrap();
    let packed = fs::read(bench.path("out/initramfs.cpio")).unwrap();
    let archive = lz4::unpack(&packed, 1 << 30).unwrap();
    let text = String::from_utf8_lossy(&archive);
    let load = "/modules/virtio_mmio.ko\n/modules/vsock.ko\n\
                /modules/vmw_vsock_virtio_transport_common.ko\n\
                /modules/vmw_vsock_virtio_transport.ko\n/modules/virtio_blk.ko\n\
                /modules/virtio_net.ko\n/modules/overlay.ko\n/modules/configfs.ko\n";
    assert!(text.contains(load));
    let encryption = "\nencryption /modules/dm_mod.ko,/modules/dm_crypt.ko,/modules/dm_integrity.ko,\
                      /modules/loop.ko,/modules/gcm.ko,/modules/xts.ko\n";
    assert!(text.contains(encryption));
    let scratch = "\nscratch /modules/dm_mod.ko,/modules/dm_crypt.ko,/modules/dm_integrity.ko,\
                   /modules/loop.ko,/modules/gcm.ko\n";
    assert!(text.contains(scratch));
    let tee = "\nsev-guest /modules/configfs.ko,/modules/tsm.ko,/modules/sev_guest.ko\n";
    assert!(text.contains(tee));
    assert!(text.contains("\nballoon /modules/virtio_balloon.ko\n"));
    let scsi = "\nscsi /modules/scsi_mod.ko,/modules/virtio_scsi.ko,/modules/sd_mod.ko\n";
    assert!(text.contains(scsi));
    assert!(!text.contains("unwanted"));
    assert!(!text.contains("aesni_intel.ko"), "it is built in");
}

#[test]
fn the_manifest_describes_the_files_and_notices_a_change() {
    let bench = Bench::new(0..MODULES.len());
    let out = bench.path("out");
    let built = bench.build(&out).unwrap();
    let read = Manifest::read(&out).unwrap();
    assert_eq!(read, built);
    read.verify(&out).unwrap();
    fs::write(out.join("initramfs.cpio"), "another").unwrap();
    let found = read.verify(&out).unwrap_err().to_string();
    assert!(found.contains("initramfs.cpio` has digest"), "{found}");
}

#[test]
fn a_manifest_of_another_version_is_refused() {
    let bench = Bench::new(0..MODULES.len());
    let out = bench.path("out");
    bench.build(&out).unwrap();
    let path = out.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"version\": 1", "\"version\": 2", 1)).unwrap();
    let refused = Manifest::read(&out).unwrap_err().to_string();
    assert!(
        refused.contains("version 2, and this program knows version 1"),
        "{refused}"
    );
}

#[test]
fn a_missing_module_is_named() {
    let bench = Bench::new((0..MODULES.len()).filter(|i| !MODULES[*i].0.ends_with("/tsm.ko")));
    assert_eq!(
        bench.refusal(),
        "the kernel has no module `tsm` or `tsm_report`, and it is not built in"
    );
}

#[test]
fn modules_that_need_each_other_in_a_circle_are_refused() {
    let bench = Bench::new(0..MODULES.len());
    let overlay = bench.path("kernel/modules/fs/overlayfs/overlay.ko");
    fs::write(overlay, elf("depends=erofs\0", &[])).unwrap();
    let erofs = bench.path("kernel/modules/fs/erofs/erofs.ko");
    fs::write(erofs, elf("depends=overlay\0", &[])).unwrap();
    assert_eq!(bench.refusal(), "module `overlay` depends on itself");
}

#[test]
fn a_dynamic_agent_is_refused_with_the_fix() {
    let bench = Bench::new(0..MODULES.len());
    let mut agent = elf("agent", &pvh_note());
    // Program header 0 becomes PT_INTERP.
    agent[64] = 3;
    fs::write(bench.path("agent"), agent).unwrap();
    let refused = bench.refusal();
    assert!(refused.contains("not a static program"), "{refused}");
    assert!(refused.contains("crt-static"), "{refused}");
}

#[test]
fn a_kernel_that_no_vmm_can_enter_is_refused() {
    let bench = Bench::new(0..MODULES.len());
    fs::write(bench.path("kernel/vmlinux"), elf("", &[])).unwrap();
    let refused = bench.build(&bench.path("out")).unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("no PVH entry"), "{cause}");
}

/// The Xen note that says where a VMM enters.
fn pvh_note() -> Vec<u8> {
    let words = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x0100_0000];
    words
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect()
}

/// An ELF file with one `.modinfo` section, and a note segment when there is a note.
fn elf(modinfo: &str, note: &[u8]) -> Vec<u8> {
    let names = b"\0.shstrtab\0.modinfo\0";
    let note_at = 64 + 56_u64;
    let names_at = note_at + note.len() as u64;
    let info_at = names_at + names.len() as u64;
    let table = info_at + modinfo.len() as u64;

    let mut file = vec![0_u8; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[0x20..0x28].copy_from_slice(&64_u64.to_le_bytes());
    file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    file[0x38..0x3a].copy_from_slice(&u16::from(!note.is_empty()).to_le_bytes());
    file[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());

    let mut program = [0_u8; 56];
    program[..4].copy_from_slice(&4_u32.to_le_bytes());
    program[8..16].copy_from_slice(&note_at.to_le_bytes());
    program[32..40].copy_from_slice(&(note.len() as u64).to_le_bytes());
    file.extend(program);
    file.extend(note);
    file.extend(names);
    file.extend(modinfo.as_bytes());
    for (name, offset, size) in [
        (1_u32, names_at, names.len() as u64),
        (11, info_at, modinfo.len() as u64),
    ] {
        let mut section = [0_u8; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[24..32].copy_from_slice(&offset.to_le_bytes());
        section[32..40].copy_from_slice(&size.to_le_bytes());
        file.extend(section);
    }
    file
}
