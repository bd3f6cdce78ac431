//! Firmware images for TDX: what is refused and how, MRTD step by step, that no bytes make a reader
//! panic, and the distribution's own image.

use crate::tdvf;

use std::fs;

use measure::tdx::{
    Dialect, Firmware, FirmwareError, HobError, KernelForm, LaunchError, Memory, PageOrder,
    SectionKind, Vmm, authenticode, td_hob,
};
use sha2::{Digest, Sha384};
use tdvf::{
    GLOBAL, METADATA, METADATA_OFFSET, Section, entry, image, kernel, launch, loader, sections,
    small, store,
};

fn refused(image: &[u8]) -> String {
    Firmware::parse(image, Vmm::Qemu).unwrap_err().to_string()
}

/// A small image with these sections.
fn with(sections: &[Section]) -> Vec<u8> {
    image(0x4000, &[], sections, &[entry()])
}

/// Its usual sections, and one more.
fn more(section: Section) -> Vec<u8> {
    let mut all = sections(0x1000, 0x3000);
    all.push(section);
    with(&all)
}

#[test]
fn an_image_that_is_no_firmware_for_tdx_is_refused_by_name() {
    let twice = image(0x4000, &[], &sections(0x1000, 0x3000), &[entry(), entry()]);
    let long = [(METADATA, vec![0; 5])];
    let long = image(0x4000, &[], &sections(0x1000, 0x3000), &long);
    for (image, part) in [
        (vec![], "has 0 bytes"),
        (small()[1..].to_vec(), "whole pages"),
        (vec![0; (16 << 20) + 4096], "at most 16777216"),
        (vec![0; 4096], "no OVMF table"),
        (support::firmware::direct_boot(4), "no TDX metadata"),
        (twice, "its place twice"),
        (long, "another length than 4"),
    ] {
        let said = refused(&image);
        assert!(said.contains(part), "{said}");
    }
    let start = small().len() - METADATA_OFFSET;
    for (at, value, part) in [
        (0, 0, "begin with TDVF"),
        (4, 15, "length"),
        (8, 2, "version 2"),
        (12, 65, "more than 64"),
        (12, 5, "length"),
    ] {
        let mut broken = small();
        broken[start + at..start + at + 4].copy_from_slice(&u32::to_le_bytes(value));
        let said = refused(&broken);
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_section_that_is_not_known_or_cannot_be_is_refused() {
    let unknown = FirmwareError::SectionKind {
        kind: 5,
        address: 0x90_0000,
        vmm: Vmm::Qemu,
    };
    let payload = more((0, 0, 0x90_0000, 0x1000, 5, 0));
    assert_eq!(Firmware::parse(&payload, Vmm::Qemu), Err(unknown));
    for (section, part) in [
        ((0, 0, 0x90_0001, 0x1000, 3, 0), "whole pages"),
        ((0, 0, 0x90_0000, 0, 3, 0), "whole pages"),
        ((0, 0, 0x90_0000, 0x1001, 3, 0), "whole pages"),
        ((0, 0, 0x90_0000, 0x0400_1000, 3, 0), "64 MiB"),
        ((0, 0, 0xffff_f000, 0x2000, 3, 0), "above 4 GiB"),
        ((0, 0, u64::MAX - 0xfff, 0x1000, 3, 0), "above 4 GiB"),
        ((0, 0, 0x80_5000, 0x1000, 3, 0), "takes no page twice"),
        ((0, 0, 0x7f_f000, 0x2000, 3, 0), "takes no page twice"),
        ((0, 0, 0xffff_f000, 0x1000, 3, 0), "takes no page twice"),
        ((0, 0, 0x90_0000, 0x1000, 3, 2), "other than MR.EXTEND"),
        ((0, 1, 0x90_0000, 0x1000, 3, 0), "content in the image"),
        ((0, 0, 0x90_0000, 0x1000, 0, 1), "no content"),
        (
            (0, 0x2000, 0x90_0000, 0x1000, 0, 1),
            "more than it has room",
        ),
        ((0, 0x800, 0x90_0000, 0x1000, 0, 1), "less content"),
        (
            (0x4000, 0x1000, 0x90_0000, 0x1000, 0, 1),
            "outside of the image",
        ),
        (
            (u32::MAX, u32::MAX, 0x90_0000, 0x1000, 0, 1),
            "outside of the image",
        ),
        ((0, 0, 0x90_0000, 0x1000, 2, 1), "written by the VMM"),
        ((0, 0, 0x90_0000, 0x1000, 2, 0), "not just one section"),
        (
            (0, 0x1000, 0x90_0000, 0x1000, 1, 0),
            "more than one section of variables",
        ),
        ((0, 0x1000, 0x90_0000, 0x1000, 0, 0), "without MR.EXTEND"),
    ] {
        let said = refused(&more(section));
        assert!(said.contains(part), "{section:x?}: {said}");
    }
    let usual = sections(0x1000, 0x3000);
    for (kind, part) in [(0, "no section of code"), (2, "not just one section")] {
        let less: Vec<_> = usual.iter().copied().filter(|one| one.4 != kind).collect();
        let said = refused(&with(&less));
        assert!(said.contains(part), "{said}");
    }
    let mut large = usual;
    large.extend([1u64, 2].map(|at| (0, 0, at << 28, 64 << 20, 3, 0)));
    let said = refused(&with(&large));
    assert!(said.contains("more than 128 MiB"), "{said}");
}

#[test]
fn other_kinds_are_read_for_the_vmm_that_takes_them_and_only_mrtd_is_predicted() {
    let bytes = more((0, 0, 0x90_0000, 0x1000, 5, 0));
    let firmware = Firmware::parse(&bytes, Vmm::CloudHypervisor).unwrap();
    assert_eq!(firmware.sections()[6].kind, SectionKind::Payload);
    assert_ne!(firmware.mrtd(PageOrder::EachPage), [0; 48]);
    let (dialect, loader, kernel) = (Dialect::edk2_202508(), loader(), kernel(0));
    let refused = launch(&firmware, &dialect, &loader, &kernel).predict();
    assert_eq!(refused, Err(LaunchError::Vmm(Vmm::CloudHypervisor)));
    let hob = td_hob(&firmware, Memory::new(1 << 30).unwrap());
    assert_eq!(hob, Err(HobError::Vmm(Vmm::CloudHypervisor)));
    // Less content than memory is zeros there, and counts as such.
    let hob = (0, 0, 0x80_9000, 0x2000, 2, 0);
    let mut start = vec![7; 0x1000];
    start[0x800..].fill(0);
    let of = |length| {
        let code = (0, length, 0x90_0000, 0x1000, 0, 1);
        image(0x4000, &start, &[code, hob], &[entry()])
    };
    let (short, whole) = (of(0x800), of(0x1000));
    let mrtd = |image: &[u8]| {
        let firmware = Firmware::parse(image, Vmm::CloudHypervisor).unwrap();
        firmware.mrtd(PageOrder::EachPage)
    };
    assert_eq!(mrtd(&short), mrtd(&whole));
}

/// The steps written out, as the TDX module's specification has them.
#[test]
fn mrtd_is_the_hash_of_the_steps_in_their_order() {
    let bytes = with(&[
        (0x3000, 0x1000, 0xffff_f000, 0x1000, 0, 1),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
    ]);
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    let step = |name: &str, address: u64| {
        let mut step = name.as_bytes().to_vec();
        step.resize(16, 0);
        step.extend(address.to_le_bytes());
        step.resize(128, 0);
        step
    };
    let mut stream = step("MEM.PAGE.ADD", 0xffff_f000);
    for chunk in 0..16 {
        stream.extend(step("MR.EXTEND", 0xffff_f000 + 256 * chunk));
        let at = 0x3000 + 256 * usize::try_from(chunk).unwrap();
        stream.extend(&bytes[at..at + 256]);
    }
    stream.extend(step("MEM.PAGE.ADD", 0x80_9000));
    stream.extend(step("MEM.PAGE.ADD", 0x80_a000));
    assert_eq!(
        firmware.mrtd(PageOrder::EachPage)[..],
        Sha384::digest(&stream)[..]
    );
    // With one page a section, both orders are the same; with more they are not.
    assert_eq!(
        firmware.mrtd(PageOrder::WholeSection),
        firmware.mrtd(PageOrder::EachPage)
    );
    let bytes = small();
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    assert_ne!(
        firmware.mrtd(PageOrder::WholeSection),
        firmware.mrtd(PageOrder::EachPage)
    );
}

#[test]
fn a_guest_too_small_for_the_firmware_is_refused_with_the_place() {
    let bytes = more((0, 0, 0x4000_0000, 0x1000, 3, 0));
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    let hob = |mib: u64| td_hob(&firmware, Memory::new(mib << 20).unwrap());
    assert_eq!(
        hob(1024),
        Err(HobError::NoMemory {
            address: 0x4000_0000,
            mib: 1024
        })
    );
    assert_eq!(hob(1025).unwrap().len(), 56 + 48 * 10);
    let mut many = sections(0x1000, 0x3000);
    many.extend((0..40).map(|at| (0, 0, 0x100_0000 + 0x2000 * at, 0x1000, 3, 0)));
    many[4].3 = 0x1000;
    let bytes = with(&many);
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    let said = td_hob(&firmware, Memory::new(1 << 30).unwrap()).unwrap_err();
    assert!(
        matches!(said, HobError::Room { room: 0x1000, .. }),
        "{said}"
    );
}

/// Each change hits what is read: metadata, table, headers of the kernel, commands of the loader.
#[test]
fn no_change_of_an_input_makes_a_reader_panic() {
    let stored = store(0x1000, &[(0x3f, GLOBAL, "PK", b"key")]);
    let whole = image(0x4000, &stored, &sections(0x1000, 0x3000), &[entry()]);
    let (whole_kernel, whole_loader) = (kernel(0x100), loader());
    let (mut kept, mut state) = (0, 0x9e37_79b9_7f4a_7c15_u64);
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 8).unwrap() % below
    };
    let mut change = |bytes: &[u8], from: usize, length: usize| {
        let mut changed = bytes.to_vec();
        for _ in 0..random(4) {
            let at = from + random(length);
            changed[at] = match random(4) {
                0 => 0,
                1 => 0xff,
                2 => changed[at] ^ (1 << random(8)),
                _ => u8::try_from(random(256)).unwrap(),
            };
        }
        if random(16) == 0 {
            changed.truncate(random(changed.len()));
        }
        changed
    };
    let dialect = Dialect::edk2_2024();
    for round in 0..20_000 {
        let start = whole.len() - METADATA_OFFSET;
        let image = change(&whole, start, METADATA_OFFSET);
        let image = if image.len() > 0x100 {
            change(&image, 0, 0x100)
        } else {
            image
        };
        let kernel = change(&whole_kernel, 0, 0x240);
        let loader = change(&whole_loader, 0, 0x110);
        let _ = authenticode(&kernel);
        let Ok(firmware) = Firmware::parse(&image, Vmm::Qemu) else {
            continue;
        };
        let mut launch = launch(&firmware, &dialect, &loader, &kernel);
        if round % 2 == 0 {
            launch.kernel_form = KernelForm::Patched;
        }
        // A hash over sections of many megabytes in each round would take long.
        let bytes: u64 = firmware.sections().iter().map(|one| one.bytes).sum();
        if bytes < 1 << 20 && launch.predict().is_ok() {
            kept += 1;
        }
    }
    // Most changes hit bytes that no part of a launch depends on.
    assert!(kept > 100, "{kept}");
}

#[test]
fn the_distributions_firmware_is_read() {
    const WHOLE: &str = "/usr/share/ovmf/OVMF.fd";
    const CODE: &str = "/usr/share/OVMF/OVMF_CODE.fd";
    let (Ok(whole), Ok(code)) = (fs::read(WHOLE), fs::read(CODE)) else {
        support::skip(&format!("needs `{WHOLE}`; `.ci/setup` installs it"));
        return;
    };
    let firmware = Firmware::parse(&whole, Vmm::Qemu).unwrap();
    let bytes: usize = firmware
        .sections()
        .iter()
        .map(|one| one.content.len())
        .sum();
    assert_eq!(bytes, whole.len());
    assert_ne!(firmware.mrtd(PageOrder::EachPage), [0; 48]);
    // Code without its variables has the same metadata, and is half of a firmware.
    let said = refused(&code);
    assert!(said.contains("give the whole image"), "{said}");
}
