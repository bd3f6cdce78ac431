//! GUIDs as firmware has them in memory: the first three groups with their bytes turned round.

/// The bytes of the GUID that is written as these groups, the last two as one number.
pub(crate) const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let (first, second, third) = (
        first.to_le_bytes(),
        second.to_le_bytes(),
        third.to_le_bytes(),
    );
    let rest = rest.to_be_bytes();
    [
        first[0], first[1], first[2], first[3], second[0], second[1], third[0], third[1], rest[0],
        rest[1], rest[2], rest[3], rest[4], rest[5], rest[6], rest[7],
    ]
}
