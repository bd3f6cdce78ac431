//! A histogram of fixed buckets, as small as the numbers in it.

use super::{Sample, number};

/// Upper bounds in milliseconds: those of Kata's histograms of calls.
pub const MILLISECONDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Upper bounds in seconds for phases of a start: from an exec to a pull of gigabytes.
pub const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// Observations, counted by bucket.
#[derive(Debug, Clone)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds: the last has no bound.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// No observation yet.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    /// Adds one.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
        self.sum += value;
    }

    /// Its samples under a family's name; `label` is added to each.
    pub fn samples(&self, name: &str, label: Option<(&str, &str)>, into: &mut Vec<Sample>) {
        let sample = |part: &str, value| {
            let sample = Sample::new(&format!("{name}_{part}"), value);
            match label {
                Some((label, of)) => sample.with(label, of),
                None => sample,
            }
        };
        let mut sum = 0_u64;
        let ends = self.bounds.iter().map(f64::to_string);
        for (count, end) in self.counts.iter().zip(ends.chain(["+Inf".to_owned()])) {
            sum = sum.saturating_add(*count);
            into.push(sample("bucket", number(sum)).with("le", &end));
        }
        into.push(sample("sum", self.sum));
        into.push(sample("count", number(sum)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_up_and_a_bound_is_in_its_bucket() {
        let mut histogram = Histogram::new(MILLISECONDS);
        for value in [0.5, 1.0, 3.0, 600.0] {
            histogram.observe(value);
        }
        let mut samples = Vec::new();
        histogram.samples("x", Some(("action", "create")), &mut samples);
        let bucket = |le: &str| {
            let found = samples.iter().find(|sample| sample.label("le") == Some(le));
            found.unwrap().value
        };
        assert_eq!((bucket("1"), bucket("2"), bucket("4")), (2.0, 2.0, 3.0));
        assert_eq!((bucket("512"), bucket("+Inf")), (3.0, 4.0));
        let last = &samples[samples.len() - 2..];
        assert_eq!((last[0].name.as_str(), last[0].value), ("x_sum", 604.5));
        assert_eq!((last[1].name.as_str(), last[1].value), ("x_count", 4.0));
        assert_eq!(last[1].label("action"), Some("create"));
    }
}
