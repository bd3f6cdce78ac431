//! The shim's log: lines in containerd's own form, written to the `log` FIFO in the bundle, from which
//! containerd copies them into its log; or records of journald, where the configuration says so or there is no
//! such FIFO.
//!
//! Each names its sandbox. No place in the program says more than [`limit`] lets it: a guest chooses how often
//! some of them are reached. A line that nobody takes is lost and counted: a full pipe or a containerd that is
//! away must never stop a pod.

mod journal;
mod limit;
mod line;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::config::{LogTo, Observe};
use crate::lock::lock;
use journal::Journal;
use limit::Limits;
use line::Fields;

/// The environment variable that names the level: `error`, `warn`, `info`, `debug` or `trace`.
pub const LEVEL_VARIABLE: &str = "CLOISTER_LOG";
/// The levels, by how much is said.
const LEVELS: [Level; 5] = [
    Level::ERROR,
    Level::WARN,
    Level::INFO,
    Level::DEBUG,
    Level::TRACE,
];

/// The process's log, once it was started.
static LOG: OnceLock<Arc<Log>> = OnceLock::new();

/// Who gets lines, and which.
#[derive(Debug)]
struct Log {
    sandbox: String,
    /// An index of [`LEVELS`].
    level: AtomicUsize,
    /// Whether the environment names the level, which then counts.
    is_named: bool,
    fifo: Option<Mutex<File>>,
    journal: Option<Journal>,
    to: Mutex<LogTo>,
    lost: AtomicU64,
    limits: Mutex<Limits>,
}

/// Sends the process's `tracing` events to the FIFO of a bundle, or to the journal. Where there is neither,
/// there is no log: the shim has no terminal.
pub fn start(bundle: &Path, sandbox: &str, debug: bool) {
    let named = std::env::var(LEVEL_VARIABLE)
        .ok()
        .and_then(|name| name.parse().ok());
    let level = named.unwrap_or(if debug { Level::DEBUG } else { Level::INFO });
    let log = Arc::new(Log {
        sandbox: sandbox.to_owned(),
        level: AtomicUsize::new(index(level)),
        is_named: named.is_some(),
        fifo: fifo(bundle).map(Mutex::new),
        journal: Journal::open(),
        to: Mutex::default(),
        lost: AtomicU64::new(0),
        limits: Mutex::default(),
    });
    let _ = LOG.set(Arc::clone(&log));
    // An error means that a test has set another.
    let _ = tracing::subscriber::set_global_default(Lines(log));
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("the shim panicked: {panic}")
    }));
}

/// Applies what the configuration says of the log.
pub fn configure(observe: &Observe) {
    let Some(log) = LOG.get() else { return };
    *lock(&log.to) = observe.log_to;
    if observe.debug && !log.is_named {
        let debug = index(Level::DEBUG);
        log.level.fetch_max(debug, Ordering::Relaxed);
        // What was asked once is remembered where it is asked.
        tracing::callsite::rebuild_interest_cache();
    }
}

/// How many lines nobody took, or were too many.
#[must_use]
pub fn lost() -> u64 {
    LOG.get().map_or(0, |log| log.lost.load(Ordering::Relaxed))
}

/// The FIFO, if somebody reads it.
fn fifo(bundle: &Path) -> Option<File> {
    let fifo = OpenOptions::new()
        .write(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default())
        .open(bundle.join("log"));
    fifo.ok()
}

fn index(level: Level) -> usize {
    let found = LEVELS.iter().position(|known| *known == level);
    found.unwrap_or_default()
}

impl Log {
    fn level(&self) -> Level {
        let level = LEVELS.get(self.level.load(Ordering::Relaxed));
        level.copied().unwrap_or(Level::INFO)
    }

