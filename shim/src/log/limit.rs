//! How much each place of the program may say: a bucket of lines that fills again. What a guest does reaches some
//! places as often as it likes, and the host's log is not its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

/// Lines of one place at once.
pub(super) const BURST: u32 = 100;
/// How long until there is room for one more: a hundred in ten seconds.
const PER_LINE: Duration = Duration::from_millis(100);

/// The buckets, by place; there are as many places as the program has.
#[derive(Debug, Default)]
pub(super) struct Limits(HashMap<Identifier, Bucket>);

/// What one place may say.
#[derive(Debug)]
struct Bucket {
    lines: u32,
    since: Instant,
    left_out: u64,
}

impl Limits {
    /// Whether a place may say a line, and how many it said before that were left out.
    pub(super) fn admit(&mut self, place: Identifier, now: Instant) -> Option<u64> {
        let bucket = self.0.entry(place);
        bucket.or_insert_with(|| Bucket::full(now)).admit(now)
    }
}

impl Bucket {
    /// One with room for a burst.
    fn full(now: Instant) -> Self {
        Self {
            lines: BURST,
            since: now,
            left_out: 0,
        }
    }

    /// Whether there is room for a line, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since).as_millis() / PER_LINE.as_millis();
        let filled = u32::try_from(passed).unwrap_or(BURST).min(BURST);
        self.lines = self.lines.saturating_add(filled);
        if self.lines >= BURST {
            self.lines = BURST;
            self.since = now;
        } else {
            // What is left of the time counts for the next line.
            self.since += PER_LINE.saturating_mul(filled);
        }
        match self.lines.checked_sub(1) {
            Some(lines) => {
                self.lines = lines;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out = self.left_out.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_what_was_left_out_is_told_with_the_next_line() {
        let now = Instant::now();
        let mut bucket = Bucket::full(now);
        let admitted = (0..1000).filter(|_| bucket.admit(now).is_some()).count();
        assert_eq!(admitted, usize::try_from(BURST).unwrap());
        assert_eq!(bucket.admit(now + PER_LINE / 2), None);
        assert_eq!(bucket.admit(now + PER_LINE), Some(901));
        assert_eq!(bucket.admit(now + PER_LINE + PER_LINE / 2), None);
        assert_eq!(bucket.admit(now + PER_LINE * 2), Some(1));
        // After a long silence there is room for one burst, and no more.
        let later = now + PER_LINE * 100_000;
        let admitted = (0..1000).filter(|_| bucket.admit(later).is_some()).count();
        assert_eq!(admitted, usize::try_from(BURST).unwrap());
    }
}
