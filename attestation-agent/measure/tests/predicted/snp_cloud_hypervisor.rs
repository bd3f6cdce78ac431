//! IGVM files by Cloud Hypervisor: the digest is that of its pages in the file's order, with the hashes that it
//! writes, and of the registers that KVM makes of a file's; and what it would not load is refused.

use measure::snp::{
    CpuModel, Firmware, GuestFeatures, Igvm, IgvmError, IgvmLaunch, KernelHashes, LaunchDigest, Vmm,
};
use support::firmware::{
    Entry, HASHES, METADATA, METADATA_OFFSET, RESET, direct_boot, image, words,
};
use support::igvm::{Builder, REGISTERS, SNP, hashes, reset};

use crate::launch::{self, hash, link};
use crate::snp_igvm::second;

const POLICY: u64 = 0x3_0000;
/// Kinds of pages in `PAGE_INFO`.
const NORMAL: u8 = 1;
const VMSA: u8 = 2;
const ZERO: u8 = 3;
const UNMEASURED: u8 = 4;
const SECRETS: u8 = 5;
const CPUID: u8 = 6;
const NOTHING: [u8; 48] = [0; 48];

fn parse(builder: &Builder) -> Result<Igvm, IgvmError> {
    Igvm::parse(&builder.file(), Vmm::CloudHypervisor)
}

fn promised(
    file: &Igvm,
    kernel: Option<&KernelHashes>,
    features: u64,
    vcpus: u32,
) -> Result<LaunchDigest, IgvmError> {
    let cpu: CpuModel = "EPYC-v4".parse().unwrap();
    let launch = IgvmLaunch {
        file,
        kernel,
        cpu: &cpu,
        features: GuestFeatures::new(features).unwrap(),
    };
    launch.digest(vcpus)
}

fn digest(
    file: &Igvm,
    kernel: Option<&KernelHashes>,
    vcpus: u32,
) -> Result<LaunchDigest, IgvmError> {
    promised(file, kernel, 1, vcpus)
}

/// A launch by another hand: pages, and then vCPUs.
fn chained(pages: &[(u8, u64, [u8; 48])], vcpus: &[Vec<u8>]) -> LaunchDigest {
    let mut found = NOTHING;
    for (kind, address, content) in pages {
        found = link(found, *content, *kind, *address);
    }
    for registers in vcpus {
        found = link(found, hash(registers), VMSA, REGISTERS);
    }
    LaunchDigest(found)
}

