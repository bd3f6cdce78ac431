//! The server: one process for each pod, as long as the pod is there.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::Flags;
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::{Task, create_task};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::{info, warn};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use super::start::LISTENING;
use super::{BootstrapError, bundle, step};
use crate::event::Publisher;
use crate::state_dir::StateDir;
use crate::task::Tasks;
use crate::task::observed::Observed;
use crate::task::pod::service::PodService;
use crate::task::service::Service;
use crate::{config, log, monitor, own_namespace};

/// The shim moves bytes and waits; it never computes. Two threads, so that one that mounts or
/// resolves a name does not hold up the other.
const WORKERS: usize = 2;
/// Threads for calls that block.
const MAX_BLOCKING: usize = 8;
/// How long the last answers may take to be read.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long calls that block may take at the end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// The name under which the crate registers the service, and the one that containerd 1.x asks for.
const TASK_V3: &str = "containerd.task.v3.Task";
const TASK_V2: &str = "containerd.task.v2.Task";

/// Serves until containerd asks for the end.
pub(super) fn serve(flags: &Flags) -> Result<(), BootstrapError> {
    match prepare(flags) {
        Ok((runtime, directory)) => {
            let outcome = runtime.block_on(run(flags, directory));
            // What still blocks then, blocks nobody.
            runtime.shutdown_timeout(END_TIMEOUT);
            outcome
        }
        Err(error) => {
            // `start` reads it, and containerd shows it.
            println!("{error}");
            Err(error)
        }
    }
}

fn prepare(flags: &Flags) -> Result<(tokio::runtime::Runtime, StateDir), BootstrapError> {
    if flags.socket.is_empty() {
        return Err(BootstrapError::Flag {
            flag: "socket",
            cause: "is missing".to_owned(),
        });
    }
    log::start(&bundle(flags)?, &flags.id, flags.debug);
    own_namespace::enter().map_err(step("make a mount namespace"))?;
    let directory =
        StateDir::of(&flags.namespace, &flags.id).map_err(step("name the state directory"))?;
    // A server that died and was not deleted may have left things under this name.
    if let Err(error) = super::delete::clean(&directory, None) {
        warn!(%error, "remove what a dead shim left");
    }
    directory
        .create()
        .map_err(step("make the state directory"))?;
    super::delete::record_socket(&directory, Path::new(&flags.socket))
        .map_err(step("record the socket"))?;
    directory
        .record("shim", std::process::id())
        .map_err(step("record the shim's pid"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build()
        .map_err(step("start the runtime"))?;
    Ok((runtime, directory))
}

async fn run(flags: &Flags, directory: StateDir) -> Result<(), BootstrapError> {
    let socket = PathBuf::from(&flags.socket);
    let listener = match listen(&socket) {
        Ok(listener) => listener,
        Err(error) => {
            println!("{error}");
            let _ = directory.remove();
            return Err(error);
        }
    };
    let address = std::env::var("TTRPC_ADDRESS")
        .ok()
        .filter(|address| !address.is_empty());
    let events = Publisher::new(address, &flags.namespace);
    let variable = config::from_environment();
    let monitor = monitor::listen(&directory);
    let tasks = Tasks::new(&flags.id, directory, events, variable);
    match monitor {
        Ok(listener) => drop(tokio::spawn(monitor::serve(listener, tasks.clone()))),
        // A pod runs without its metrics.
        Err(error) => warn!(%error, "the monitor's socket"),
    }

    let service: Arc<dyn Task + Send + Sync> = Arc::new(Observed::new(Service(Arc::clone(&tasks))));
    let pod = PodService(Arc::clone(&tasks));
    let mut server = Server::new()
        .add_listener(Listener::new(UnixListenerStream::new(listener)))
        .register_service(create_task(Arc::clone(&service)))
        .register_service(under_v2(service))
        .register_service(create_sandbox(Arc::new(Observed::of_pod(pod))));
    server
        .start()
        .await
        .map_err(|error| BootstrapError::Server(error.to_string()))?;
    say_listening()?;
    info!(
        sandbox = flags.id,
        version = env!("CARGO_PKG_VERSION"),
        "the shim serves"
    );
    tokio::spawn(outlive_signals());

    tasks.over().await;
    tasks.close().await;
    // The answer to the request that ended us is on its way.
    let _ = tokio::time::timeout(ANSWER_TIMEOUT, server.shutdown()).await;
    if let Err(error) = std::fs::remove_file(&socket) {
        warn!(%error, "remove the socket");
    }
    Ok(())
}

fn under_v2(
    service: Arc<dyn Task + Send + Sync>,
) -> std::collections::HashMap<String, ttrpc::r#async::Service> {
    let named = create_task(service).into_iter();
    named
        .map(|(name, service)| {
            (
                if name == TASK_V3 {
                    TASK_V2.to_owned()
                } else {
                    name
                },
                service,
            )
        })
        .collect()
}

/// Binds the socket; whoever had it before is dead, or `start` would have found it.
fn listen(socket: &Path) -> Result<UnixListener, BootstrapError> {
    if let Some(parent) = socket.parent() {
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent);
        made.map_err(step("make the directory of the socket"))?;
    }
    if socket.exists() {
        std::fs::remove_file(socket).map_err(step("remove a dead shim's socket"))?;
    }
    let listener = UnixListener::bind(socket).map_err(step("bind the socket"))?;
    let only_us = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(socket, only_us).map_err(step("protect the socket"))?;
    Ok(listener)
}

/// Tells `start`, and lets go of the pipe by which it waits.
fn say_listening() -> Result<(), BootstrapError> {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(LISTENING.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(step("tell that it listens"))?;
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .map_err(step("open /dev/null"))?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| step("let go of the output")(error.into()))
}

/// A pod ends when containerd asks for it: the signals of a service's stop or a terminal are not
/// that.
async fn outlive_signals() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return warn!("signals cannot be caught");
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM is ignored"),
            _ = interrupt.recv() => info!("SIGINT is ignored"),
        }
    }
}
