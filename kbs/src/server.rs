//! TLS and HTTP in front of the routes: bounded connections, bounded waiting, and an end in order.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
};
use tower::ServiceExt;

use crate::{
    broker::{Broker, OpenError},
    config::Config,
    crowd::{Attended, Crowd, Stage},
    limit::Shares,
    progress::Progressing,
    room::Held,
    route::{self, Peer},
    telemetry::{Exporter, TelemetryError, Traces},
    tls::{Identity, TlsError},
    upkeep,
};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 4096;
/// The same on the port for metrics.
const MONITOR_CONNECTIONS: usize = 64;
/// What one address may have of those.
const MONITOR_SHARE: u32 = 16;
/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;
/// What the kernel holds of answers that a client does not read: it would take megabytes for each, which
/// no room counts.
const SEND_BYTES: u32 = 64 * 1024;
/// For the TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// For requests that run when the broker is told to stop.
const FAREWELL: Duration = Duration::from_secs(10);
/// Bytes of a request's head: a token has to fit twice, as cookie and as bearer. What is large of all
/// heads has room together.
const HEAD_BYTES: usize = 256 * 1024;

/// A broker that listens and does not serve yet.
pub struct Server {
    listener: TcpListener,
    monitor: Option<TcpListener>,
    tls: Option<Arc<Identity>>,
    drain: Duration,
    /// Connections of one address.
    share: u32,
    exporter: Option<Exporter>,
    broker: Arc<Broker>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the broker and its ports.
    ///
    /// # Errors
    /// Names the file, key or address that cannot be used.
    pub async fn bind(config: &Config) -> Result<Self, ServeError> {
        let tls = config.tls.as_ref().map(Identity::read).transpose()?;
        let mut broker = Broker::open(config).await?;
        let (traces, exporter) = Traces::new(&config.telemetry)?.unzip();
        broker.traces = traces;
        let monitor = match config.metrics_listen {
            Some(address) => Some(listen(address)?),
            None => None,
        };
        Ok(Self {
            listener: listen(config.listen)?,
            monitor,
            tls: tls.map(Arc::new),
            drain: Duration::from_secs(config.drain_seconds.into()),
            share: config.limits.connections,
            exporter,
            broker: Arc::new(broker),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where it serves metrics, if it does.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn monitor_address(&self) -> io::Result<Option<SocketAddr>> {
        self.monitor
            .as_ref()
            .map(TcpListener::local_addr)
            .transpose()
    }

    /// Serves until `stop` ends. Then it says that it is not ready any more, waits for who reads that,
    /// and lets running requests finish.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let broker = self.broker;
        let mut tasks = JoinSet::new();
        tasks.spawn(upkeep::run(Arc::clone(&broker)));
        for issuer in broker.admins.issuers() {
            tasks.spawn(Arc::clone(issuer).keep_fresh());
        }
        if let Some(tls) = &self.tls {
            tasks.spawn(Arc::clone(tls).watch(Arc::clone(&broker)));
        }
        let (finish, finished) = oneshot::channel();
        let exporter = self.exporter.map(|one| tokio::spawn(one.run(finished)));
        let (leave, left) = watch::channel(false);
        let mut doors = JoinSet::new();
        let door = Door {
            listener: self.listener,
            tls: self.tls,
            app: route::router(Arc::clone(&broker)),
            connections: CONNECTIONS,
            shares: Shares::new(self.share),
            broker: Arc::clone(&broker),
            open: broker.metrics.connections.clone(),
        };
        doors.spawn(door.attend(left.clone()));
        if let Some(listener) = self.monitor {
            let door = Door {
                listener,
                tls: None,
                app: route::monitor(Arc::clone(&broker)),
                connections: MONITOR_CONNECTIONS,
                shares: Shares::new(MONITOR_SHARE),
                broker: Arc::clone(&broker),
                open: Gauge::default(),
            };
            doors.spawn(door.attend(left));
        }
        stop.await;
        tracing::info!("told to stop");
        broker.leave();
        tokio::time::sleep(self.drain).await;
        leave.send_replace(true);
        while doors.join_next().await.is_some() {}
        if let Some(exporter) = exporter {
            // Either it hears that it has to finish, or it has already.
            let _ = finish.send(());
            let _ = exporter.await;
        }
        tasks.shutdown().await;
        broker.store.close().await;
        tracing::info!("stopped");
    }
}

/// The connections have the listener's buffers.
fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.set_send_buffer_size(SEND_BYTES)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ServeError::Bind { address, source })
}