    fn take(&self, level: Level, fields: &Fields) {
        let to_fifo = || {
            let fifo = self.fifo.as_ref()?;
            let line = fields.line(level, &self.sandbox);
            // Whole, or not at all: it is no longer than a pipe takes at once.
            lock(fifo).write_all(line.as_bytes()).ok()
        };
        let to_journal = || self.journal.as_ref()?.send(level, &self.sandbox, fields);
        let taken = match *lock(&self.to) {
            LogTo::Containerd => to_fifo().or_else(to_journal),
            LogTo::Journal => to_journal().or_else(to_fifo),
            LogTo::Both => to_fifo().and(to_journal()),
        };
        if taken.is_none() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Lines(Arc<Log>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Others' crates say what they do at every request.
        let ours =
            metadata.target().starts_with("shim") || metadata.target().starts_with("hypervisor");
        let level = self.0.level();
        *metadata.level() <= if ours { level } else { Level::WARN.min(level) }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let site = event.metadata().callsite();
        let admitted = lock(&self.0.limits).admit(site, Instant::now());
        let Some(left_out) = admitted else {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if left_out > 0 {
            fields.set("left_out", left_out.to_string());
        }
        self.0.take(*event.metadata().level(), &fields);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixDatagram;

    fn log(fifo: Option<File>, journal: Option<Journal>, to: LogTo) -> Log {
        Log {
            sandbox: "pod".into(),
            level: AtomicUsize::new(index(Level::INFO)),
            is_named: false,
            fifo: fifo.map(Mutex::new),
            journal,
            to: Mutex::new(to),
            lost: AtomicU64::new(0),
            limits: Mutex::default(),
        }
    }

    fn fields(message: &str) -> Fields {
        let mut fields = Fields::default();
        fields.set("message", message.to_owned());
        fields.set("container", "c".to_owned());
        fields
    }

    fn pipe(directory: &Path) -> (File, File) {
        let path = directory.join("log");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        assert!(fifo(directory).is_none(), "nobody reads it yet");
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap())
            .open(&path)
            .unwrap();
        (reader, fifo(directory).unwrap())
    }

    #[test]
    fn a_line_names_its_sandbox_and_a_full_pipe_loses_lines_and_time_never() {
        let root = tempfile::tempdir().unwrap();
        let (mut reader, writer) = pipe(root.path());
        let log = log(Some(writer), None, LogTo::Containerd);
        log.take(Level::WARN, &fields("hello"));
        let mut text = [0; 4096];
        let length = reader.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        assert!(
            text.starts_with("time=\"") && text.ends_with('\n'),
            "{text}"
        );
        assert!(
            text.contains(" level=warning sandbox=\"pod\" msg=\"hello\" container=\"c\""),
            "{text}"
        );
        for _ in 0..2000 {
            log.take(Level::INFO, &fields(&"x".repeat(1000)));
        }
        assert!(log.lost.load(Ordering::Relaxed) > 1000);
        drop(reader);
        log.take(Level::INFO, &fields("nobody reads any more"));
    }

    #[test]
    fn a_place_that_is_reached_all_the_time_does_not_fill_the_log() {
        let root = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(root.path().join("socket")).unwrap();
        let journal = Journal::at(&root.path().join("socket"));
        let log = Arc::new(log(None, journal, LogTo::Journal));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            let heard = |_: &u32| socket.recv(&mut bytes).is_ok_and(|length| length > 1);
            (0..).take_while(heard).count()
        });
        tracing::subscriber::with_default(Lines(Arc::clone(&log)), || {
            for number in 0..10_000 {
                tracing::info!(target: "shim", number, "a packet that is none");
            }
            tracing::info!(target: "shim", "another place");
        });
        let end = UnixDatagram::unbound().unwrap();
        end.send_to(b"x", root.path().join("socket")).unwrap();
        let heard = u64::try_from(reader.join().unwrap()).unwrap();
        let lost = log.lost.load(Ordering::Relaxed);
        // However slow this was, it did not fill a bucket so often.
        assert!(heard + lost == 10_001 && lost > 5000, "{heard} {lost}");
    }

    #[test]
    fn the_journal_gets_fields_where_there_is_no_fifo_or_it_is_wanted() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let journal = || Journal::at(&path);
        log(None, journal(), LogTo::Containerd).take(Level::ERROR, &fields("two\nlines"));
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).unwrap();
        let record = String::from_utf8_lossy(&bytes[..length]).into_owned();
        assert!(
            record.contains("MESSAGE\n\u{9}\0\0\0\0\0\0\0two\nlines\n"),
            "{record:?}"
        );
        for field in [
            "PRIORITY=3\n",
            "CLOISTER_SANDBOX=pod\n",
            "CLOISTER_CONTAINER=c\n",
        ] {
            assert!(record.contains(field), "{record:?}");
        }
        let (mut reader, writer) = pipe(root.path());
        log(Some(writer), journal(), LogTo::Both).take(Level::INFO, &fields("both"));
        assert!(reader.read(&mut bytes).unwrap() > 0 && socket.recv(&mut bytes).unwrap() > 0);
        // Without either nothing is said, and nothing waits.
        drop(socket);
        let log = log(None, journal(), LogTo::Journal);
        log.take(Level::INFO, &fields("nobody"));
        assert_eq!(log.lost.load(Ordering::Relaxed), 1);
    }
}
