//! Listens on the addresses, and finds out who connects before anything is read.
//!
//! Each connection that is open has a place among a few: those that arrive, those that are served, and those that are
//! told that they are not. So no caller takes the descriptors of this process, which a guest's first one shares with
//! everything else.

use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::client::Desk;
use super::hold::{Counts, Place};
use super::{Abilities, Authorize, Client, Peer, Refused, Seldom, rest, rpc};
use crate::Hub;

/// Connections that are served at once, and those of one caller.
const CONNECTIONS: usize = 256;
const OF_ONE: usize = 32;
/// Connections of one address that are being identified, each by a look at all processes. More wait in the kernel.
const ARRIVALS: usize = 8;
/// Refusals that are being told. More are closed without a word.
const REFUSALS: usize = 8;
/// How long to wait after an error of accept(2), which is one of memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long it may take to find out who connects.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the services are.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Of the attestation agent.
    pub attestation: PathBuf,
    /// Of the data hub.
    pub data_hub: PathBuf,
    /// Of REST, on the loopback; none where it is not wanted.
    pub rest: Option<SocketAddr>,
    /// Who may open the sockets, as a mode.
    pub mode: u32,
}

impl Addresses {
    /// What CoCo's sockets lie below.
    pub const DIRECTORY: &'static str = "/run/confidential-containers";

    /// CoCo's. Everybody may open the sockets: what a caller gets is the policy's to say.
    #[must_use]
    pub fn of_guest() -> Self {
        let below = |name: &str| Path::new(Self::DIRECTORY).join(name);
        Self {
            attestation: below("attestation-agent/attestation-agent.sock"),
            data_hub: below("cdh.sock"),
            rest: Some(SocketAddr::from(([127, 0, 0, 1], 8006))),
            mode: 0o666,
        }
    }
}

/// An address that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("serve {address}: {cause}")]
pub struct ServeError {
    address: String,
    cause: io::Error,
}

/// The services, until this is dropped.
#[derive(Debug)]
pub struct Serving {
    _accepting: JoinSet<()>,
    rest: Option<SocketAddr>,
}

impl Serving {
    /// Where REST is, also where any port was asked for.
    #[must_use]
    pub fn rest(&self) -> Option<SocketAddr> {
        self.rest
    }
}

/// Which ttRPC services a socket has.
#[derive(Clone, Copy)]
enum Socket {
    Attestation,
    DataHub,
}

/// Serves from now on.
///
/// # Errors
/// An address is taken, or cannot be made.
pub async fn serve(
    hub: Arc<Hub>,
    authorize: Arc<dyn Authorize>,
    abilities: Abilities,
    addresses: &Addresses,
) -> Result<Serving, ServeError> {
    let desk = Arc::new(Desk::new(hub, authorize, abilities));
    let door = Door {
        desk,
        served: Counts::new(CONNECTIONS, OF_ONE),
        refusals: Arc::new(Semaphore::new(REFUSALS)),
        warned: Arc::default(),
    };
    let mut accepting = JoinSet::new();
    for (path, socket) in [
        (&addresses.attestation, Socket::Attestation),
        (&addresses.data_hub, Socket::DataHub),
    ] {
        let listener = bind(path, addresses.mode).map_err(|cause| ServeError {
            address: path.display().to_string(),
            cause,
        })?;
        accepting.spawn(accept_unix(listener, door.clone(), socket));
    }
    let mut rest = None;
    if let Some(address) = addresses.rest {
        let failed = |cause| ServeError {
            address: address.to_string(),
            cause,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        rest = Some(listener.local_addr().map_err(failed)?);
        accepting.spawn(accept_tcp(listener, door));
    }
    Ok(Serving {
        _accepting: accepting,
        rest,
    })
}

/// A socket that a program before left behind is replaced; one that is served is an error.
fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

#[derive(Clone)]
struct Door {
    desk: Arc<Desk>,
    served: Arc<Counts>,
    refusals: Arc<Semaphore>,
    warned: Arc<Seldom>,
}

/// A connection's place until it is known whose it is.
type Arrival = OwnedSemaphorePermit;

impl Door {
    /// Who is there, and a place for the connection.
    async fn admit(
        &self,
        peer: impl Future<Output = io::Result<(Peer, Arrival)>>,
    ) -> Result<(Client, Place), Refused> {
        let found = async {
            let (peer, arrival) = peer.await.map_err(|error| Refused(error.to_string()))?;
            Ok((self.desk.authorize.identify(peer).await?, arrival))
        };
        let late = || Refused("it took too long to find out who connects".to_owned());
        let found = timeout(IDENTIFY_TIMEOUT, found).await;
        let (caller, _arrival) = found.map_err(|_| late())??;
        let place = self.served.take(&caller.id);
        let place = place.ok_or_else(|| Refused("too many connections".to_owned()))?;
        Ok((Client::new(Arc::clone(&self.desk), caller), place))
    }

    fn warn(&self, refused: &Refused) {
        if let Some(left_out) = self.warned.due() {
            tracing::warn!(%refused, left_out, "a workload was not served");
        }
    }
}

async fn accept_unix(listener: UnixListener, door: Door, socket: Socket) {
    let arrivals = Arc::new(Semaphore::new(ARRIVALS));
    let mut connections = JoinSet::new();
    while let Ok(arrival) = Arc::clone(&arrivals).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                // At once: later the process that connected may be gone.
                let peer = Peer::of_unix(&stream).map(|peer| (peer, arrival));
                connections.spawn(serve_unix(stream, peer, door.clone(), socket));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_unix(
    stream: UnixStream,
    peer: io::Result<(Peer, Arrival)>,
    door: Door,
    socket: Socket,
) {
    match door.admit(ready(peer)).await {
        Ok((client, _place)) => {
            let services = match socket {
                Socket::Attestation => rpc::attestation(client),
                Socket::DataHub => rpc::data_hub(client),
            };
            rpc::serve(stream, services).await;
        }
        Err(refused) => door.warn(&refused),
    }
}

async fn accept_tcp(listener: TcpListener, door: Door) {
    let arrivals = Arc::new(Semaphore::new(ARRIVALS));
    let mut connections = JoinSet::new();
    while let Ok(arrival) = Arc::clone(&arrivals).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, remote)) => {
                connections.spawn(serve_tcp(stream, remote, arrival, door.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_tcp(stream: TcpStream, remote: SocketAddr, arrival: Arrival, door: Door) {
    let local = stream.local_addr();
    let peer = async {
        let local = local?;
        // A look that nobody waits for any more keeps its place until it ends.
        let look = move || Ok((Peer::of_tcp(local, remote)?, arrival));
        spawn_blocking(look).await?
    };
    match door.admit(peer).await {
        Ok((client, _place)) => rest::serve(stream, client).await,
        Err(refused) => {
            door.warn(&refused);
            if let Ok(_turn) = door.refusals.try_acquire() {
                rest::refuse(stream, &refused).await;
            }
        }
    }
}
