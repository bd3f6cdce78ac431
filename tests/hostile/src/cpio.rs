//! A newc archive by hand, for guests that are broken on purpose.

use std::io::Write;

/// One thing in an archive.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// Path.
    Dir(&'a str),
    /// Path, mode, content.
    File(&'a str, u32, &'a [u8]),
}

/// The archive with its trailer.
#[must_use]
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, entry) in (1..).zip(entries) {
        match entry {
            Entry::Dir(path) => member(&mut out, inode, path, 0o040_755, b""),
            Entry::File(path, mode, content) => {
                member(&mut out, inode, path, 0o100_000 | mode, content);
            }
        }
    }
    member(&mut out, 0, "TRAILER!!!", 0, b"");
    out
}

fn member(out: &mut Vec<u8>, inode: u32, path: &str, mode: u32, content: &[u8]) {
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        size(content.len()),
        0,
        0,
        0,
        0,
        size(path.len() + 1),
        0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{field:08x}");
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn size(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_and_the_trailer_is_last() {
        let archive = archive(&[Entry::Dir("a"), Entry::File("a/b", 0o644, b"12345")]);
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&archive);
        assert!(text.find("12345") < text.find("TRAILER!!!"));
    }
}
