//! The agent's log in the shim's: what a guest says is a stranger's text, and there is only so much of it.

use std::time::Instant;

use agent_api::{LogLevel, LogLine};
use tracing::{debug, error, info, trace, warn};

use crate::log::limit::Bucket;

/// Characters of a line, escapes not counted.
const SHOWN: usize = 512;

/// What of a guest's lines is taken; the rest is on its console.
#[derive(Debug)]
pub struct GuestLog(Bucket);

impl Default for GuestLog {
    fn default() -> Self {
        Self(Bucket::full(Instant::now()))
    }
}

impl GuestLog {
    /// Logs a line, or nothing where there were too many.
    pub fn take(&mut self, line: &LogLine) {
        if !self.admits(Instant::now()) {
            return;
        }
        let text = image_rs::shown_up_to(&line.text, SHOWN);
        match line.level {
            LogLevel::Error => error!(source = "agent", "{text}"),
            LogLevel::Warn => warn!(source = "agent", "{text}"),
            LogLevel::Info => info!(source = "agent", "{text}"),
            LogLevel::Debug => debug!(source = "agent", "{text}"),
            LogLevel::Trace => trace!(source = "agent", "{text}"),
        }
    }

    /// A line that is none.
    pub fn odd(&mut self) {
        if self.admits(Instant::now()) {
            warn!(source = "agent", "the agent sent an unknown line");
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        let left_out = self.0.admit(now);
        if let Some(lines @ 1..) = left_out {
            warn!(
                source = "agent",
                lines, "the agent said too much; the console has the rest"
            );
        }
        left_out.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::log::limit::BURST;

    #[test]
    fn a_flood_is_cut_and_what_comes_later_is_heard() {
        let (mut log, now) = (GuestLog::default(), Instant::now());
        let admitted = (0..10_000).filter(|_| log.admits(now)).count();
        assert_eq!(admitted, usize::try_from(BURST).unwrap());
        assert!(log.admits(now + Duration::from_secs(10)));
    }
}