fn put(page: &mut [u8], at: usize, value: u64, bytes: usize) {
    page[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
}

/// What KVM makes of a vCPU that nobody touches: segments that were not used, and no processor known.
fn untouched() -> Vec<u8> {
    let mut page = reset(0x600);
    put(&mut page, 0x12, 0x9a, 2);
    put(&mut page, 0x92, 0x83, 2);
    for data in [0x00, 0x20, 0x30, 0x40, 0x50] {
        put(&mut page, data + 2, 0x92, 2);
    }
    page
}

/// A kernel as Cloud Hypervisor takes one, and its hashes.
fn kernel() -> (Vec<u8>, KernelHashes) {
    let mut kernel = b"MZ kernel".to_vec();
    kernel.resize(5000, 7);
    let initramfs = Some(&b"initramfs"[..]);
    let hashes = KernelHashes::by(Vmm::CloudHypervisor, &kernel, initramfs, "quiet").unwrap();
    (kernel, hashes)
}

/// The page at 0x10000 with that kernel's hashes over what it has else.
fn tied(content: u8) -> [u8; 48] {
    let (kernel, _) = kernel();
    let mut page = hashes(&kernel, b"initramfs", b"quiet\0");
    page[..0xc00].fill(content);
    hash(&page)
}

#[test]
fn pages_are_measured_in_the_files_order_and_vcpus_last() {
    let (first, other) = ([7; 4096], [9; 4096]);
    let mut builder = Builder::snp(POLICY);
    builder.vcpu(0, REGISTERS, &reset(0x80_0f12));
    builder
        .area(4, 0x2000)
        .header(0x30e, vec![4, 0, 0, 0, 0, 0, 0, 0]);
    builder.page(0x1000, 0, 0, Some(&first));
    builder.page_for(SNP << 1, 0x2000, [0, 0], Some(&other));
    builder.page(0x2000, 0, 0, None).page(0x3000, 0, 0, None);
    builder.insert(4, 0x8000);
    builder
        .page(0x4000, 0, 0, None)
        .page(0x5000, 0, 2, Some(&other));
    builder.page(0x6000, 2, 0, None).page(0x7000, 1, 0, None);
    builder.header(0x305, vec![0; 24]);
    let file = parse(&builder).unwrap();
    assert_eq!((file.policy(), file.least_vcpus()), (POLICY, 1));
    let pages = [
        (NORMAL, 0x1000, hash(&first)),
        (ZERO, 0x2000, NOTHING),
        (ZERO, 0x3000, NOTHING),
        (UNMEASURED, 0x8000, NOTHING),
        (UNMEASURED, 0x9000, NOTHING),
        (ZERO, 0x4000, NOTHING),
        (UNMEASURED, 0x5000, NOTHING),
        (CPUID, 0x6000, NOTHING),
        (SECRETS, 0x7000, NOTHING),
    ];
    let mut vcpus = vec![reset(0x80_0f12)];
    for count in 1..=3 {
        let expected = chained(&pages, &vcpus);
        assert_eq!(digest(&file, None, count), Ok(expected));
        vcpus.push(untouched());
    }
}

#[test]
fn hashes_are_written_into_the_files_page_or_behind_all_others() {
    let (_, kernel) = kernel();
    let (bare, filled) = ([5; 4096], (NORMAL, 0x1_0000, tied(5)));
    let (empty, zero) = ((NORMAL, 0x1_0000, tied(0)), (ZERO, 0x2000, NOTHING));
    // Type and flags of the page in the file, its content, the links with the hashes.
    for (page, content, pages) in [
        (Some([0, 0]), Some(&bare[..]), [filled, zero]),
        (Some([0, 2]), Some(&bare[..]), [filled, zero]),
        (Some([0, 0]), None, [empty, zero]),
        (Some([1, 0]), None, [empty, zero]),
        (None, None, [zero, empty]),
    ] {
        let mut builder = Builder::snp(POLICY);
        if let Some(page) = page {
            builder.page_for(SNP, 0x1_0000, page, content);
        }
        builder.page(0x2000, 0, 0, None);
        let file = parse(&builder).unwrap();
        assert!(!file.looks_for_hashes());
        let mut vcpus = vec![untouched()];
        for count in [1, 2] {
            let expected = Ok(chained(&pages, &vcpus));
            assert_eq!(digest(&file, Some(&kernel), count), expected, "{page:?}");
            vcpus.push(untouched());
        }
        let other = kernel.clone().with_command_line("quiet debug").unwrap();
        let without = digest(&file, None, 1);
        let another = digest(&file, Some(&other), 1);
        assert!(without != another && digest(&file, Some(&kernel), 1) != another);
    }
}

#[test]
fn hashes_that_something_lies_over_or_firmware_looks_for_elsewhere_are_refused() {
    type Change = fn(&mut Builder) -> &mut Builder;
    let (_, kernel) = kernel();
    let changes: [(Change, &str); 4] = [
        (
            |file| file.area(1, 0x2000).insert(1, 0xf000),
            "lie over 0x10c00",
        ),
        (|file| file.page(0x1_0000, 2, 0, None), "lie over 0x10c00"),
        (|file| file.vcpu(0, 0x1_0000, &reset(0)), "lie over 0x10c00"),
        // Where edk2's firmware has them.
        (
            |file| file.pages((1 << 32) - 4096, &direct_boot(1)),
            "elsewhere than at 0x10c00",
        ),
    ];
    for (change, named) in changes {
        let mut builder = Builder::snp(POLICY);
        builder.page(0x2000, 0, 0, None);
        let file = parse(change(&mut builder)).unwrap();
        let said = digest(&file, Some(&kernel), 1).unwrap_err().to_string();
        assert!(said.contains(named), "{named}: {said}");
        assert!(digest(&file, None, 1).is_ok() && !file.looks_for_hashes());
    }
}

/// The table of a firmware that looks for hashes where Cloud Hypervisor writes them.
fn entries() -> [Entry; 3] {
    [
        (METADATA, words(&[METADATA_OFFSET.into()])),
        (HASHES, words(&[0x1_0c00, 0x400])),
        (RESET, words(&[0x80_b004])),
    ]
}

/// Cloud Hypervisor's own authors compare so (their pull request 8123): with what others predict for QEMU.
#[test]
fn a_file_with_the_content_of_a_firmware_has_the_digest_of_qemus_launch_from_that() {
    let (_, kernel) = kernel();
    let sections = [
        [0x2000, 0x3000, 1],
        [0x1_0000, 0x1000, 0x10],
        [0x8000, 0x1000, 2],
        [0x9000, 0x1000, 3],
    ];
    let image = image(2, &sections, &entries());
    let firmware = Firmware::parse(&image).unwrap();
    let mut builder = Builder::snp(POLICY);
    builder.pages((1 << 32) - image.len() as u64, &image);
    for address in [0x2000, 0x3000, 0x4000, 0x1_0000] {
        builder.page(address, 0, 0, None);
    }
    builder.page(0x8000, 1, 0, None).page(0x9000, 2, 0, None);
    builder.vcpu(0, REGISTERS, &reset(0x80_0f12));
    builder.vcpu(1, REGISTERS, &second());
    let file = parse(&builder).unwrap();
    for vcpus in [1, 2] {
        for kernel in [Some(&kernel), None] {
            let found = digest(&file, kernel, vcpus).unwrap().hex();
            let expected = launch::digest(&firmware, kernel, "EPYC-v4", 1, vcpus);
            assert_eq!(found, expected, "{vcpus} vCPUs");
        }
    }
}

#[test]
fn firmware_that_looks_at_that_place_is_known_to() {
    let (_, kernel) = kernel();
    let image = image(1, &[[0x1_0000, 0x1000, 0x10]], &entries());
    let mut builder = Builder::snp(POLICY);
    builder.pages((1 << 32) - image.len() as u64, &image);
    let file = parse(builder.page(0x1_0000, 0, 0, None)).unwrap();
    assert!(file.looks_for_hashes());
    let pages = [
        (NORMAL, 0xffff_f000, hash(&image)),
        (NORMAL, 0x1_0000, tied(0)),
    ];
    let expected = chained(&pages, &[untouched()]);
    assert_eq!(digest(&file, Some(&kernel), 1), Ok(expected));
}

#[test]
fn registers_are_those_that_kvm_makes_of_a_files() {
    let mut file = vec![0xff; 4096];
    let mut expected = untouched();
    for segment in [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x70, 0x90] {
        put(&mut file, segment + 2, 0xf6fb, 2);
        expected[segment..segment + 16].copy_from_slice(&file[segment..segment + 16]);
        put(&mut expected, segment + 2, 0x6fb, 2);
    }
    for at in [0x64, 0x84] {
        put(&mut file, at, 0x1234, 4);
        expected[at..at + 12].copy_from_slice(&file[at..at + 12]);
    }
    // CPL of SS, then EFER, CR4, CR3, CR0, RFLAGS and the general ones.
    expected[0xcb] = 3;
    for (at, value, kept) in [
        (0x0d0, 0x500, 0x1500),
        (0x148, 0x20, 0x60),
        (0x150, 0x7000, 0x7000),
        (0x158, 0xe000_0011, 0x8000_0011),
        (0x170, 0x200, 0x202),
        (0x178, 0xff_fff0, 0xff_fff0),
        (0x1d8, 0x8000, 0x8000),
        (0x1f8, 1, 1),
        (0x310, 0x80_0f12, 0x80_0f12),
        (0x360, 8, 8),
        (0x3b0, 0x20, 0x21),
    ] {
        put(&mut file, at, value, 8);
        put(&mut expected, at, kept, 8);
    }
    for (at, bytes) in [(0x308, 8), (0x318, 8), (0x328, 0x38), (0x368, 0x18)] {
        expected[at..at + bytes].copy_from_slice(&file[at..at + bytes]);
    }
    let mut second = untouched();
    put(&mut second, 0x178, 0x4321, 8);
    let mut builder = Builder::snp(POLICY);
    builder.page(0x2000, 0, 0, None).vcpu(0, 0x3000, &file);
    builder.vcpu(2, 0x3000, &second);
    let parsed = parse(&builder).unwrap();
    // What the first vCPU is promised holds for all.
    let vcpus = [expected, untouched(), second].map(|mut page| {
        put(&mut page, 0x3b0, 0x21, 8);
        page
    });
    let pages = [(ZERO, 0x2000, NOTHING)];
    for count in 1..=3_u32 {
        let vcpus = &vcpus[..count as usize];
        let found = promised(&parsed, None, 0x21, count);
        assert_eq!(found, Ok(chained(&pages, vcpus)), "{count} vCPUs");
    }
    let (said, asked) = (0x21, 1);
    assert_eq!(
        digest(&parsed, None, 1),
        Err(IgvmError::Features { said, asked })
    );
    put(&mut file, 0x64, 0x1_0000, 4);
    let refused = parse(builder.vcpu(1, 0x3000, &file))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("more than 16 bits"), "{refused}");
}

