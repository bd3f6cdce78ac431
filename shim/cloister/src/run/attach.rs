//! The client's end of a run: its input and output, signals and the size of the terminal.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::runtime::Shim;
use super::store::Run;
use super::terminal::{self, DETACH_KEYS, Keys, Raw};
use super::wire::{Frame, MAX_FRAME};
use super::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Pieces of input that wait.
const MAX_INPUT: usize = 4;
/// A size that is told while the program is being started may come too early for it: it is told again.
const RESIZE_AGAIN: Duration = Duration::from_millis(300);

/// Go on with a run that is on its way.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    of: super::Named,
    /// The keys that leave it to itself again; "" for none.
    #[arg(long, default_value = DETACH_KEYS)]
    detach_keys: String,
}

impl Attach {
    /// Attaches; returns the program's exit code.
    pub(crate) async fn run(self) -> Result<u8> {
        let run = self.of.find()?;
        let record = run.read()?;
        if let Some(ended) = &record.ended {
            bail!("{} has ended with {}", run.name, ended.code);
        }
        let mut client = Client::connect(&run).await?;
        match client.until_started().await? {
            Frame::Started => {}
            Frame::Failed(text) => bail!("{text}"),
            _ => bail!("{} has ended", run.name),
        }
        let how = How {
            interactive: record.interactive,
            terminal: record.terminal,
            keys: Keys::parse(&self.detach_keys)?,
        };
        let shim = Shim::of(&run, &run.read()?).await?;
        client.go_on(&shim, &how).await
    }
}

/// How a client takes part.
#[derive(Debug, Clone)]
pub(crate) struct How {
    /// It gives input.
    pub(crate) interactive: bool,
    /// It has a terminal.
    pub(crate) terminal: bool,
    /// What ends its part.
    pub(crate) keys: Keys,
}

/// One who is attached.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
}

impl Client {
    /// Attaches to a run whose keeper lives.
    pub(crate) async fn connect(run: &Run) -> Result<Self> {
        let connected = UnixStream::connect(run.keeper_socket()).await;
        let stream = connected.with_context(|| {
            format!(
                "nobody keeps {0}: `cloister ps --all` says what there is of it, `cloister rm --force {0}` ends it",
                run.name
            )
        })?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            name: run.name.clone(),
            reader,
            writer,
        })
    }

    async fn next(&mut self) -> Result<Frame> {
        match Frame::read(&mut self.reader).await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) | Err(_) => Err(killed(&self.name)),
        }
    }

    /// The frame that says that the program runs, or why it does not.
    pub(crate) async fn until_started(&mut self) -> Result<Frame> {
        self.next().await
    }

    /// Leaves it to itself.
    pub(crate) async fn leave(mut self) {
        let _ = Frame::Detach.write(&mut self.writer).await;
    }

    /// Takes part to the end of the program or of our part; returns the exit code.
    pub(crate) async fn go_on(self, shim: &Shim, how: &How) -> Result<u8> {
        let raw = (how.terminal && how.interactive)
            .then(Raw::enter)
            .transpose()?;
        let mut signals = Signals::catch()?;
        let mut out = tokio::io::stdout();
        let mut err = tokio::io::stderr();
        tell_size(shim, how.terminal, "");
        let (frames, mut read) = mpsc::channel(1);
        // Tasks of their own: a frame cannot be given up halfway, and input that nobody takes must not hold
        // up output.
        let reading = tokio::spawn(read_all(self.reader, frames));
        let (leave, mut left) = oneshot::channel();
        let feeding = tokio::spawn(feed(self.writer, how.clone(), leave));
        let outcome = loop {
            tokio::select! {
                frame = read.recv() => match frame {
                    Some(Frame::Stdout(bytes)) => show(&mut out, &bytes).await,
                    Some(Frame::Stderr(bytes)) => show(&mut err, &bytes).await,
                    Some(Frame::Exited(code)) => break Ok(u8::try_from(code).unwrap_or(u8::MAX)),
                    Some(Frame::Failed(text)) => break Err(anyhow!("{text}")),
                    Some(_) => {}
                    None => break Err(killed(&self.name)),
                },
                Ok(()) = &mut left => break Ok(0),
                caught = signals.next() => match caught {
                    Caught::Resize => tell_size(shim, how.terminal, ""),
                    Caught::Signal(number) => drop(shim.kill("", number).await),
                },
            }
        };
        reading.abort();
        feeding.abort();
        drop(raw);
        outcome
    }
}

