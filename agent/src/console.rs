//! The agent's log: on the console, where the host sees it also when all else fails, and by the host port into
//! the host's own log.

use std::io::{self, Write};

use agent_api::{LogLevel, LogLine};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::host::Events;

/// Writes lines to both.
#[derive(Debug)]
pub struct Console(pub Events);

/// One line on its way.
#[derive(Debug)]
pub struct Line<'a> {
    events: &'a Events,
    level: LogLevel,
}

impl<'a> MakeWriter<'a> for Console {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            events: &self.0,
            level: LogLevel::Info,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        let level = match *metadata.level() {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            Level::DEBUG => LogLevel::Debug,
            Level::TRACE => LogLevel::Trace,
        };
        Line {
            events: &self.0,
            level,
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The subscriber hands over a line at a time; it begins with the level, which has a field of its own.
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start();
        let text = text.split_once(' ').map_or(text, |(_, text)| text);
        self.events.log(LogLine::new(self.level, text));
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
