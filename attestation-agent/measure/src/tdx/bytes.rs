//! Little-endian numbers at places of a file that may be shorter than it says.

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let found = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*found))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*found))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let found = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*found))
}

/// A number of the file as a place in it.
pub(super) fn place_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, at)?).ok()
}

/// Overwrites what is there; nothing where the place is outside.
pub(super) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    let place = at
        .checked_add(new.len())
        .and_then(|end| bytes.get_mut(at..end));
    if let Some(place) = place {
        place.copy_from_slice(new);
    }
}

/// A text as UTF-16 without an end.
pub(super) fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
