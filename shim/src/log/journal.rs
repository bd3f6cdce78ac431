//! journald, by its own protocol: a datagram of fields for each record.
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::Level;

use super::line::Fields;

const SOCKET: &str = "/run/systemd/journal/socket";
const IDENTIFIER: &str = "containerd-shim-cloister-v2";
/// Bytes of one value: far below a datagram.
const MAX_VALUE: usize = 8 * 1024;
/// Bytes of a field's name.
const MAX_NAME: usize = 64;

/// The way to it.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The host's, where it has one.
    pub(super) fn open() -> Option<Self> {
        Self::at(Path::new(SOCKET))
    }

    pub(super) fn at(path: &Path) -> Option<Self> {
        if !path.exists() {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        let path = path.to_owned();
        Some(Self { socket, path })
    }

    /// Sends a record; nothing where nobody takes it at once.
    pub(super) fn send(&self, level: Level, sandbox: &str, fields: &Fields) -> Option<()> {
        let record = record(level, sandbox, fields);
        self.socket.send_to(&record, &self.path).ok().map(drop)
    }
}

fn record(level: Level, sandbox: &str, fields: &Fields) -> Vec<u8> {
    // Numbers of syslog(3).
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    };
    let mut record = Vec::new();
    add(&mut record, "MESSAGE", fields.message());
    add(&mut record, "PRIORITY", priority);
    add(&mut record, "SYSLOG_IDENTIFIER", IDENTIFIER);
    add(&mut record, "CLOISTER_SANDBOX", sandbox);
    for (name, value) in fields.others().filter(|(name, _)| *name != "sandbox") {
        add(&mut record, &format!("CLOISTER_{}", plain(name)), value);
    }
    record
}

/// A name as journald takes it.
fn plain(name: &str) -> String {
    let plain = |letter: char| match letter.is_ascii_alphanumeric() {
        true => letter.to_ascii_uppercase(),
        false => '_',
    };
    name.chars().take(MAX_NAME).map(plain).collect()
}

/// A value with a line feed has its length before it, so that it begins no field of its own.
fn add(record: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(MAX_VALUE)];
    record.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        record.push(b'\n');
        let length = u64::try_from(value.len()).unwrap_or_default();
        record.extend_from_slice(&length.to_le_bytes());
    } else {
        record.push(b'=');
    }
    record.extend_from_slice(value.as_bytes());
    record.push(b'\n');
}