/// A port, and what is served there.
struct Door {
    listener: TcpListener,
    tls: Option<Arc<Identity>>,
    app: Router,
    connections: usize,
    /// Who has them.
    shares: Shares,
    broker: Arc<Broker>,
    /// How many are open.
    open: Gauge,
}

impl Door {
    /// Takes connections until it is told to leave, then lets running requests finish.
    async fn attend(self, mut left: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(self.connections));
        let crowd = Arc::new(Crowd::default());
        let mut guests = JoinSet::new();
        for number in 0.. {
            let accepted = tokio::select! {
                () = told_to_leave(&mut left) => break,
                Some(_) = guests.join_next(), if !guests.is_empty() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: a pause lets some end.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(share) = self.broker.limiter.share(&self.shares, peer.ip()) else {
                tracing::debug!(peer = %peer.ip(), "it has its share of connections");
                continue;
            };
            let held = tokio::select! {
                () = told_to_leave(&mut left) => break,
                held = crowd.place(&places) => held,
            };
            let (tls, left) = (self.tls.clone(), left.clone());
            let open = Open::new(&self.open);
            crowd.enter(number, |stage, present| {
                let visit = self.visit(peer.ip(), stage);
                guests.spawn(async move {
                    greet(stream, visit, tls, left).await;
                    drop((held, open, share, present));
                })
            });
        }
        drop(self.listener);
        let finish = async { while guests.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, finish).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        guests.shutdown().await;
    }

    fn visit(&self, peer: IpAddr, stage: Arc<Stage>) -> Visit {
        let limiter = &self.broker.limiter;
        Visit {
            peer,
            app: self.app.clone(),
            stage,
            heads: Held::new(&limiter.rooms.heads, limiter.whose(peer)),
        }
    }
}

/// One connection, and what it is served.
struct Visit {
    peer: IpAddr,
    app: Router,
    stage: Arc<Stage>,
    /// Room for its heads.
    heads: Held,
}

/// Counted for as long as it is there.
struct Open(Gauge);

impl Open {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn greet(
    stream: TcpStream,
    visit: Visit,
    tls: Option<Arc<Identity>>,
    mut left: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let stream = Progressing::new(stream);
    let Some(tls) = tls else {
        return serve(stream, visit, left).await;
    };
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(PATIENCE, tls.shown().acceptor.accept(stream)) => greeted,
        () = told_to_leave(&mut left) => return,
    };
    match greeted {
        Ok(Ok(stream)) => serve(stream, visit, left).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn serve<S>(stream: S, visit: Visit, mut left: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Attended::new(stream, Arc::clone(&visit.stage), visit.heads);
    let service = tower_service(visit.app, visit.peer, visit.stage);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told_to_leave(&mut left) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

async fn told_to_leave(left: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is the same word.
    drop(left.wait_for(|leave| *leave).await);
}

/// Axum takes its own body; hyper gives its own, and knows nothing of who sends it.
fn tower_service(
    app: Router,
    peer: IpAddr,
    stage: Arc<Stage>,
) -> impl hyper::service::Service<
    http::Request<Incoming>,
    Response = http::Response<Body>,
    Error = Infallible,
    Future: Send,
> {
    let answering = Arc::clone(&stage);
    let named = move |mut request: http::Request<Incoming>| {
        stage.asks();
        request.extensions_mut().insert(Peer(peer));
        route::single_slash(request)
    };
    let answered = move |response: http::Response<Body>| {
        answering.answered();
        response
    };
    TowerToHyperService::new(app.map_request(named).map_response(answered))
}

/// The broker cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Keys, policies or store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Where traces go.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The address.
    #[error("listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}
