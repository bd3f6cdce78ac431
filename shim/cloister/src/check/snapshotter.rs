//! The snapshotter, by which containerd leaves images to guests: whether it answers where containerd looks for it.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

use super::{Finding, Host};

const NAME: &str = "snapshotter";
/// Its own configuration, and the socket where that names no other.
const CONFIG: &str = "/etc/cloister/snapshotter.toml";
const SOCKET: &str = "/run/cloister/snapshotter.sock";
/// The snapshotter reads no more than this of its configuration.
const MAX_CONFIG: u64 = 256 * 1024;

/// Neither `cloister run` nor `force_guest_pull` needs it.
pub(super) fn look(host: &Host) -> Finding {
    let socket = socket(host);
    let Err(error) = UnixStream::connect(host.path(&socket)) else {
        return Finding::good(NAME, socket);
    };
    let (found, fix) = match error.kind() {
        ErrorKind::PermissionDenied => (
            "is root's to open",
            "`sudo cloister check` tells whether it serves",
        ),
        ErrorKind::NotFound => (
            "is not there: containerd pulls images itself",
            "start cloister-snapshotter where pods run encrypted images, and name it to containerd",
        ),
        _ => (
            "does not answer",
            "start cloister-snapshotter anew; its log says why it ended",
        ),
    };
    Finding::absent(NAME, format!("{socket} {found}"), fix)
}

fn socket(host: &Host) -> String {
    let mut text = String::new();
    let read = std::fs::File::open(host.path(CONFIG))
        .and_then(|file| file.take(MAX_CONFIG).read_to_string(&mut text));
    let table = read.ok().and_then(|_| text.parse::<toml::Table>().ok());
    let named = table
        .as_ref()
        .and_then(|table| table.get("socket")?.as_str());
    named.unwrap_or(SOCKET).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn it_is_told_whether_the_snapshotter_serves() {
        let root = tempfile::tempdir().unwrap();
        let host = Host {
            root: root.path().to_owned(),
        };
        let finding = look(&host);
        assert_eq!(finding.state, State::Absent);
        assert!(finding.found.starts_with(SOCKET), "{finding:?}");
        std::fs::create_dir_all(root.path().join("etc/cloister")).unwrap();
        std::fs::write(host.path(CONFIG), "socket = \"/s\"\n").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(host.path("/s")).unwrap();
        assert_eq!(look(&host), Finding::good(NAME, "/s"));
        drop(listener);
        let finding = look(&host);
        assert_eq!(finding.state, State::Absent);
        assert!(finding.found.contains("/s does not answer"), "{finding:?}");
    }
}
