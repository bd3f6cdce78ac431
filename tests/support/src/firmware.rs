//! Firmware as far as a launch is measured by it: the end of an OVMF image with its table and its SEV
//! metadata, as edk2 builds them, and no code before it.

/// Bytes of a page.
const PAGE: usize = 4096;
/// Entries of the table, by their GUIDs as they are in memory: where a second vCPU begins, where the
/// table of hashes goes, and where the SEV metadata is.
pub const RESET: [u8; 16] = *b"\xde\x71\xf7\x00\x7e\x1a\xcb\x4f\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e";
/// See [`RESET`].
pub const HASHES: [u8; 16] = *b"\x1f\x37\x55\x72\x3b\x3a\x04\x4b\x92\x7b\x1d\xa6\xef\xa8\xd4\x54";
/// See [`RESET`].
pub const METADATA: [u8; 16] = *b"\x66\x65\x88\xdc\x4a\x98\x98\x47\xa7\x5e\x55\x85\xa7\xbf\x67\xcc";
const FOOTER: [u8; 16] = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";

/// How far before the end of an image the metadata is.
pub const METADATA_OFFSET: u16 = 0x400;

/// The sections of a firmware for direct boot: address, bytes, kind.
pub const SECTIONS: [[u32; 3]; 7] = [
    [0x80_0000, 0x9000, 1],
    [0x80_a000, 0x3000, 1],
    [0x80_d000, 0x1000, 2],
    [0x80_e000, 0x1000, 3],
    [0x80_f000, 0x1000, 4],
    [0x81_0000, 0x1000, 0x10],
    [0x81_1000, 0xf000, 1],
];

/// An entry of the table: its GUID and its content.
pub type Entry = ([u8; 16], Vec<u8>);

/// The entries of a firmware for direct boot.
#[must_use]
pub fn entries() -> Vec<Entry> {
    vec![
        (METADATA, words(&[METADATA_OFFSET.into()])),
        (HASHES, words(&[0x81_0c00, 0x400])),
        ([9; 16], vec![1, 2, 3]),
        (RESET, words(&[0x80_b004])),
    ]
}

/// A firmware for direct boot of so many pages.
#[must_use]
pub fn direct_boot(pages: usize) -> Vec<u8> {
    image(pages, &SECTIONS, &entries())
}

/// An image of so many pages with these sections and entries.
///
/// # Panics
/// When they have no room in it.
#[must_use]
pub fn image(pages: usize, sections: &[[u32; 3]], entries: &[Entry]) -> Vec<u8> {
    let count = u32::try_from(sections.len()).unwrap_or(u32::MAX);
    let mut metadata = b"ASEV".to_vec();
    metadata.extend(words(&[16 + 12 * count, 1, count]));
    metadata.extend(words(sections.as_flattened()));

    let mut image: Vec<u8> = (0..=250).cycle().take(pages * PAGE).collect();
    put_table(&mut image, entries);
    let start = image.len() - usize::from(METADATA_OFFSET);
    image[start..start + metadata.len()].copy_from_slice(&metadata);
    image
}

/// Puts a table with these entries where firmware has it.
///
/// # Panics
/// When it has no room.
pub fn put_table(image: &mut [u8], entries: &[Entry]) {
    let mut table = Vec::new();
    for (guid, content) in entries {
        table.extend(content);
        close(&mut table, *guid, content.len());
    }
    let before = table.len();
    close(&mut table, FOOTER, before);
    let end = image.len() - 32;
    image[end - table.len()..end].copy_from_slice(&table);
}

/// Puts length and GUID behind the content of an entry.
fn close(table: &mut Vec<u8>, guid: [u8; 16], content: usize) {
    let length = u16::try_from(content + 18).unwrap_or(u16::MAX);
    table.extend(length.to_le_bytes());
    table.extend(guid);
}

/// Words as they are in memory.
#[must_use]
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
