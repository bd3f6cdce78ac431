//! Firmware that starts real TDs: it is read whole, its keys of Secure Boot are seen, and its MRTD is what a
//! second computation gives, which shares no code with the first.

use crate::measured_boot::kept_firmware;
use crate::tdvf;

use measure::tdx::{Dialect, Firmware, LaunchError, PageOrder, SectionKind, SecureBoot, Vmm};
use sha2::{Digest, Sha384};
use tdvf::{GLOBAL, METADATA, Section, kernel, launch, loader};

const FIRMWARE: &str = "OVMF.inteltdx.ms.fd";
const PAGE: u64 = 4096;

fn word(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
}

fn long(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
}

/// Where these bytes begin in the image, each time.
fn places<'a>(image: &'a [u8], bytes: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let windows = image.windows(bytes.len()).enumerate();
    windows
        .filter(move |(_, it)| it == &bytes)
        .map(|(at, _)| at)
}

/// The sections of TDVF's metadata (Intel 344991, 11.2): its place stands before its GUID in the last page, with
/// the length of that entry between them.
fn sections(image: &[u8]) -> Vec<Section> {
    let last = image.len() - 4096;
    let guid = last + places(&image[last..], &METADATA).next().unwrap();
    let back = usize::try_from(word(image, guid - 6)).unwrap();
    let start = image.len() - back;
    assert_eq!(&image[start..start + 4], b"TDVF");
    let entries = (0..word(image, start + 12)).map(|number| {
        let at = start + 16 + 32 * usize::try_from(number).unwrap();
        (
            word(image, at),
            word(image, at + 4),
            long(image, at + 8),
            long(image, at + 16),
            word(image, at + 24),
            word(image, at + 28),
        )
    });
    entries.collect()
}

/// A block of 128 bytes that `TDH.MEM.PAGE.ADD` and `TDH.MR.EXTEND` write into MRTD's hash (Intel 348549, 12.2.1):
/// the name, the guest's address at 16, and zeros.
fn block(name: &[u8], address: u64) -> [u8; 128] {
    let mut block = [0; 128];
    block[..name.len()].copy_from_slice(name);
    block[16..24].copy_from_slice(&address.to_le_bytes());
    block
}

fn added(address: u64) -> Vec<u8> {
    block(b"MEM.PAGE.ADD", address).to_vec()
}

/// What measuring this page of 4096 bytes writes: sixteen times a block and the 256 bytes that it is of.
fn extended(address: u64, page: &[u8]) -> Vec<u8> {
    let chunks = page.chunks(256).zip((address..).step_by(256));
    chunks
        .flat_map(|(chunk, address)| [&block(b"MR.EXTEND", address)[..], chunk].concat())
        .collect()
}

/// MRTD by the metadata: pages in the sections' order, each measured at once or after all of its section.
fn mrtd(image: &[u8], order: PageOrder) -> Vec<u8> {
    let mut hash = Sha384::new();
    for (place, length, address, bytes, _, attributes) in sections(image) {
        let (place, length) = (place as usize, length as usize);
        let content = &image[place..place + length];
        let mut late = Vec::new();
        for (number, at) in (0..bytes).step_by(4096).zip((address..).step_by(4096)) {
            hash.update(added(at));
            if attributes & 1 == 0 {
                continue;
            }
            let from = usize::try_from(number).unwrap();
            let measured = extended(at, &content[from..from + 4096]);
            match order {
                PageOrder::EachPage => hash.update(measured),
                PageOrder::WholeSection => late.extend(measured),
            }
        }
        hash.update(late);
    }
    hash.finalize().to_vec()
}

#[test]
fn firmware_of_real_tds_is_read_section_by_section() {
    let Some(image) = kept_firmware(FIRMWARE) else {
        return;
    };
    let firmware = Firmware::parse(&image, Vmm::Qemu).unwrap();
    let kind = |kind| match kind {
        SectionKind::Code => 0,
        SectionKind::Variables => 1,
        SectionKind::TdHob => 2,
        SectionKind::Memory => 3,
        other => panic!("{other:?}"),
    };
    let read: Vec<_> = firmware
        .sections()
        .iter()
        .map(|it| (it.content, it.address, it.bytes, kind(it.kind), it.measured))
        .collect();
    let there: Vec<_> = sections(&image)
        .into_iter()
        .map(|(place, length, address, bytes, kind, attributes)| {
            let content = &image[place as usize..(place + length) as usize];
            (content, address, bytes, kind, attributes == 1)
        })
        .collect();
    assert_eq!(read, there);
    // Code and variables are the whole image, which ends at 4 GiB.
    let parts = there.iter().filter(|part| !part.0.is_empty());
    let ends = parts.clone().map(|part| part.1 + part.2).max();
    let starts = parts.map(|part| part.1).min();
    assert_eq!(ends, Some(1 << 32));
    assert_eq!(starts, Some((1 << 32) - image.len() as u64));
    assert!(there.iter().all(|part| part.2.is_multiple_of(PAGE)));
}

#[test]
fn mrtd_of_real_firmware_is_what_the_modules_specification_says() {
    let Some(image) = kept_firmware(FIRMWARE) else {
        return;
    };
    let firmware = Firmware::parse(&image, Vmm::Qemu).unwrap();
    for order in [PageOrder::EachPage, PageOrder::WholeSection] {
        assert_eq!(firmware.mrtd(order)[..], mrtd(&image, order), "{order:?}");
    }
}

#[test]
fn real_firmware_with_a_platform_key_is_refused_until_the_key_is_deleted() {
    let Some(mut image) = kept_firmware(FIRMWARE) else {
        return;
    };
    let (dialect, loader, kernel) = (Dialect::edk2_202508(), loader(), kernel(0));
    let predicted = |image: &[u8], secure_boot| {
        let firmware = Firmware::parse(image, Vmm::Qemu).unwrap();
        let mut launch = launch(&firmware, &dialect, &loader, &kernel);
        launch.secure_boot = secure_boot;
        (firmware.has_platform_key(), launch.predict().map(|_| ()))
    };
    let enrolled = predicted(&image, SecureBoot::Absent);
    assert_eq!(enrolled, (Ok(true), Err(LaunchError::Enrolled)));
    let on = predicted(&image, SecureBoot::On);
    assert_eq!(on, (Ok(true), Err(LaunchError::NoAuthority)));

    let name = [&GLOBAL[..], b"P\0K\0\0\0"].concat();
    let keys: Vec<_> = places(&image, &name).collect();
    assert_eq!(keys.len(), 1);
    // The state stands at 2 in a variable's header, whose last 16 bytes are the owner.
    let state = keys[0] + 16 - 60 + 2;
    assert_eq!(image[state], 0x3f);
    image[state] = 0x3c;
    assert_eq!(predicted(&image, SecureBoot::Absent), (Ok(false), Ok(())));
}
