//! Firmware images: what is refused and how, that no bytes make the reader panic, and the
//! distribution's own image.

use crate::launch;

use std::fs;

use measure::TableError;
use measure::snp::{CpuModel, Firmware, FirmwareError, GuestFeatures, Launch, LaunchError};
use support::firmware::{
    HASHES, METADATA, METADATA_OFFSET, RESET, SECTIONS, direct_boot, entries, image, words,
};

fn word(word: u32) -> Vec<u8> {
    words(&[word])
}

fn refused(image: &[u8]) -> FirmwareError {
    Firmware::parse(image).unwrap_err()
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let without = |guid: [u8; 16]| {
        let entries: Vec<_> = entries()
            .into_iter()
            .filter(|entry| entry.0 != guid)
            .collect();
        image(4, &SECTIONS, &entries)
    };
    assert_eq!(refused(&without(METADATA)), FirmwareError::NoMetadata);
    assert_eq!(
        refused(&[0; 4096]),
        FirmwareError::Table(TableError::Missing)
    );
    assert_eq!(
        refused(&direct_boot(4)[1..]),
        FirmwareError::Size(4 * 4096 - 1)
    );
    assert_eq!(refused(&[]), FirmwareError::Size(0));
    assert_eq!(
        refused(&vec![0; (16 << 20) + 4096]),
        FirmwareError::Size((16 << 20) + 4096)
    );
    for (guid, name) in [
        (RESET, "of the reset address"),
        (METADATA, "of the SEV metadata"),
    ] {
        let mut twice = entries();
        twice.push((guid, word(METADATA_OFFSET.into())));
        assert_eq!(
            refused(&image(4, &SECTIONS, &twice)),
            FirmwareError::Twice(name)
        );
        let mut long = entries();
        long.retain(|entry| entry.0 != guid);
        long.push((guid, vec![0; 5]));
        let entry = FirmwareError::Entry {
            name,
            found: 5,
            needed: 4,
        };
        assert_eq!(refused(&image(4, &SECTIONS, &long)), entry);
    }
    for (offset, part) in [
        (0_u32, "outside"),
        (8, "outside"),
        (0x3ff, "ASEV"),
        (u32::MAX, "outside"),
    ] {
        let mut moved = entries();
        moved.retain(|entry| entry.0 != METADATA);
        moved.push((METADATA, word(offset)));
        let said = refused(&image(4, &SECTIONS, &moved)).to_string();
        assert!(said.contains(part), "{offset:#x}: {said}");
    }
    let start = 4 * 4096 - usize::from(METADATA_OFFSET);
    for (at, value, part) in [
        (4, 15, "length"),
        (8, 2, "version 2"),
        (12, 65, "more than 64"),
        (12, 6, "length"),
    ] {
        let mut broken = direct_boot(4);
        broken[start + at..start + at + 4].copy_from_slice(&u32::to_le_bytes(value));
        let said = refused(&broken).to_string();
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_section_that_is_not_known_or_cannot_be_is_refused() {
    let with = |section| {
        let mut sections = SECTIONS.to_vec();
        sections.push(section);
        refused(&image(4, &sections, &entries()))
    };
    assert_eq!(
        with([0x90_0000, 0x1000, 5]),
        FirmwareError::SectionKind {
            kind: 5,
            address: 0x90_0000
        }
    );
    for (section, part) in [
        ([0x90_0001, 0x1000, 1], "whole pages"),
        ([0x90_0000, 0, 1], "whole pages"),
        ([0x90_0000, 0x1001, 1], "whole pages"),
        ([0x90_0000, 0x0400_1000, 1], "64 MiB"),
        ([0x80_8000, 0x1000, 1], "takes no page twice"),
        ([0x7f_f000, 0x2000, 4], "takes no page twice"),
        ([0xffff_c000, 0x1000, 1], "the firmware itself"),
        ([0xffff_f000, 0x1000, 1], "the firmware itself"),
        ([0x90_0000, 0x1000, 2], "one page, once"),
        ([0x90_0000, 0x1000, 3], "one page, once"),
        ([0x90_0000, 0x1000, 0x10], "one page, once"),
    ] {
        let said = with(section).to_string();
        assert!(said.contains(part), "{section:x?}: {said}");
    }
    let two_pages: Vec<_> = SECTIONS
        .iter()
        .map(|section| {
            if section[2] == 2 {
                [0x90_0000, 0x2000, 2]
            } else {
                *section
            }
        })
        .collect();
    let said = refused(&image(4, &two_pages, &entries())).to_string();
    assert!(said.contains("one page, once"), "{said}");
    for table in [
        [0x81_1000, 0x400],
        [0x80_fc00, 0x400],
        [0x81_0f60, 0x400],
        [0x81_0c00, 0xa0],
    ] {
        let mut moved = entries();
        moved.retain(|entry| entry.0 != HASHES);
        moved.push((HASHES, words(&table)));
        let said = refused(&image(4, &SECTIONS, &moved)).to_string();
        assert!(said.contains("does not fit"), "{table:x?}: {said}");
    }
}

#[test]
fn firmware_takes_hashes_where_it_has_their_page_and_their_place() {
    assert!(Firmware::parse(&direct_boot(4)).unwrap().takes_hashes());
    let mut placeless = entries();
    placeless.retain(|entry| entry.0 != HASHES);
    let pageless: Vec<_> = SECTIONS
        .into_iter()
        .filter(|section| section[2] != 0x10)
        .collect();
    for generic in [
        image(4, &SECTIONS, &placeless),
        image(4, &pageless, &placeless),
        image(4, &pageless, &entries()),
    ] {
        assert!(!Firmware::parse(&generic).unwrap().takes_hashes());
    }
}

#[test]
fn one_vcpu_needs_no_reset_address_and_two_do() {
    let mut alone = entries();
    alone.retain(|entry| entry.0 != RESET);
    let firmware = Firmware::parse(&image(4, &SECTIONS, &alone)).unwrap();
    let cpu: CpuModel = "EPYC-Genoa".parse().unwrap();
    let launch = Launch {
        firmware: &firmware,
        kernel: None,
        cpu: &cpu,
        features: GuestFeatures::SNP,
    };
    assert!(launch.digest(1).is_ok());
    assert_eq!(launch.digest(2), Err(LaunchError::NoReset));
    for vcpus in [0, 4097, u32::MAX] {
        assert_eq!(launch.digest(vcpus), Err(LaunchError::Vcpus(vcpus)));
    }
    let whole = Firmware::parse(&direct_boot(4)).unwrap();
    let launch = Launch {
        firmware: &whole,
        ..launch
    };
    let all: Vec<_> = launch.digests().unwrap().collect();
    assert_eq!(all.len(), 4096);
    assert_eq!(Ok(all[3]), launch.digest(4));
    assert_ne!(all[0], all[1]);
}

/// A million changes would take long; each of these hits the last pages, which are read.
#[test]
fn no_change_of_an_image_makes_the_reader_panic() {
    let whole = direct_boot(4);
    let (mut kept, mut state) = (0, 0x9e37_79b9_7f4a_7c15_u64);
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 8).unwrap() % below
    };
    let small = whole[whole.len() - 4096..].to_vec();
    for _ in 0..20_000 {
        let mut changed = small.clone();
        for _ in 0..=random(3) {
            let last = 0x420;
            let at = changed.len() - 1 - random(last);
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
        if let Ok(firmware) = Firmware::parse(&changed) {
            kept += 1;
            assert!(firmware.sections().len() <= 64);
        }
    }
    // Most changes hit bytes that no part of a launch depends on.
    assert!(kept > 100, "{kept}");
}

#[test]
fn the_distributions_firmware_is_read() {
    const IMAGE: &str = "/usr/share/ovmf/OVMF.fd";
    let Ok(image) = fs::read(IMAGE) else {
        support::skip(&format!("needs `{IMAGE}`; `.ci/setup` installs it"));
        return;
    };
    let firmware = Firmware::parse(&image).unwrap();
    let bytes: u64 = firmware
        .sections()
        .iter()
        .map(|section| section.bytes)
        .sum();
    assert!(bytes >= 0x2000, "{:x?}", firmware.sections());
    launch::digest(&firmware, None, "EPYC-v4", 1, 8);
}
