//! IGVM files: the digest is that of the pages which QEMU loads, and what QEMU would not load as it is,
//! is refused.

use measure::snp::{
    CpuModel, Firmware, GuestFeatures, Igvm, IgvmError, IgvmLaunch, KernelHashes, LaunchDigest, Vmm,
};
use support::firmware::{SECTIONS, entries, image};
use support::igvm::{Builder, REGISTERS, SNP, hashes, reset, seal};

use crate::launch::{self, hash, link};

const POLICY: u64 = 0x3_0000;
/// EPYC-v4.
const SIGNATURE: u32 = 0x80_0f12;

fn parse(file: &[u8]) -> Result<Igvm, IgvmError> {
    Igvm::parse(file, Vmm::Qemu)
}

fn digest(
    file: &Igvm,
    kernel: Option<&KernelHashes>,
    vcpus: u32,
) -> Result<LaunchDigest, IgvmError> {
    let cpu: CpuModel = "EPYC-v4".parse().unwrap();
    let features = GuestFeatures::SNP;
    let launch = IgvmLaunch {
        file,
        kernel,
        cpu: &cpu,
        features,
    };
    launch.digest(vcpus)
}

/// The sections of a firmware that a launch without an IGVM file measures by the same kinds of pages.
fn sections() -> Vec<[u32; 3]> {
    let same = |section: &&[u32; 3]| matches!(section[2], 2 | 3 | 0x10);
    SECTIONS.iter().filter(same).copied().collect()
}

/// The registers of a second vCPU of that firmware.
pub(crate) fn second() -> Vec<u8> {
    let mut page = reset(SIGNATURE);
    page[0x18..0x20].copy_from_slice(&0x80_0000_u64.to_le_bytes());
    page[0x178..0x180].copy_from_slice(&0xb004_u64.to_le_bytes());
    page
}

fn with_content_of(firmware: &[u8], hashes: &[u8]) -> Builder {
    let mut file = Builder::snp(POLICY);
    // Wherever registers are in the file, KVM measures them last.
    file.vcpu(0, REGISTERS, &reset(SIGNATURE));
    file.pages((1 << 32) - firmware.len() as u64, firmware);
    file.page(0x80_d000, 1, 0, None).page(0x80_e000, 2, 0, None);
    file.page(0x81_0000, 0, 0, Some(hashes));
    file
}

#[test]
fn a_file_with_the_content_of_a_firmware_has_the_digest_of_its_launch() {
    let image = image(4, &sections(), &entries());
    let firmware = Firmware::parse(&image).unwrap();
    let kernel = KernelHashes::new(b"MZ kernel", Some(b"initramfs"), "quiet").unwrap();
    let page = hashes(b"MZ kernel", b"initramfs", b"quiet\0");
    let mut builder = with_content_of(&image, &page);
    let file = parse(&builder.file()).unwrap();
    assert_eq!((file.policy(), file.least_vcpus()), (POLICY, 1));
    let found = digest(&file, Some(&kernel), 1).unwrap().hex();
    assert_eq!(
        found,
        launch::digest(&firmware, Some(&kernel), "EPYC-v4", 1, 1)
    );

    builder.vcpu(1, REGISTERS, &second());
    let file = parse(&builder.file()).unwrap();
    let found = digest(&file, Some(&kernel), 2).unwrap().hex();
    assert_eq!(
        found,
        launch::digest(&firmware, Some(&kernel), "EPYC-v4", 1, 2)
    );
    let least = 2;
    assert_eq!(
        digest(&file, None, 1),
        Err(IgvmError::Vcpus { vcpus: 1, least })
    );
}

#[test]
fn the_kernel_is_the_one_that_the_file_ties_to_the_guest() {
    let image = image(4, &sections(), &entries());
    let page = hashes(b"MZ kernel", b"initramfs", b"quiet\0");
    let file = |builder: &Builder| parse(&builder.file()).unwrap();
    let whole = file(&with_content_of(&image, &page));
    let mut unmeasured = Builder::snp(POLICY);
    unmeasured.pages((1 << 32) - image.len() as u64, &image);
    let without = file(&unmeasured);
    unmeasured.page(0x81_0000, 0, 2, Some(&page));
    let unmeasured = file(&unmeasured);
    let mut bare = Builder::snp(POLICY);
    bare.page(0x81_0000, 0, 0, Some(&page));
    let bare = file(&bare);
    let kernel = KernelHashes::new(b"MZ kernel", Some(b"initramfs"), "quiet").unwrap();
    let other = kernel.clone().with_command_line("quiet debug").unwrap();
    assert!(digest(&whole, Some(&kernel), 1).is_ok());
    for (file, kernel, named) in [
        (&whole, &other, "another kernel"),
        (&without, &kernel, "not in it"),
        (&unmeasured, &kernel, "not measured"),
        (&bare, &kernel, "no place for hashes"),
    ] {
        let said = digest(file, Some(kernel), 1).unwrap_err().to_string();
        assert!(said.contains(named), "{said}");
        assert!(digest(file, None, 1).is_ok());
    }
}

