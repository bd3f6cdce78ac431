//! Debian's signature at the end of each module (`struct module_signature` of the kernel's
//! `include/linux/module_signature.h`), which is taken off.
//!
//! Nothing is lost: a module is part of the initramfs, which is measured as a whole before the
//! first of it is read, and the manifest has the digest of each. Checking an RSA signature takes
//! two thirds of a module's loading under emulation (25 ms against 8 ms). A kernel in lockdown,
//! which is what Secure Boot turns on, would insist on signatures; guests are not started that way.

const MARKER: &[u8] = b"~Module signature appended~\n";
/// Eight bytes of kinds and padding, then the signature's length, big endian.
const TRAILER: usize = 12;

/// The module without its signature; one that has none, or a broken one, stays as it is.
pub(crate) fn strip(mut module: Vec<u8>) -> Vec<u8> {
    if let Some(end) = unsigned_length(&module) {
        module.truncate(end);
    }
    module
}

fn unsigned_length(module: &[u8]) -> Option<usize> {
    let signed = module.strip_suffix(MARKER)?;
    let length = u32::from_be_bytes(*signed.last_chunk::<4>()?);
    signed
        .len()
        .checked_sub(TRAILER)?
        .checked_sub(usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(said: u32) -> Vec<u8> {
        let mut module = b"\x7fELF body".to_vec();
        module.extend([0x5a; 20]);
        module.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        module.extend(said.to_be_bytes());
        module.extend(MARKER);
        module
    }

    #[test]
    fn the_signature_goes_and_the_module_stays() {
        assert_eq!(strip(signed(20)), b"\x7fELF body");
        assert_eq!(strip(b"\x7fELF body".to_vec()), b"\x7fELF body");
    }

    #[test]
    fn a_signature_longer_than_the_module_is_left_alone() {
        assert_eq!(strip(signed(30)), signed(30));
        assert_eq!(strip(MARKER.to_vec()), MARKER);
    }
}
