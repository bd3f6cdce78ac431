//! TLS and HTTP in front of the routes: bounded connections, bounded waiting, and an end in order.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::{
    broker::{Broker, OpenError},
    config::Config,
    route,
    tls::{Identity, TlsError},
    upkeep,
};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 4096;
/// For the TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// For requests that run when the broker is told to stop.
const FAREWELL: Duration = Duration::from_secs(10);
/// Bytes of a request's head: a token has to fit twice, as cookie and as bearer.
const HEAD_BYTES: usize = 256 * 1024;

/// A broker that listens and does not serve yet.
pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<Identity>>,
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
    /// Opens the broker and its port.
    ///
    /// # Errors
    /// Names the file, key or address that cannot be used.
    pub async fn bind(config: &Config) -> Result<Self, ServeError> {
        let tls = config
            .tls
            .as_ref()
            .map(Identity::read)
            .transpose()?
            .map(Arc::new);
        let broker = Arc::new(Broker::open(config).await?);
        let listener =
            TcpListener::bind(config.listen)
                .await
                .map_err(|source| ServeError::Bind {
                    address: config.listen,
                    source,
                })?;
        Ok(Self {
            listener,
            tls,
            broker,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` ends, then lets running requests finish.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let app = route::router(Arc::clone(&self.broker));
        let mut tasks = JoinSet::new();
        tasks.spawn(upkeep::run(Arc::clone(&self.broker)));
        for issuer in self.broker.admins.issuers() {
            tasks.spawn(Arc::clone(issuer).keep_fresh());
        }
        if let Some(tls) = &self.tls {
            tasks.spawn(Arc::clone(tls).watch());
        }
        let (leave, left) = watch::channel(false);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut guests = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let place = Arc::clone(&places).acquire_owned();
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = guests.join_next(), if !guests.is_empty() => continue,
                accepted = async { (place.await, self.listener.accept().await) } => accepted,
            };
            let (Ok(place), accepted) = accepted else {
                break;
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: a pause lets some end.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (app, tls, left) = (app.clone(), self.tls.clone(), left.clone());
            guests.spawn(async move {
                greet(stream, tls, app, left).await;
                drop(place);
            });
        }
        drop(self.listener);
        leave.send_replace(true);
        let finish = async { while guests.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, finish).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        guests.shutdown().await;
        tasks.shutdown().await;
        self.broker.store.close().await;
        tracing::info!("stopped");
    }
}

async fn greet(
    stream: TcpStream,
    tls: Option<Arc<Identity>>,
    app: Router,
    mut left: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let Some(tls) = tls else {
        return serve(stream, app, left).await;
    };
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(PATIENCE, tls.shown().acceptor.accept(stream)) => greeted,
        () = told_to_leave(&mut left) => return,
    };
    match greeted {
        Ok(Ok(stream)) => serve(stream, app, left).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn serve<S>(stream: S, app: Router, mut left: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = tower_service(app);
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

/// Axum takes its own body; hyper gives its own.
fn tower_service(
    app: Router,
) -> impl hyper::service::Service<
    http::Request<Incoming>,
    Response = http::Response<Body>,
    Error = Infallible,
    Future: Send,
> {
    TowerToHyperService::new(app)
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
    /// The address.
    #[error("listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}
