//! Firmware for TDX as edk2 lays it out, without its code, and what goes with it into a launch.
#![allow(dead_code, reason = "each test takes what it needs")]

use measure::tdx::{Acpi, Dialect, Firmware, KernelForm, Launch, Memory, PageOrder, SecureBoot};
use support::firmware::{Entry, put_table};

/// `TDX_METADATA_OFFSET_GUID` as it is in memory.
pub(crate) const METADATA: [u8; 16] =
    *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2";
/// How far before the end of an image the metadata is.
pub(crate) const METADATA_OFFSET: usize = 0x800;

/// Place and length in the image, address and length in memory, kind and attributes.
pub(crate) type Section = (u32, u32, u64, u64, u32, u32);

/// The sections of OVMF with so many bytes of variables before so many of code.
pub(crate) fn sections(variables: u32, code: u32) -> Vec<Section> {
    let start = (1 << 32) - u64::from(variables) - u64::from(code);
    let code_start = start + u64::from(variables);
    vec![
        (variables, code, code_start, code.into(), 0, 1),
        (0, variables, start, variables.into(), 1, 0),
        (0, 0, 0x81_0000, 0x1_0000, 3, 0),
        (0, 0, 0x80_b000, 0x2000, 3, 0),
        (0, 0, 0x80_9000, 0x2000, 2, 0),
        (0, 0, 0x80_0000, 0x6000, 3, 0),
    ]
}

/// The descriptor of these sections.
pub(crate) fn descriptor(sections: &[Section]) -> Vec<u8> {
    let count = u32::try_from(sections.len()).unwrap();
    let mut descriptor = b"TDVF".to_vec();
    for word in [16 + 32 * count, 1, count] {
        descriptor.extend(word.to_le_bytes());
    }
    for (place, length, address, bytes, kind, attributes) in sections {
        descriptor.extend(place.to_le_bytes());
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(address.to_le_bytes());
        descriptor.extend(bytes.to_le_bytes());
        descriptor.extend(kind.to_le_bytes());
        descriptor.extend(attributes.to_le_bytes());
    }
    descriptor
}

/// The entry that leads to the metadata.
pub(crate) fn entry() -> Entry {
    let offset = u32::try_from(METADATA_OFFSET).unwrap();
    (METADATA, offset.to_le_bytes().to_vec())
}

/// An image with these bytes at its start, sections and entries.
pub(crate) fn image(
    bytes: usize,
    start: &[u8],
    sections: &[Section],
    entries: &[Entry],
) -> Vec<u8> {
    let mut image: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    image[..start.len()].copy_from_slice(start);
    put_table(&mut image, entries);
    let descriptor = descriptor(sections);
    let at = image.len() - METADATA_OFFSET;
    image[at..at + descriptor.len()].copy_from_slice(&descriptor);
    image
}

/// A firmware of four pages, one of them of variables.
pub(crate) fn small() -> Vec<u8> {
    let variables = store(0x1000, &[]);
    image(0x4000, &variables, &sections(0x1000, 0x3000), &[entry()])
}

/// `EFI_GLOBAL_VARIABLE` and `EFI_IMAGE_SECURITY_DATABASE_GUID` as they are in memory.
pub(crate) const GLOBAL: [u8; 16] =
    *b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
/// See [`GLOBAL`].
pub(crate) const SECURITY: [u8; 16] =
    *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";

/// A variable of a store: state, owner, name and value.
pub(crate) type Variable<'a> = (u8, [u8; 16], &'a str, &'a [u8]);

/// A volume of so many bytes with a store of these variables.
pub(crate) fn store(bytes: usize, variables: &[Variable<'_>]) -> Vec<u8> {
    let mut volume = vec![0; 0x48];
    volume[0x28..0x2c].copy_from_slice(b"_FVH");
    volume[0x30] = 0x48;
    volume.extend(b"\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92");
    volume.extend(u32::try_from(bytes - 0x48).unwrap().to_le_bytes());
    volume.extend([0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
    for (state, owner, name, value) in variables {
        let name: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        volume.extend([0xaa, 0x55, *state, 0]);
        volume.extend([0; 32]);
        for part in [name.len(), value.len()] {
            volume.extend(u32::try_from(part).unwrap().to_le_bytes());
        }
        volume.extend(owner);
        volume.extend(name);
        volume.extend(*value);
        // The place of the next one, from the store's first.
        while !(volume.len() - 0x64).is_multiple_of(4) {
            volume.push(0xff);
        }
    }
    volume.resize(bytes, 0xff);
    volume
}

/// `etc/table-loader` that allocates two files.
pub(crate) fn loader() -> Vec<u8> {
    let mut loader = Vec::new();
    for (at, name) in ["etc/acpi/rsdp", "etc/acpi/tables"].iter().enumerate() {
        loader.extend(1u32.to_le_bytes());
        loader.extend(name.as_bytes());
        loader.resize(128 * (at + 1), 0);
    }
    loader.resize(4096, 0);
    loader
}

/// The files that it allocates.
pub(crate) const TABLES: [(&str, &[u8]); 2] =
    [("etc/acpi/rsdp", b"RSD PTR "), ("etc/acpi/tables", b"DSDT")];

/// A list of SMBIOS' tables that has its end alone.
pub(crate) const SMBIOS: &[u8] = &[127, 4, 0, 0, 0, 0];

/// A kernel with an EFI stub, a set-up header of version 2.15, and so many bytes of signatures.
pub(crate) fn kernel(signatures: u32) -> Vec<u8> {
    let mut kernel = vec![0x90; 0x3000];
    kernel.extend(vec![0x5a; signatures.try_into().unwrap()]);
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    // Two sections, and an optional header of 160 bytes.
    put(0x46, &2u16.to_le_bytes());
    put(0x54, &160u16.to_le_bytes());
    put(0x58, &0x20bu16.to_le_bytes());
    put(0x58 + 60, &0x1000u32.to_le_bytes());
    put(0x58 + 108, &6u32.to_le_bytes());
    put(0x58 + 112 + 32, &0x3000u32.to_le_bytes());
    put(0x58 + 112 + 36, &signatures.to_le_bytes());
    // The second section stands first in the list, as the order in the file is what counts.
    for (number, start) in [(0, 0x2000u32), (1, 0x1000)] {
        put(0xf8 + 40 * number + 16, &0x1000u32.to_le_bytes());
        put(0xf8 + 40 * number + 20, &start.to_le_bytes());
    }
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x210, &[0, 1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &0x3fu16.to_le_bytes());
    kernel
}

/// A launch with little in it.
pub(crate) fn launch<'a>(
    firmware: &'a Firmware<'a>,
    dialect: &'a Dialect,
    loader: &'a [u8],
    kernel: &'a [u8],
) -> Launch<'a> {
    Launch {
        firmware,
        order: PageOrder::EachPage,
        dialect,
        secure_boot: SecureBoot::Absent,
        memory: Memory::new(2 << 30).unwrap(),
        acpi: Acpi {
            loader,
            files: &TABLES,
        },
        smbios: Some(SMBIOS),
        kernel,
        kernel_form: KernelForm::AsInFile,
        initramfs: Some(b"initramfs"),
        command_line: "console=ttyS0",
        runtime: &[],
    }
}