#[test]
fn a_policy_is_the_first_that_says_something_and_else_the_vmms() {
    let header = |policy: u64| {
        let mut content = policy.to_le_bytes().to_vec();
        content.extend(SNP.to_le_bytes());
        content.extend([0; 4]);
        content
    };
    for (policies, taken) in [
        (&[][..], 0x3_0000),
        (&[0], 0x3_0000),
        (&[0, 0xb_0000, 0x3_0000], 0xb_0000),
    ] {
        let mut builder = Builder::default();
        builder.header(1, vec![1, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for policy in policies {
            builder.header(0x101, header(*policy));
        }
        let file = parse(builder.page(0, 0, 0, None)).unwrap();
        assert_eq!(file.policy(), taken);
    }
}

#[test]
fn what_cloud_hypervisor_would_not_load_is_refused_by_name() {
    type Change = fn(&mut Builder) -> &mut Builder;
    let changes: [(Change, &str); 13] = [
        (
            |file| file.header(0x309, vec![0; 8]),
            "MADT (0x309), with which Cloud Hypervisor",
        ),
        (|file| file.header(0x313, vec![0; 8]), "ENVIRONMENT_INFO"),
        (|file| file.header(0x30a, vec![0; 8]), "MMIO_RANGES"),
        (|file| file.header(0x30d, vec![0; 16]), "ERROR_RANGE"),
        (|file| file.header(0x311, vec![0; 8]), "VBS_MEASUREMENT"),
        (|file| file.page(0x2000, 3, 0, None), "CPUID_XF"),
        (|file| file.page(0x2000, 0, 1, None), "2 MiB"),
        (|file| file.page(0x2000, 0, 4, None), "shared"),
        (|file| file.page(0x1000, 0, 0, None), "there twice"),
        (|file| file.vcpu(0, 0x1000, &reset(0)), "there twice"),
        (
            |file| file.vcpu(1, 0x2001, &reset(0)),
            "begin where pages do",
        ),
        (
            |file| file.vcpu(1, 0x2000, &reset(0)).vcpu(1, 0x2000, &reset(0)),
            "are there twice",
        ),
        (
            |file| {
                file.header(0x30b, id_block([0; 48]))
                    .header(0x30b, id_block([0; 48]))
            },
            "two ID blocks",
        ),
    ];
    for (change, named) in changes {
        let mut builder = Builder::snp(POLICY);
        builder.page(0x1000, 0, 0, None);
        let said = parse(change(&mut builder)).unwrap_err().to_string();
        assert!(said.contains(named), "{named}: {said}");
    }
}

fn id_block(digest: [u8; 48]) -> Vec<u8> {
    let mut content = SNP.to_le_bytes().to_vec();
    content.extend([0; 4]);
    content.extend(digest);
    content.resize(696, 0);
    content
}

#[test]
fn an_id_block_is_of_the_launch_with_the_hashes() {
    let (_, kernel) = kernel();
    let mut builder = Builder::snp(POLICY);
    builder.page(0x2000, 0, 0, None);
    let right = digest(&parse(&builder).unwrap(), Some(&kernel), 1).unwrap();
    let file = parse(builder.header(0x30b, id_block(right.0))).unwrap();
    assert_eq!(digest(&file, Some(&kernel), 1), Ok(right));
    let refused = digest(&file, None, 1).unwrap_err();
    assert!(matches!(refused, IgvmError::IdBlock { .. }), "{refused}");
}
