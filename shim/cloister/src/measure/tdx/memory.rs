//! Sizes of memory: `2048`, `2048,4G`.

use std::collections::BTreeSet;
use std::str::FromStr;

use measure::tdx::Memory;

/// Sizes that one prediction is for.
const SIZES: usize = 256;
/// Bytes of a MiB, as a power of two.
const MIB: u32 = 20;

/// Sizes of memory in MiB, each once, and at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Sizes(BTreeSet<u64>);

impl Sizes {
    /// The sizes in MiB, the smallest first.
    pub(super) fn mib(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: BTreeSet<u64> = text.split(',').map(size).collect::<Result<_, _>>()?;
        if sizes.len() > SIZES {
            return Err(format!("at most {SIZES} sizes"));
        }
        Ok(Self(sizes))
    }
}

/// One size, in MiB.
pub(super) fn size(word: &str) -> Result<u64, String> {
    let wrong = || "MiB, or GiB with G behind, such as 2048,4G".to_owned();
    let (digits, unit) = match word.strip_suffix('G') {
        Some(digits) => (digits, 1024),
        None => (word.strip_suffix('M').unwrap_or(word), 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let mib = number.checked_mul(unit).ok_or_else(wrong)?;
    memory(mib)?;
    Ok(mib)
}

/// The memory of a guest with so many MiB.
pub(super) fn memory(mib: u64) -> Result<Memory, String> {
    let bytes = mib.checked_shl(MIB).filter(|bytes| bytes >> MIB == mib);
    Memory::new(bytes.unwrap_or(u64::MAX)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sizes_once_each_and_anything_else_is_refused() {
        let sizes = |text: &str| text.parse().map(|sizes: Sizes| sizes.mib().collect());
        assert_eq!(sizes("2048"), Ok(vec![2048]));
        assert_eq!(sizes("4G,2048M,4096,512"), Ok(vec![512, 2048, 4096]));
        let most = u64::MAX.to_string();
        for text in [
            "",
            "0",
            "63",
            "2048-4096",
            "1,,2",
            "two",
            "4g",
            "33554433",
            &most,
            "17179869184G",
        ] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }
}
