//! Prometheus' text format 0.0.4, both ways: what a shim tells of itself, what it takes from its guest, and
//! what the node's monitor takes from shims.
//!
//! ```text
//!   guest's text ─parse─► samples, each of a family of guests ┐
//!   /proc, counters ────► samples ────────────────────────────┴─write─► shim's text ─parse─► … ─write─► node's
//! ```
//!
//! What a guest says is a stranger's text: it is taken whole or not at all, within caps, and only families
//! that a guest has ([`known`]), with items of closed lists and names of a form ([`Guests`]). So no guest can speak for its shim, add a label that means another pod, or
//! make a page that Prometheus does not read.

mod guest;
mod histogram;
pub mod known;
mod parse;
mod write;

pub use guest::Guests;
pub use histogram::{Histogram, MILLISECONDS, SECONDS};
pub use parse::{Fault, Limits, of_shim, parse};
pub use write::{Group, write, write_groups};

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The name: of its family, or of a part of a histogram.
    pub name: String,
    /// Its labels, in the order in which they are written.
    pub labels: Vec<(String, String)>,
    /// The number.
    pub value: f64,
}

impl Sample {
    /// A number without labels.
    #[must_use]
    pub fn new(name: &str, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            labels: Vec::new(),
            value,
        }
    }

    /// The same with a label more.
    #[must_use]
    pub fn with(mut self, label: &str, value: &str) -> Self {
        self.labels.push((label.to_owned(), value.to_owned()));
        self
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name)?;
        Some(&found.1)
    }
}

/// A count as Prometheus has numbers: exact up to 2^53.
#[must_use]
pub fn number(count: u64) -> f64 {
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact() {
        for count in [0, 1, u64::from(u32::MAX), 1 << 32, (1 << 53) - 1] {
            assert_eq!(format!("{}", number(count)), count.to_string());
        }
    }
}
