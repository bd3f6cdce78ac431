//! The keeper of one run: the process that starts its shim, takes its output into the log, and sees it
//! end. It is a child of `cloister run` and outlives it, so that a run goes on however its client ends.
//!
//! ```text
//!   cloister run ──► cloister keep ──► shim ──► VM
//!        │  attach        │ FIFOs ◄──────┘
//!        └────────────────┘─► log, record, events
//! ```
//!
//! Nothing is created before a client attaches, so that no output is lost; a client that goes away before
//! the program runs ends the creation, because nobody waits for it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use containerd_shim_protos::shim_async::create_events;
use time::OffsetDateTime;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use super::event::{Event, Receiver};
use super::hub::{Hub, serve};
use super::log::{Log, Stream};
use super::runtime::{self, Shim, Streams};
use super::store::{Ended, Record, Run};
use super::wire::{Frame, MAX_FRAME};
use super::{KILLED, SIGKILL, SIGTERM};
use shim::state_dir::Process;

/// What the keeper says when it listens.
pub(crate) const READY: &str = "ready\n";
/// How long the client that started the keeper may take to attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long clients may take to read the end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Which run to keep.
#[derive(Debug, Args)]
pub(crate) struct Keep {
    #[arg(long)]
    namespace: String,
    name: String,
}

impl Keep {
    /// Keeps it to its end.
    pub(crate) async fn run(self) -> Result<u8> {
        // Not the terminal's any more: its signals are its client's.
        let _ = rustix::process::setsid();
        let run = Run::find(&self.namespace, &self.name)?;
        let mut record = run.read()?;
        record.keeper = Process::of(std::process::id());
        let hub = Arc::new(Hub::default());
        let socket = listen(&run.keeper_socket())?;
        let events = listen(&run.events_socket())?;
        run.write(&record)?;
        let mut server = Server::new()
            .add_listener(Listener::new(UnixListenerStream::new(events)))
            .register_service(create_events(Arc::new(Receiver(run.clone()))));
        server.start().await.context("take events")?;
        let input = input_fifo(&run, &record)?;
        tokio::spawn(serve(socket, Arc::clone(&hub), input));
        say_ready()?;
        let outcome = keep(&run, &mut record, &hub).await;
        finish(&run, &mut record, &hub, outcome).await;
        let _ = timeout(LAST_WORDS, server.shutdown()).await;
        Ok(0)
    }
}

/// The pipe to the program's input, where it gets one. Opened for both ends, it never waits for a reader.
fn input_fifo(run: &Run, record: &Record) -> Result<Option<pipe::Sender>> {
    if !record.interactive {
        return Ok(None);
    }
    let fifo = run.bundle().join("stdin");
    let sender = pipe::OpenOptions::new().read_write(true).open_sender(&fifo);
    sender
        .map(Some)
        .with_context(|| format!("open {}", fifo.display()))
}

/// From its start to its end; returns its exit code.
async fn keep(run: &Run, record: &mut Record, hub: &Arc<Hub>) -> Result<u32> {
    timeout(ATTACH_TIMEOUT, hub.attached())
        .await
        .context("nobody came to attach")?;
    let (shim, address) = Shim::start(run, record).await?;
    record.address = Some(address);
    let status = match run.write(record) {
        Ok(()) => task(run, record, hub, &shim).await,
        Err(error) => Err(error),
    };
    shim.end().await;
    status
}

async fn task(run: &Run, record: &mut Record, hub: &Arc<Hub>, shim: &Shim) -> Result<u32> {
    let streams = streams(run, record);
    let log = Arc::new(std::sync::Mutex::new(
        Log::open(&run.log()).context("open the log")?,
    ));
    // Before there is a writer: it opens only what has a reader.
    let mut outputs = vec![(Stream::Stdout, open(&streams.stdout)?)];
    if let Some(stderr) = &streams.stderr {
        outputs.push((Stream::Stderr, open(stderr)?));
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        created = shim.create(&record.image, &streams, record.terminal) => created?,
        () = hub.abandoned() => {
            shim.delete("").await?;
            bail!("the client went away before the program ran");
        }
        _ = terminate.recv() => {
            shim.delete("").await?;
            bail!("the creation was ended");
        }
    }
    shim.start_process("").await?;
    record.started = Some(OffsetDateTime::now_utc());
    run.write(record)?;
    hub.started();
    // Not before: who is attached is told of the start first, however soon the program writes.
    let mut pumps = tokio::task::JoinSet::new();
    for (stream, fifo) in outputs {
        pumps.spawn(pump(stream, fifo, Arc::clone(&log), Arc::clone(hub)));
    }
    let ended = async {
        let status = shim.wait("").await;
        while pumps.join_next().await.is_some() {}
        status
    };
    let mut ended = std::pin::pin!(ended);
    loop {
        tokio::select! {
            status = &mut ended => return status,
            () = hub.input_ended() => shim.close_input("").await,
            _ = terminate.recv() => drop(shim.kill("", SIGTERM).await),
        }
    }
}

