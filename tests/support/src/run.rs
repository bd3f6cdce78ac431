//! Programs that run to their end within a time limit, and services that run until dropped.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::product;

const POLL: Duration = Duration::from_millis(10);
/// What a service gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// The command, for messages.
    pub command: String,
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Standard output, lossily as UTF-8.
    pub stdout: String,
    /// Standard error, lossily as UTF-8.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Finished {
    /// Itself, when the exit code is 0.
    ///
    /// # Errors
    /// With everything the program said, when it is not.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == 0, "{}", self.report());
        Ok(self)
    }

    /// Both outputs, for searching.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// All of it, for a person.
    #[must_use]
    pub fn report(&self) -> String {
        format!(
            "`{}` ended with {} after {:.1} s\n{}{}",
            self.command,
            self.code,
            self.took.as_secs_f64(),
            self.stdout,
            self.stderr
        )
    }
}

/// Runs `command` and waits at most `limit`; then it and its group are killed, and that is an error.
///
/// # Errors
/// When it cannot be started or outlives `limit`. A non-zero exit is no error here.
pub fn within(limit: Duration, command: &mut Command) -> Result<Finished> {
    with_input(limit, command, b"")
}

/// As [`within`], with bytes for its standard input.
///
/// # Errors
/// As [`within`].
pub fn with_input(limit: Duration, command: &mut Command, input: &[u8]) -> Result<Finished> {
    let running = Running::start(command)?;
    running.feed(input).finish(limit)
}

/// A program on its way, for tests that do something meanwhile.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    out: Option<JoinHandle<Vec<u8>>>,
    err: Option<JoinHandle<Vec<u8>>>,
    /// Bytes of standard output so far.
    far: Arc<AtomicUsize>,
    since: Instant,
}

impl Running {
    /// Starts it in a process group of its own, with both outputs collected.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let said = shown(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("PATH", product::path_variable())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start `{said}`"))?;
        let far = Arc::new(AtomicUsize::new(0));
        let out = child.stdout.take().map(|from| collect(from, far.clone()));
        let err = child.stderr.take();
        let err = err.map(|from| collect(from, Arc::default()));
        Ok(Self {
            command: said,
            child,
            out,
            err,
            far,
            since: Instant::now(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is over.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Writes `input` to its standard input and closes that.
    #[must_use]
    pub fn feed(mut self, input: &[u8]) -> Self {
        if let Some(mut stdin) = self.child.stdin.take() {
            // A program that ends without reading breaks the pipe, which is its own affair.
            let _ = stdin.write_all(input);
        }
        self
    }

    /// Writes `input` to its standard input, which stays open until it ends.
    #[must_use]
    pub fn feed_and_hold(mut self, input: &[u8]) -> Self {
        if let Some(stdin) = self.child.stdin.as_mut() {
            let _ = stdin.write_all(input);
        }
        self
    }

    /// Waits until it has written `bytes` to its standard output, then ends it at once; answers what it
    /// has written until then.
    ///
    /// # Errors
    /// When it ends or `limit` passes before.
    pub fn until_said(mut self, bytes: usize, limit: Duration) -> Result<String> {
        let far = self.far.clone();
        while far.load(Ordering::Acquire) < bytes {
            let ended = self.child.try_wait()?.is_some();
            if ended || self.since.elapsed() > limit {
                let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
                bail!("too little was said: {}", self.finish(limit)?.report());
            }
            std::thread::sleep(POLL);
        }
        let out = self.out.take();
        self.crash()?;
        let said = out.and_then(|thread| thread.join().ok());
        Ok(String::from_utf8_lossy(&said.unwrap_or_default()).into_owned())
    }

    /// Sends it SIGINT, as a terminal does.
    ///
    /// # Errors
    /// When it has ended.
    pub fn interrupt(&self) -> Result<()> {
        Ok(kill(pid_of(&self.child), Signal::SIGINT)?)
    }

    /// Ends it at once, as a crash would, and what it started.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn crash(mut self) -> Result<()> {
        let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it outlives `limit`, counted from its start; it is killed then.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break Some(status);
            }
            if self.since.elapsed() > limit {
                let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
                self.child.wait()?;
                break None;
            }
            std::thread::sleep(POLL);
        };
        let took = self.since.elapsed();
        let read = |thread: Option<JoinHandle<Vec<u8>>>| {
            let bytes = thread.and_then(|t| t.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (read(self.out.take()), read(self.err.take()));
        let finished = Finished {
            command: self.command,
            code: status.map_or(-1, code),
            stdout,
            stderr,
            took,
        };
        if status.is_none() {
            bail!("no end within {limit:?}: {}", finished.report());
        }
        Ok(finished)
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(mut from: impl Read + Send + 'static, far: Arc<AtomicUsize>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let (mut bytes, mut piece) = (Vec::new(), [0; 64 * 1024]);
        loop {
            match from.read(&mut piece) {
                Ok(count @ 1..) => bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return bytes,
            }
            far.store(bytes.len(), Ordering::Release);
        }
    })
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            // An annotation may hold kilobytes of init-data.
            if word.len() > 120 {
                format!("{}…", word.chars().take(100).collect::<String>())
            } else {
                word.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// A program that runs until the value is dropped. Its output goes to a file.
#[derive(Debug)]
pub struct Service {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Service {
    /// Starts it; both outputs are appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = shown(command);
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .env("PATH", product::path_variable())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start `{name}`"))?;
        Ok(Self {
            child,
            name,
            log: log.to_owned(),
        })
    }

    /// Waits until `ready` holds.
    ///
    /// # Errors
    /// With the end of the log, when the program ends first or `limit` passes.
    pub fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let since = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "`{}` ended with {}:\n{}",
                    self.name,
                    code(status),
                    self.log_tail()
                );
            }
            ensure!(
                since.elapsed() < limit,
                "`{}` was not ready within {limit:?}:\n{}",
                self.name,
                self.log_tail()
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let since = Instant::now();
        while since.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
