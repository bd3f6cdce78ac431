//! Warnings that strangers can cause: one in a while, with the number of those that were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two warnings of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// When a kind of warning was given last.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// Whether it is time for a warning: then how many were left out since the last one.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if given.last.is_some_and(|last| now < last + PAUSE) {
            given.left_out += 1;
            return None;
        }
        given.last = Some(now);
        Some(std::mem::take(&mut given.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_warnings_is_one_and_a_number() {
        let seldom = Seldom::default();
        let start = Instant::now();
        assert_eq!(seldom.due_at(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(seldom.due_at(start + PAUSE / 2), None);
        }
        assert_eq!(seldom.due_at(start + PAUSE), Some(1000));
        assert_eq!(seldom.due_at(start + 2 * PAUSE), Some(0));
    }
}
