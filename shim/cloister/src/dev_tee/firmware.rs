//! What a simulated launch begins with: an image that has the metadata of OVMF for both vendors' TEEs and
//! no code, and the tables of a machine. Nothing runs it: it is measured.

/// Bytes of a page, and of the image: one page of variables, three of code.
const PAGE: usize = 4096;
const BYTES: usize = 4 * PAGE;
/// Entries of the table at an image's end, by their GUIDs as they are in memory (edk2's
/// `OvmfPkg/ResetVector`): the SEV metadata, the page of hashes, where a second vCPU begins, the TDX metadata.
const SEV_METADATA: [u8; 16] = *b"\x66\x65\x88\xdc\x4a\x98\x98\x47\xa7\x5e\x55\x85\xa7\xbf\x67\xcc";
const SEV_HASHES: [u8; 16] = *b"\x1f\x37\x55\x72\x3b\x3a\x04\x4b\x92\x7b\x1d\xa6\xef\xa8\xd4\x54";
const SEV_RESET: [u8; 16] = *b"\xde\x71\xf7\x00\x7e\x1a\xcb\x4f\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e";
const TDX_METADATA: [u8; 16] = *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2";
const FOOTER: [u8; 16] = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";
/// How far before the end the metadata is.
const SEV_OFFSET: u32 = 0x400;
const TDX_OFFSET: u32 = 0x800;
/// Address, bytes and kind of what SEV's firmware wants.
const SEV_SECTIONS: [[u32; 3]; 7] = [
    [0x80_0000, 0x9000, 1],
    [0x80_a000, 0x3000, 1],
    [0x80_d000, 0x1000, 2],
    [0x80_e000, 0x1000, 3],
    [0x80_f000, 0x1000, 4],
    [0x81_0000, 0x1000, 0x10],
    [0x81_1000, 0xf000, 1],
];
/// Place and length in the image, address, length in memory, kind and attributes of what TDX's wants.
const TDX_SECTIONS: [(u32, u32, u64, u64, u32, u32); 6] = [
    (0x1000, 0x3000, 0xffff_d000, 0x3000, 0, 1),
    (0, 0x1000, 0xffff_c000, 0x1000, 1, 0),
    (0, 0, 0x81_0000, 0x1_0000, 3, 0),
    (0, 0, 0x80_b000, 0x2000, 3, 0),
    (0, 0, 0x80_9000, 0x2000, 2, 0),
    (0, 0, 0x80_0000, 0x6000, 3, 0),
];
/// A store of variables: `gEfiAuthenticatedVariableGuid` as it is in memory.
const VARIABLES: [u8; 16] = *b"\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92";
/// Where a volume's store begins.
const STORE_AT: usize = 0x48;

/// The files of tables that the machine gives its firmware.
const TABLES: [(&str, &[u8]); 2] = [
    ("etc/acpi/rsdp", b"RSD PTR of a simulated machine"),
    ("etc/acpi/tables", b"tables of a simulated machine"),
];
/// SMBIOS' tables of the machine: their end.
const SMBIOS: (&str, &[u8]) = ("DMI", &[127, 4, 0, 0, 0, 0]);
/// Bytes of a command of the list of tables, and of the whole list.
const COMMAND_BYTES: usize = 128;
const LOADER_BYTES: usize = 4096;

/// The image.
pub(super) fn image() -> Vec<u8> {
    let mut image = vec![0; BYTES];
    put(&mut image, 0, &variables());
    let mut table = Vec::new();
    for (guid, content) in [
        (SEV_METADATA, &[SEV_OFFSET][..]),
        (SEV_HASHES, &[0x81_0c00, 0x400]),
        (SEV_RESET, &[0x80_b004]),
        (TDX_METADATA, &[TDX_OFFSET]),
    ] {
        let content = words(content);
        table.extend(&content);
        close(&mut table, guid, content.len());
    }
    let before = table.len();
    close(&mut table, FOOTER, before);
    put(&mut image, BYTES - 32 - table.len(), &table);
    put(&mut image, before_end(SEV_OFFSET), &sev_metadata());
    put(&mut image, before_end(TDX_OFFSET), &tdx_metadata());
    image
}

/// Names and content of the tables, `etc/table-loader` first, then ACPI's and SMBIOS'.
pub(super) fn tables() -> Vec<(&'static str, Vec<u8>)> {
    let mut loader = Vec::new();
    for (at, (name, _)) in TABLES.iter().enumerate() {
        // Allocate memory for a file.
        loader.extend(words(&[1]));
        loader.extend(name.as_bytes());
        loader.resize(COMMAND_BYTES * (at + 1), 0);
    }
    loader.resize(LOADER_BYTES, 0);
    let mut files = vec![("etc/table-loader", loader)];
    let others = TABLES.into_iter().chain([SMBIOS]);
    files.extend(others.map(|(name, content)| (name, content.to_vec())));
    files
}

fn variables() -> Vec<u8> {
    let mut volume = vec![0; STORE_AT];
    put(&mut volume, 0x28, b"_FVH");
    put(&mut volume, 0x30, &[0x48]);
    volume.extend(VARIABLES);
    volume.extend(words(&[u32::try_from(PAGE - STORE_AT).unwrap_or(0)]));
    // Formatted and healthy.
    volume.extend([0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
    volume.resize(PAGE, 0xff);
    volume
}

fn sev_metadata() -> Vec<u8> {
    let count = u32::try_from(SEV_SECTIONS.len()).unwrap_or(0);
    let mut metadata = b"ASEV".to_vec();
    metadata.extend(words(&[16 + 12 * count, 1, count]));
    metadata.extend(words(SEV_SECTIONS.as_flattened()));
    metadata
}

fn tdx_metadata() -> Vec<u8> {
    let count = u32::try_from(TDX_SECTIONS.len()).unwrap_or(0);
    let mut metadata = b"TDVF".to_vec();
    metadata.extend(words(&[16 + 32 * count, 1, count]));
    for (place, length, address, bytes, kind, attributes) in TDX_SECTIONS {
        metadata.extend(words(&[place, length]));
        metadata.extend(address.to_le_bytes());
        metadata.extend(bytes.to_le_bytes());
        metadata.extend(words(&[kind, attributes]));
    }
    metadata
}

/// Puts length and GUID behind the content of an entry.
fn close(table: &mut Vec<u8>, guid: [u8; 16], content: usize) {
    let length = u16::try_from(content + 18).unwrap_or(u16::MAX);
    table.extend(length.to_le_bytes());
    table.extend(guid);
}

fn before_end(offset: u32) -> usize {
    BYTES - usize::try_from(offset).unwrap_or(BYTES)
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use measure::{snp, tdx};

    use super::*;

    #[test]
    fn both_vendors_launches_find_what_they_need_in_it() {
        let image = image();
        snp::Firmware::parse(&image).unwrap();
        let firmware = tdx::Firmware::parse(&image, tdx::Vmm::Qemu).unwrap();
        assert_ne!(firmware.mrtd(tdx::PageOrder::EachPage), [0; 48]);
        let files = tables();
        let asked = tdx::Acpi::asked(&files[0].1).unwrap();
        assert_eq!(asked, [files[1].0, files[2].0]);
    }
}
