//! The least that a guest can be: an initramfs with one program, which says that it is there and
//! then sleeps. It is put together byte by byte, so that measuring needs no second toolchain, and so
//! that there is nothing in it to be slow.

use anyhow::Result;
use guest_image::cpio::{Archive, Node};

/// What the program says on the console.
pub const MARKER: &str = "BARE-GUEST-IS-UP";

/// Where Linux maps the program, the usual place.
const BASE: u64 = 0x40_0000;
/// ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// The initramfs.
///
/// # Errors
/// None in practice: its paths are constants.
pub fn initramfs() -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.add("dev", Node::Directory(0o755))?;
    archive.add("dev/console", Node::Character(0o600, 5, 1))?;
    archive.add("init", Node::File(0o755, program()))?;
    Ok(archive.bytes()?)
}

/// `write(1, MARKER, ..)`, then `pause()` for ever: the end of PID 1 would be a panic.
fn code() -> Vec<u8> {
    let text = format!("{MARKER}\n");
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let mut code = vec![
        0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
        0xbf, 1, 0, 0, 0, // mov edi, 1
        0x48, 0x8d, 0x35, 18, 0, 0, 0, // lea rsi, [rip + 18] (the text)
        0xba, length, 0, 0, 0, // mov edx, length
        0x0f, 0x05, // syscall
        0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
        0x0f, 0x05, // syscall
        0xeb, 0xf7, // jmp to the mov above
        0x0f, 0x0b, // never reached: an illegal instruction
    ];
    code.extend(text.bytes());
    code
}

/// The program as a static ELF file with one segment.
fn program() -> Vec<u8> {
    let code = code();
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes()); // ET_EXEC
    file.extend(62_u16.to_le_bytes()); // EM_X86_64
    file.extend(1_u32.to_le_bytes());
    file.extend((BASE + HEADERS).to_le_bytes()); // entry
    file.extend(64_u64.to_le_bytes()); // program headers
    file.extend(0_u64.to_le_bytes()); // no sections
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // PT_LOAD
    file.extend(5_u32.to_le_bytes()); // readable and executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_program_runs_on_this_machine_and_says_its_marker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = vec![0; MARKER.len() + 1];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(said, format!("{MARKER}\n").as_bytes());
        assert!(child.try_wait().unwrap().is_none(), "it goes on");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
