//! The agent's log in the shim's: what a guest says is a stranger's text, and there is only so much of it.

use std::time::{Duration, Instant};

use agent_api::{LogLevel, LogLine};
use tracing::{debug, error, info, trace, warn};

/// Lines of one guest in a while; the rest is on its console.
const MAX_LINES: u32 = 100;
/// How long that while is.
const WHILE: Duration = Duration::from_secs(10);
/// Characters of a line, escapes not counted.
const SHOWN: usize = 512;

/// What of a guest's lines is taken.
#[derive(Debug)]
pub struct GuestLog {
    since: Instant,
    lines: u32,
    left_out: u32,
}

impl Default for GuestLog {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            lines: 0,
            left_out: 0,
        }
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
        if now.duration_since(self.since) >= WHILE {
            if self.left_out > 0 {
                let lines = self.left_out;
                warn!(
                    source = "agent",
                    lines, "the agent said too much; the console has the rest"
                );
            }
            *self = Self {
                since: now,
                ..Self::default()
            };
        }
        let has_room = self.lines < MAX_LINES;
        match has_room {
            true => self.lines += 1,
            false => self.left_out = self.left_out.saturating_add(1),
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_the_next_while_is_heard() {
        let mut log = GuestLog::default();
        let now = log.since;
        let admitted = (0..10_000).filter(|_| log.admits(now)).count();
        assert_eq!(admitted, usize::try_from(MAX_LINES).unwrap());
        assert_eq!(log.left_out, 10_000 - MAX_LINES);
        assert!(log.admits(now + WHILE));
        assert_eq!(log.left_out, 0);
    }
}
