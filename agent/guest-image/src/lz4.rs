//! LZ4 in the form that Linux reads (`lz4 -l`; "legacy frame" in LZ4's `lz4_Frame_format.md`, and
//! `lib/decompress_unlz4.c` of the kernel): a magic number, then blocks, each behind its packed size.
//!
//! ```text
//! 02 21 4c 18 │ size: u32 LE │ block, at most 8 MiB unpacked │ size │ block │ ... │ 00 00 00 00
//! ```
//!
//! A size of zero is the end for Linux, so that another archive may follow.

use std::io;

use lz4::block::{CompressionMode, compress, compress_bound, decompress};

/// The first bytes.
pub const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The most bytes of one block, unpacked. All blocks but the last have as many.
const BLOCK: usize = 8 << 20;
/// The most that LZ4 has: packing takes a second or two, and unpacking as long as ever.
const LEVEL: CompressionMode = CompressionMode::HIGHCOMPRESSION(12);

/// Packs. The same bytes give the same bytes.
///
/// # Errors
/// None in practice: no block is too large.
pub fn pack(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = MAGIC.to_vec();
    for block in plain.chunks(BLOCK) {
        let block = compress(block, Some(LEVEL), false)?;
        let size = u32::try_from(block.len()).map_err(io::Error::other)?;
        packed.extend(size.to_le_bytes());
        packed.extend(block);
    }
    packed.extend([0; 4]);
    Ok(packed)
}

/// Unpacks at most `most` bytes; what follows the end is not looked at.
///
/// # Errors
/// The bytes are of another form or damaged, or there are more.
pub fn unpack(packed: &[u8], most: u64) -> io::Result<Vec<u8>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut rest = packed
        .strip_prefix(&MAGIC)
        .ok_or_else(|| bad("no legacy frame of LZ4"))?;
    let mut plain = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk() {
        let size = usize::try_from(u32::from_le_bytes(*size)).map_err(io::Error::other)?;
        if size == 0 {
            break;
        }
        if size > compress_bound(BLOCK)? {
            return Err(bad("a block is too large"));
        }
        let block = after
            .get(..size)
            .ok_or_else(|| bad("it ends inside a block"))?;
        let most_of_block = i32::try_from(BLOCK).map_err(io::Error::other)?;
        plain.extend(decompress(block, Some(most_of_block))?);
        if plain.len() as u64 > most {
            return Err(bad("it unpacks to too much"));
        }
        rest = &after[size..];
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::command;

    /// More than a block, and neither noise nor one byte.
    fn plain() -> Vec<u8> {
        let words = (0..BLOCK as u64 / 8 + 1000).map(|n| (n * n % 1009).to_le_bytes());
        words.flatten().collect()
    }

    #[test]
    fn what_is_packed_unpacks_here_and_by_the_tool_that_others_have() {
        let plain = plain();
        let packed = pack(&plain).unwrap();
        assert!(packed.len() < plain.len() / 2);
        assert_eq!(packed, pack(&plain).unwrap(), "the same bytes");
        assert!(unpack(&packed, 1 << 30).unwrap() == plain);
        let followed = [&packed, b"070701".as_slice()].concat();
        assert!(unpack(&followed, 1 << 30).unwrap() == plain);
        // Not every machine has it; the kernel reads the same in each test that boots a guest.
        if Command::new("lz4").arg("--version").output().is_ok() {
            let blocks = &packed[..packed.len() - 4];
            let by_tool = command::filter(Command::new("lz4").args(["-d", "-c"]), blocks);
            assert!(by_tool.unwrap() == plain);
        }
    }

    #[test]
    fn what_is_damaged_or_too_much_is_an_error() {
        let packed = pack(b"some bytes, some bytes, some bytes").unwrap();
        assert_eq!(unpack(&packed, 34).unwrap().len(), 34);
        assert!(unpack(&packed, 33).is_err());
        assert!(unpack(&packed[..packed.len() - 6], 99).is_err());
        assert!(unpack(b"070701", 99).is_err());
        let large = [&MAGIC[..], &u32::MAX.to_le_bytes()].concat();
        assert!(unpack(&large, 99).is_err());
    }
}