fn killed(name: &str) -> anyhow::Error {
    anyhow!(
        "the keeper of {name} was killed: `cloister ps` says what there is of it, `cloister stop {name}` ends it"
    )
}

/// Sends what is typed, until the keys come that leave the program to itself.
async fn feed(mut writer: OwnedWriteHalf, how: How, leave: oneshot::Sender<()>) {
    let mut input = Input::start(how.interactive);
    let mut keys = how.keys;
    loop {
        let piece = input.next().await;
        let frame = match piece {
            Some(bytes) if how.terminal => {
                let typed = keys.take(&bytes);
                let _ = Frame::Input(typed.bytes).write(&mut writer).await;
                if typed.detach {
                    let _ = Frame::Detach.write(&mut writer).await;
                    let _ = leave.send(());
                    return;
                }
                continue;
            }
            Some(bytes) => Frame::Input(bytes),
            None => Frame::InputEnd,
        };
        // A connection that broke is told by the other half.
        let _ = frame.write(&mut writer).await;
    }
}

async fn read_all(mut reader: OwnedReadHalf, frames: mpsc::Sender<Frame>) {
    while let Ok(Some(frame)) = Frame::read(&mut reader).await {
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

/// Writes output. Where ours cannot be written to, it is dropped, so that the program does not wait for ever.
pub(crate) async fn show(to: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    if to.write_all(bytes).await.is_ok() {
        let _ = to.flush().await;
    }
}

/// Tells a process how large our terminal is, now and once more.
pub(crate) fn tell_size(shim: &Shim, terminal: bool, exec: &str) {
    let Some(size) = terminal::size().filter(|_| terminal) else {
        return;
    };
    let (shim, exec) = (shim.clone(), exec.to_owned());
    tokio::spawn(async move {
        shim.resize(&exec, size).await;
        tokio::time::sleep(RESIZE_AGAIN).await;
        if let Some(size) = terminal::size() {
            shim.resize(&exec, size).await;
        }
    });
}

/// What comes for us from outside.
#[derive(Debug)]
pub(crate) enum Caught {
    /// The terminal has another size.
    Resize,
    /// A signal for the program.
    Signal(u32),
}

/// The signals that are passed on.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    resize: Signal,
}

impl Signals {
    pub(crate) fn catch() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// The next one. Can be given up.
    pub(crate) async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Signal(SIGINT),
            _ = self.terminate.recv() => Caught::Signal(SIGTERM),
            _ = self.hang_up.recv() => Caught::Signal(SIGHUP),
            _ = self.quit.recv() => Caught::Signal(SIGQUIT),
            _ = self.resize.recv() => Caught::Resize,
        }
    }

    /// The next one that asks for an end.
    pub(crate) async fn end(&mut self) -> u32 {
        loop {
            if let Caught::Signal(number) = self.next().await {
                return number;
            }
        }
    }
}

/// Our standard input, read in a thread that nobody waits for: a read of a terminal ends when its user
/// likes.
#[derive(Debug)]
pub(crate) struct Input {
    pieces: Option<mpsc::Receiver<Vec<u8>>>,
}

impl Input {
    /// Begins to read, where it is wanted.
    pub(crate) fn start(wanted: bool) -> Self {
        let pieces = wanted.then(|| {
            let (sender, pieces) = mpsc::channel(MAX_INPUT);
            std::thread::spawn(move || {
                let mut buffer = vec![0; MAX_FRAME];
                while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
                    let piece = buffer.get(..count).unwrap_or_default().to_vec();
                    if sender.blocking_send(piece).is_err() {
                        return;
                    }
                }
            });
            pieces
        });
        Self { pieces }
    }

    /// The next piece; `None` at the end, once.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let Some(pieces) = &mut self.pieces else {
            return std::future::pending().await;
        };
        let piece = pieces.recv().await;
        if piece.is_none() {
            self.pieces = None;
        }
        piece
    }
}
