//! Numbers of vCPUs: `4`, `1-4,8`.

use std::collections::BTreeSet;
use std::str::FromStr;

use measure::snp::VCPUS;

/// Numbers of vCPUs, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vcpus(BTreeSet<usize>);

impl Vcpus {
    /// The numbers, the smallest first.
    pub(crate) fn counts(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// The greatest.
    pub(super) fn most(&self) -> usize {
        self.0.last().copied().unwrap_or_default()
    }
}

impl FromStr for Vcpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("numbers from 1 to {VCPUS} and ranges of them, such as 1-4,8");
        let most = usize::try_from(VCPUS).unwrap_or(usize::MAX);
        let count = |word: &str| {
            let count = word.parse().ok().filter(|count| (1..=most).contains(count));
            count.ok_or_else(wrong)
        };
        let mut counts = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (count(first)?, count(last)?);
            if last < first {
                return Err(wrong());
            }
            counts.extend(first..=last);
        }
        Ok(Self(counts))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lists_and_ranges_are_counts_once_each_and_anything_else_is_refused() {
        let counts = |text: &str| text.parse().map(|vcpus: Vcpus| vcpus.counts().collect());
        assert_eq!(counts("1"), Ok(vec![1]));
        assert_eq!(counts("8,1-3,2"), Ok(vec![1, 2, 3, 8]));
        assert_eq!("1-3".parse::<Vcpus>().unwrap().most(), 3);
        for text in [
            "", "0", "4-1", "1-", "-1", "1,,2", "4097", "1-4097", "two", "+1 ",
        ] {
            assert!(text.parse::<Vcpus>().is_err(), "{text}");
        }
    }
}