#[test]
fn pages_are_measured_by_kind_and_in_the_order_in_which_qemu_hands_them_over() {
    let (first, third) = ([7; 4096], [9; 4096]);
    let mut builder = Builder::snp(POLICY);
    builder.area(4, 0x2000).area(5, 0x1000);
    builder.page(0x1000, 0, 0, Some(&first));
    builder.page_for(SNP << 1, 0x2000, [0, 0], Some(&third));
    builder.page(0x2000, 0, 0, None).page(0x3000, 0, 0, None);
    // Behind a run of pages in the file, and before it in the chain.
    builder.insert(4, 0x8000);
    builder
        .page(0x4000, 0, 0, None)
        .page(0x5000, 0, 2, Some(&third));
    builder.page(0x6000, 3, 0, None);
    builder.insert(5, 0xa000);
    builder.header(0x305, vec![0; 24]);
    let file = parse(&builder.file()).unwrap();
    let mut found = [0; 48];
    for (kind, address, content) in [
        (1, 0x1000, hash(&first)),
        (4, 0x8000, [0; 48]),
        (4, 0x9000, [0; 48]),
        (1, 0x2000, hash(&[0; 4096])),
        (1, 0x3000, hash(&[0; 4096])),
        (1, 0x4000, hash(&[0; 4096])),
        (4, 0x5000, [0; 48]),
        (4, 0xa000, [0; 48]),
        (6, 0x6000, [0; 48]),
        (2, REGISTERS, hash(&reset(SIGNATURE))),
        (2, REGISTERS, hash(&reset(SIGNATURE))),
    ] {
        found = link(found, content, kind, address);
    }
    assert_eq!(digest(&file, None, 2), Ok(LaunchDigest(found)));
}

#[test]
fn an_id_block_and_features_in_the_file_are_those_of_the_launch() {
    let mut builder = Builder::snp(POLICY);
    builder.page(0, 0, 0, None);
    let file = parse(&builder.file()).unwrap();
    let right = digest(&file, None, 1).unwrap();
    let with_block = |digest: [u8; 48]| {
        let mut content = SNP.to_le_bytes().to_vec();
        content.extend([0; 4]);
        content.extend(digest);
        content.resize(696, 0);
        let mut builder = builder.clone();
        parse(&builder.header(0x30b, content).file()).unwrap()
    };
    assert_eq!(digest(&with_block(right.0), None, 1), Ok(right));
    for (file, vcpus) in [(with_block([1; 48]), 1), (with_block(right.0), 2)] {
        let refused = digest(&file, None, vcpus).unwrap_err();
        assert!(matches!(refused, IgvmError::IdBlock { .. }), "{refused}");
    }
    let mut registers = reset(SIGNATURE);
    registers[0x3b0] = 0x21;
    let file = parse(&builder.vcpu(0, REGISTERS, &registers).file()).unwrap();
    let (said, asked) = (0x21, 1);
    assert_eq!(
        digest(&file, None, 1),
        Err(IgvmError::Features { said, asked })
    );
}

