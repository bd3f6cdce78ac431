//! The shim's log: lines in containerd's own form, written to the `log` FIFO in the bundle, from
//! which containerd copies them into its log.
//!
//! A line that containerd does not take is lost: a full pipe or a containerd that is away must
//! never stop a pod.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// A line is at most this long, so that it is written at once (pipe(7): `PIPE_BUF`).
const MAX_LINE: usize = 4096;

/// The environment variable that names the level: `error`, `warn`, `info`, `debug` or `trace`.
pub const LEVEL_VARIABLE: &str = "CLOISTER_LOG";

/// Sends the process's `tracing` events to the FIFO of a bundle. Where it cannot be opened, there
/// is no log: the shim has no terminal.
pub fn start(bundle: &Path, debug: bool) {
    let named = std::env::var(LEVEL_VARIABLE)
        .ok()
        .and_then(|name| name.parse().ok());
    let level = named.unwrap_or(if debug { Level::DEBUG } else { Level::INFO });
    let fifo = OpenOptions::new()
        .write(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default())
        .open(bundle.join("log"));
    let Ok(file) = fifo else { return };
    // An error means that a test has set another.
    let _ = tracing::subscriber::set_global_default(FifoLog {
        level,
        file: Mutex::new(file),
    });
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("the shim panicked: {panic}")
    }));
}

struct FifoLog {
    level: Level,
    file: Mutex<File>,
}

impl Subscriber for FifoLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Others' crates say what they do at every request.
        let ours =
            metadata.target().starts_with("shim") || metadata.target().starts_with("hypervisor");
        *metadata.level()
            <= if ours {
                self.level
            } else {
                Level::WARN.min(self.level)
            }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let line = line(event.metadata().level(), |visitor| event.record(visitor));
        if let Ok(mut file) = self.file.lock() {
            // See above: lost is fine.
            let _ = file.write(line.as_bytes());
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let _ = write!(
                self.others,
                " {}={}",
                field.name(),
                quote(&format!("{value:?}"))
            );
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.others, " {}={}", field.name(), quote(value));
    }
}

fn line(level: &Level, record: impl FnOnce(&mut Fields)) -> String {
    let mut fields = Fields::default();
    record(&mut fields);
    let level = match *level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let time = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default();
    let mut line = format!(
        "time=\"{time}\" level={level} msg={}{}",
        quote(&fields.message),
        fields.others
    );
    line.truncate(line.floor_char_boundary(MAX_LINE - 1));
    line.push('\n');
    line
}

/// A JSON string: no quote or line feed in a value can end the field or begin another line.
fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line() {
        let line = line(&Level::INFO, |fields| {
            fields.message.push_str("a\ntime=\"x\" level=fatal");
            fields
                .others
                .push_str(&format!(" k={}", quote(&"é\"\n".repeat(4000))));
        });
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with('\n') && line.len() <= MAX_LINE);
        assert!(
            line.contains(r#" level=info msg="a\ntime=\"x\" level=fatal""#),
            "{line}"
        );
    }
}
