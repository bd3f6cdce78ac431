//! Ports of the pod, reached from the loopback of its network namespace on the host.
//!
//! For `kubectl port-forward` containerd and CRI-O enter the pod's namespace and connect to its loopback.
//! Nobody listens there: the pod's programs are in the VM. So a rule in that namespace turns such
//! connections to the shim, which takes them to the same port of the guest's loopback.
//!
//! ```text
//!   containerd ─► 127.0.0.1:8080 ─rule─► shim ─vsock─► agent ─► 127.0.0.1:8080
//!   └──────── the pod's namespace ─────────┘            └────── guest ──────┘
//! ```
//!
//! What comes to the pod from anywhere else passes by the taps and meets neither rule nor shim. The rule
//! goes with the socket that made it, however the shim ends.

mod rule;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use agent_api::{DialAnswer, limit, ports};
use hypervisor::{Connector, VsockStream};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::NetworkError;
use super::namespace::Namespace;
use crate::relay::read_line;
use rule::Rule;

/// How long the guest may take to open a port of its own.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after an error of accept(2), which is one of memory or descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the namespace's connections arrive.
#[derive(Debug)]
pub struct Doors {
    listeners: Vec<TcpListener>,
    rule: Rule,
}

/// The work, which ends with its owner.
#[derive(Debug)]
pub struct Forwarding {
    _rule: Rule,
    accepting: Vec<JoinHandle<()>>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for task in &self.accepting {
            task.abort();
        }
    }
}

/// Listens in a pod's namespace. A kernel that cannot is no reason for a pod not to start: the pod is as
/// it should be, but for this.
#[must_use]
pub fn open(path: &Path) -> Option<Doors> {
    let opened = Namespace::open(path)
        .and_then(|namespace| namespace.inside(|| doors().map_err(NetworkError::Forward)));
    match opened {
        Ok(doors) => Some(doors),
        Err(error) => {
            let error = agent_api::GuestError::from(error);
            warn!(%error, "ports of the pod cannot be forwarded");
            None
        }
    }
}

fn doors() -> io::Result<Doors> {
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = first.local_addr()?.port();
    // The rule knows one port. A namespace may have no IPv6.
    let second = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).ok();
    let listeners: Vec<_> = [Some(first), second].into_iter().flatten().collect();
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    Ok(Doors {
        listeners,
        rule: Rule::add(port)?,
    })
}

impl Doors {
    /// Forwards what arrives, until the value is dropped.
    ///
    /// # Errors
    /// The runtime does not take a listener.
    pub fn serve(self, guest: &Connector) -> io::Result<Forwarding> {
        let serve = |listener| {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Ok(tokio::spawn(accept_all(listener, guest.clone())))
        };
        Ok(Forwarding {
            accepting: self
                .listeners
                .into_iter()
                .map(serve)
                .collect::<io::Result<_>>()?,
            _rule: self.rule,
        })
    }
}

async fn accept_all(listener: tokio::net::TcpListener, guest: Connector) {
    // Connections end with this task.
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(_) if carried.len() >= limit::MAX_FORWARDS => {
                    debug!("too many connections are forwarded");
                }
                Ok((stream, _)) => { carried.spawn(carry(stream, guest.clone())); }
                Err(error) => {
                    warn!(%error, "a connection to a port of the pod");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry(mut stream: TcpStream, guest: Connector) {
    let Ok(port) = wanted(&stream) else { return };
    let opened = match timeout(OPEN_TIMEOUT, ask(&guest, port)).await {
        Ok(opened) => opened,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    match opened {
        Ok(mut pod) => {
            let _ = copy_bidirectional(&mut stream, &mut pod).await;
        }
        Err(error) => info!(%error, port, "a port of the pod is not reached"),
    }
}

/// The port that was connected to, before the rule.
fn wanted(stream: &TcpStream) -> io::Result<u16> {
    let port = match stream.local_addr()? {
        SocketAddr::V4(_) => rustix::net::sockopt::ip_original_dst(stream)?.port(),
        SocketAddr::V6(_) => rustix::net::sockopt::ipv6_original_dst(stream)?.port(),
    };
    Ok(port)
}

async fn ask(guest: &Connector, port: u16) -> io::Result<VsockStream> {
    let mut stream = guest.connect(ports::FORWARD).await?;
    stream.write_u16(port).await?;
    let line = read_line(&mut stream).await?;
    match DialAnswer::parse(&line).map_err(io::Error::other)? {
        DialAnswer::Ok => Ok(stream),
        DialAnswer::Err(code, text) => Err(io::Error::other(format!("{text} [{code}]"))),
    }
}
