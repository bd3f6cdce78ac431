//! The agent's log in the shim's: what a guest says is a stranger's text. How much of it there is, is limited as for
//! each place that says something: those below are one for each level.

use agent_api::{LogLevel, LogLine};
use tracing::{debug, error, info, trace, warn};

/// Characters of a line, escapes not counted.
const SHOWN: usize = 512;

/// Logs a line of the agent's.
pub(crate) fn take(line: &LogLine) {
    let text = image_rs::shown_up_to(&line.text, SHOWN);
    match line.level {
        LogLevel::Error => error!(source = "agent", "{text}"),
        LogLevel::Warn => warn!(source = "agent", "{text}"),
        LogLevel::Info => info!(source = "agent", "{text}"),
        LogLevel::Debug => debug!(source = "agent", "{text}"),
        LogLevel::Trace => trace!(source = "agent", "{text}"),
    }
}

/// Logs that there was a line that is none.
pub(crate) fn odd() {
    warn!(source = "agent", "the agent sent an unknown line");
}
