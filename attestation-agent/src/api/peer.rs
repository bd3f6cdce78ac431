//! Which processes are at the other end of a connection, as the kernel knows it.
//!
//! A unix socket tells the process that connected (unix(7), `SO_PEERCRED`). A TCP connection on the loopback has an end
//! in `/proc/net/tcp` with an inode, and those who hold it are found by their descriptors. A socket that is handed to
//! another process is held by both; who asks must then be both, which is for [`super::Authorize::identify`].

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tokio::net::UnixStream;

/// The tables of TCP, of both families: a program may connect to an IPv4 address from an IPv6 socket.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// Bytes of a table that are read. A line has 150.
const TABLE_BYTES: u64 = 16 << 20;

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The processes that hold it, at least one, by their ids as this process sees them.
    pub processes: Vec<i32>,
    /// The user, where the kernel tells it.
    pub user: Option<u32>,
}

impl Peer {
    pub(super) fn of_unix(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let process = credentials.pid().filter(|pid| *pid > 0);
        let process = process.ok_or_else(|| io::Error::other("the peer is of another machine"))?;
        Ok(Self {
            processes: vec![process],
            user: Some(credentials.uid()),
        })
    }

    /// Of a connection to `local` from `remote` on this machine. It reads `/proc`, and so takes its time.
    pub(super) fn of_tcp(local: SocketAddr, remote: SocketAddr) -> io::Result<Self> {
        if !remote.ip().to_canonical().is_loopback() {
            return Err(io::Error::other("the peer is not on the loopback"));
        }
        let mut found = None;
        for table in TABLES {
            let table = read_table(table)?;
            found = found.or_else(|| end_of(&table, remote, local));
        }
        let end = found.ok_or_else(|| io::Error::other("the connection has no other end"))?;
        let processes = holders(&format!("socket:[{}]", end.inode))?;
        if processes.is_empty() {
            return Err(io::Error::other("no process holds the other end"));
        }
        Ok(Self {
            processes,
            user: Some(end.user),
        })
    }
}

fn read_table(path: &str) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    match fs::File::open(path) {
        Ok(file) => file.take(TABLE_BYTES).read_to_string(&mut text)?,
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(text)
}

#[derive(Debug, PartialEq, Eq)]
struct End {
    inode: u64,
    user: u32,
}

/// The line of a table (proc_pid_net(5)) whose local and remote addresses these are.
fn end_of(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<End> {
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = address(words.get(1)?)? == canonical(local)
            && address(words.get(2)?)? == canonical(remote);
        is_it.then_some(End {
            user: words.get(7)?.parse().ok()?,
            inode: words.get(9)?.parse().ok().filter(|inode| *inode != 0)?,
        })
    })
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// `<address>:<port>` in hex: words of 32 bits as they lie in memory, the port as a number.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some((ip.to_canonical(), port))
}

/// The processes with a descriptor of this name. Those that end meanwhile hold nothing.
fn holders(name: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse().ok());
        let Some(pid) = pid else { continue };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let is_it = |path: &std::path::Path| {
            fs::read_link(path).is_ok_and(|target| target.as_os_str() == name)
        };
        if descriptors.flatten().any(|fd| is_it(&fd.path())) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn this_process_is_found_at_the_other_end() {
        let own = i32::try_from(std::process::id()).unwrap();
        for connect_from in ["127.0.0.1", "::ffff:127.0.0.1"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let to: SocketAddr = (connect_from.parse::<IpAddr>().unwrap(), port).into();
            let Ok(other) = TcpStream::connect(to).await else {
                continue; // no IPv6
            };
            let (stream, remote) = listener.accept().await.unwrap();
            let local = stream.local_addr().unwrap();
            let peer = Peer::of_tcp(local, remote).unwrap();
            assert!(peer.processes.contains(&own), "{peer:?}");
            drop(other);
        }
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(Peer::of_unix(&one).unwrap().processes, [own]);
    }

    #[test]
    fn a_table_is_read_as_the_kernel_writes_it() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F46 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1\n   \
            1: 0100007F:9C40 0100007F:1F46 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1\n";
        let [from, to]: [SocketAddr; 2] =
            ["127.0.0.1:40000", "127.0.0.1:8006"].map(|a| a.parse().unwrap());
        let end = End {
            inode: 4711,
            user: 1000,
        };
        assert_eq!(end_of(table, from, to), Some(end));
        assert_eq!(end_of(table, to, from), None);
        assert_eq!(
            address("0000000000000000FFFF00000100007F:1F46"),
            Some(("127.0.0.1".parse().unwrap(), 8006))
        );
        assert_eq!(address("01:1"), None);
    }

    #[test]
    fn who_is_not_on_the_loopback_is_nobody() {
        let [local, remote]: [SocketAddr; 2] =
            ["127.0.0.1:8006", "10.0.0.1:5"].map(|a| a.parse().unwrap());
        assert!(Peer::of_tcp(local, remote).is_err());
    }
}