#[test]
fn what_qemu_would_not_load_as_it_is_is_refused_by_name() {
    type Change = fn(&mut Builder) -> &mut Builder;
    let changes: [(Change, &str); 22] = [
        (|file| file.header(0x308, vec![0; 8]), "SRAT"),
        (|file| file.header(0x311, vec![0; 8]), "VBS_MEASUREMENT"),
        (
            |file| file.header(0x8000_0302, vec![0; 24]),
            "unknown type (0x80000302)",
        ),
        (|file| file.header(0x305, vec![0; 23]), "another length"),
        (|file| file.header(0x101, vec![0; 16]), "stands behind"),
        (|file| file.page(0x1000, 0, 0, None), "there twice"),
        (
            |file| file.page(0x2001, 0, 0, None),
            "does not begin where pages do",
        ),
        (|file| file.page(1 << 52, 0, 0, None), "beyond all memory"),
        (|file| file.page(0x2000, 0, 1, None), "2 MiB"),
        (|file| file.page(0x2000, 0, 4, None), "shared"),
        (|file| file.page(0x2000, 0, 8, None), "flag"),
        (
            |file| file.page(0x2000, 4, 0, None),
            "type that is not known",
        ),
        (|file| file.insert(1, 0x2000), "none of this number"),
        (|file| file.area(1, 0x1001), "whole pages"),
        (|file| file.area(1, u64::MAX), "whole pages"),
        (|file| file.area(1, 0x1000).area(1, 0x1000), "there twice"),
        (
            |file| file.area(1, 0x1000).insert(1, 0x2000).insert(1, 0x3000),
            "into memory twice",
        ),
        (|file| file.area(1, 0x1000).insert(1, 0x1000), "there twice"),
        (
            |file| {
                file.area(1, 0x1000);
                file.header(0x307, vec![1, 0, 0, 0, 0xfd, 0xf, 0, 0])
            },
            "behind its end",
        ),
        (|file| file.vcpu(0, 0x2000, &reset(0)), "another address"),
        (
            |file| {
                file.vcpu(0, REGISTERS, &reset(0))
                    .vcpu(0, REGISTERS, &reset(0))
            },
            "are there twice",
        ),
        (|file| file.vcpu(1, REGISTERS, &reset(0)), "those of vCPU 0"),
    ];
    for (change, named) in changes {
        let mut builder = Builder::snp(POLICY);
        builder.page(0x1000, 0, 0, None);
        change(&mut builder);
        let said = parse(&builder.file()).unwrap_err().to_string();
        assert!(said.contains(named), "{named}: {said}");
    }
    for (at, value, named) in [
        (0xd1, 0, "SVME"),
        (0x148, 0, "MCE"),
        (0x158, 0, "ET in CR0"),
        (0x15b, 0x60, "CD or NW"),
        (0x160, 1, "DR7"),
        (0x170, 0, "RFLAGS"),
        (0x3b0, 0, "SNPActive"),
        (0xcb, 3, "besides what QEMU takes over"),
        (0x22, 0xf3, "privilege level in SS"),
        (0x13, 0x10, "bits in attributes"),
        (0x66, 1, "limits"),
        (0x40c, 1, "besides what QEMU takes over"),
        (0x62, 1, "besides what QEMU takes over"),
        (0xfff, 1, "besides what QEMU takes over"),
    ] {
        let mut registers = reset(SIGNATURE);
        registers[at] = value;
        let mut builder = Builder::snp(POLICY);
        builder.page(0, 0, 0, None).vcpu(0, REGISTERS, &registers);
        let said = parse(&builder.file()).unwrap_err().to_string();
        assert!(said.contains(named), "{named}: {said}");
    }
}

#[test]
fn a_file_for_others_or_of_nothing_is_refused() {
    let mut native = Builder::default();
    native.header(1, vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    native.page(0, 0, 0, None);
    assert_eq!(parse(&native.file()).unwrap_err(), IgvmError::Platform);
    let empty = Builder::snp(POLICY).file();
    assert_eq!(parse(&empty).unwrap_err(), IgvmError::Empty);
    let mut lawless = Builder::default();
    lawless.header(1, vec![1, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    lawless.page(0, 0, 0, None);
    assert_eq!(parse(&lawless.file()).unwrap_err(), IgvmError::NoPolicy);
}

#[test]
fn a_file_that_was_cut_or_changed_is_refused() {
    let mut builder = Builder::snp(POLICY);
    builder.page(0x1000, 0, 0, Some(&[7; 4096]));
    builder.vcpu(0, REGISTERS, &reset(SIGNATURE));
    let file = builder.file();
    parse(&file).unwrap();
    for length in 0..file.len() {
        assert!(parse(&file[..length]).is_err(), "{length} bytes");
    }
    let mut changed = file.clone();
    changed[40] ^= 1;
    let said = parse(&changed).unwrap_err();
    assert!(matches!(said, IgvmError::Checksum { .. }), "{said}");
    let page = 24 + 24 + 24;
    for (at, value, named) in [
        (0, 0, "begin with IGVM"),
        (4, 3, "version 3"),
        (8, 16, "headers begin"),
        (8, 28, "headers begin"),
        (12, u32::MAX, "more than 8 MiB"),
        (12, 0x7f_fff8, "outside of it"),
        (12, 20, "does not end where all of them do"),
        (16, 100, "its length"),
        (24 + 4, u32::MAX, "does not end where all of them do"),
        // The page's data: among the headers, and partly behind the file.
        (page + 8 + 12, 24, "outside of the file's data"),
        (page + 8 + 12, 0x2000, "outside of the file's data"),
        (page + 8 + 12, u32::MAX, "outside of the file's data"),
    ] {
        let mut changed = file.clone();
        changed[at..at + 4].copy_from_slice(&value.to_le_bytes());
        seal(&mut changed);
        let said = parse(&changed).unwrap_err().to_string();
        assert!(said.contains(named), "{at}: {named}: {said}");
    }
}