/// The streams of its first process.
pub(crate) fn streams(run: &Run, record: &Record) -> Streams {
    let fifo = |name: &str| run.bundle().join(name);
    Streams {
        stdin: record.interactive.then(|| fifo("stdin")),
        stdout: fifo("stdout"),
        stderr: (!record.terminal).then(|| fifo("stderr")),
    }
}

fn open(fifo: &Path) -> Result<pipe::Receiver> {
    pipe::OpenOptions::new()
        .open_receiver(fifo)
        .with_context(|| format!("open {}", fifo.display()))
}

/// Copies output to its end: into the log, and to whoever is attached. A log that cannot be written does not
/// hold up the program.
async fn pump(
    stream: Stream,
    mut fifo: pipe::Receiver,
    log: Arc<std::sync::Mutex<Log>>,
    hub: Arc<Hub>,
) {
    let mut buffer = vec![0; MAX_FRAME];
    while let Ok(count @ 1..) = fifo.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        if let Ok(mut log) = log.lock() {
            let _ = log.append(stream, bytes);
        }
        let frame = match stream {
            Stream::Stdout => Frame::Stdout(bytes.to_vec()),
            Stream::Stderr => Frame::Stderr(bytes.to_vec()),
        };
        hub.tell(&frame).await;
    }
}

/// Writes down how it ended, tells who is attached, and removes what is not to stay. A run whose program
/// never ran leaves nothing.
async fn finish(run: &Run, record: &mut Record, hub: &Hub, outcome: Result<u32>) {
    let frame = match outcome {
        Ok(code) => Frame::Exited(code),
        Err(_) if record.started.is_some() => Frame::Exited(KILLED),
        Err(error) => Frame::Failed(crate::words(&error)),
    };
    if let Frame::Exited(code) = frame {
        record.ended = Some(Ended {
            at: OffsetDateTime::now_utc(),
            code,
        });
        let _ = std::fs::remove_dir_all(run.bundle());
    }
    for socket in [run.keeper_socket(), run.events_socket()] {
        let _ = std::fs::remove_file(socket);
    }
    if record.started.is_none() || record.remove {
        let _ = run.remove();
        let _ = Event::now(run, "remove").append(run.root());
    } else {
        // Gone, where somebody has removed it meanwhile.
        let _ = run.write(record);
    }
    hub.tell(&frame).await;
    let _ = timeout(LAST_WORDS, hub.all_told()).await;
}

/// Binds a socket in a directory that only its user enters; whoever had it before is dead.
fn listen(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))
}

/// Tells the client, and lets go of the pipe by which it waits.
fn say_ready() -> Result<()> {
    let mut stdout = std::io::stdout();
    std::io::Write::write_all(&mut stdout, READY.as_bytes())?;
    std::io::Write::flush(&mut stdout)?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("let go of the output")?;
    rustix::stdio::dup2_stderr(&null).context("let go of the error output")
}

/// Ends what is left of a run whose keeper is gone, and writes down that it was killed.
pub(crate) async fn bury(run: &Run, record: &mut Record) -> Result<()> {
    if let Ok(shim) = Shim::of(run, record).await {
        let _ = shim.kill("", SIGKILL).await;
        shim.end().await;
    }
    runtime::clean(&record.shim, run).await;
    let _ = std::fs::remove_dir_all(run.bundle());
    if record.ended.is_none() {
        record.ended = Some(Ended {
            at: OffsetDateTime::now_utc(),
            code: KILLED,
        });
        run.write(record)?;
    }
    Ok(())
}
