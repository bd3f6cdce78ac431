//! The last memory of a machine is not an image's. A guest's store may be in its memory, where files are counted
//! by their pages, and names, links and attributes by nobody: many of them would leave the kernel none, which is
//! the end of the guest. So what is available is looked at every few entries.

use std::fs;

use super::UnpackError;

const MEMINFO: &str = "/proc/meminfo";
/// Entries between two looks: less than a MiB without their pages.
pub(super) const ENTRIES: u64 = 256;
/// Bytes of files between two looks.
pub(super) const BYTES: u64 = 4 << 20;

/// Refuses to go on where less than `kept` bytes are available.
pub(super) fn look(kept: u64) -> Result<(), UnpackError> {
    let text = fs::read_to_string(MEMINFO).unwrap_or_default();
    match available(&text) {
        Some(left) if left >= kept => Ok(()),
        Some(left) => Err(UnpackError::NoMemory { left, kept }),
        None => Err(UnpackError::NoMemory { left: 0, kept }),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_and_what_it_does_not_say_is_none() {
        let text = "MemTotal:  16384 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(available(text), Some(2 << 20));
        for text in [
            "",
            "MemAvailable: 1 MB",
            "MemAvailable: -1 kB",
            "MemAvailable: 99999999999999999999 kB",
        ] {
            assert_eq!(available(text), None, "{text}");
        }
        look(1).unwrap();
        let refused = look(u64::MAX);
        assert!(matches!(
            refused,
            Err(UnpackError::NoMemory { left: 1.., .. })
        ));
    }
}
