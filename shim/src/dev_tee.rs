//! The firmware of a simulated TEE: a program of its own, one for each pod, which the shim tells what was
//! launched, and then carries the agent's questions to.
//!
//! It is to the shim what a security processor or a quoting enclave is: bytes go in and signed bytes come
//! out. The shim knows no key and reads no evidence.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use agent_api::{DialAnswer, ErrorCode, GuestError, TeeCall, limit};
use evidence::init_data::InitDataDigest;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::relay::read_line;
use crate::state_dir::{OWNER_VARIABLE, StateDir};

/// Where `cloister dev-tee init` makes the development root.
pub const DIRECTORY: &str = "/var/lib/cloister/dev-tee";
/// Bytes of a launch in JSON, with its line feed: paths and a command line.
pub const LAUNCH_BYTES: usize = 64 * 1024;
/// The program, beside the shim's own.
const PROGRAM: &str = "cloister";
/// How long an answer may take: the first waits until all that was launched is hashed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a VM was launched with, as far as a TEE would have measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// What is simulated.
    pub tee: evidence::Tee,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initrd: Option<PathBuf>,
    /// The firmware, where the configuration names one.
    pub firmware: Option<PathBuf>,
    /// The kernel's command line, as a TEE would have it.
    pub command_line: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The digest that the launch binds.
    pub init_data: Option<InitDataDigest>,
}

/// What a pod wants of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The development root.
    pub directory: PathBuf,
    /// What is simulated.
    pub tee: evidence::Tee,
    /// The digest that the launch binds.
    pub init_data: Option<InitDataDigest>,
}

/// The firmware of one pod. It ends with the last of its clones.
#[derive(Debug, Clone)]
pub struct DevTee(Arc<Mutex<Pipes>>);

#[derive(Debug)]
struct Pipes {
    asked: ChildStdin,
    answers: ChildStdout,
    _child: Child,
}

impl DevTee {
    /// Starts it and tells it what was launched.
    ///
    /// # Errors
    /// There is no such program, or it ended.
    pub async fn start(
        directory: &Path,
        launch: &Launch,
        state: &StateDir,
    ) -> Result<Self, GuestError> {
        let program = beside().unwrap_or_else(|| PathBuf::from(PROGRAM));
        let failed = |cause: io::Error| {
            let text = format!("start of {}: {cause}", program.display());
            GuestError::new(ErrorCode::FailedPrecondition, "dev-tee", text)
        };
        let mut child = Command::new(&program)
            .args(["dev-tee", "serve", "--dir"])
            .arg(directory)
            .env(OWNER_VARIABLE, state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(mut asked), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let mut line = serde_json::to_vec(launch).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        asked.write_all(&line).await.map_err(failed)?;
        Ok(Self(Arc::new(Mutex::new(Pipes {
            asked,
            answers,
            _child: child,
        }))))
    }

    /// Its answer as the guest is to get it: the line, and the items behind it.
    pub(crate) async fn ask(&self, call: &TeeCall) -> Vec<u8> {
        let mut pipes = self.0.lock().await;
        let answer = match timeout(ANSWER_TIMEOUT, pipes.ask(call)).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(elapsed.into()),
        };
        answer.unwrap_or_else(|error| {
            let text = format!("the simulated firmware gives no answer: {error}");
            let answer = DialAnswer::Err(ErrorCode::FailedPrecondition, text);
            format!("{answer}\n").into_bytes()
        })
    }
}

impl Pipes {
    async fn ask(&mut self, call: &TeeCall) -> io::Result<Vec<u8>> {
        self.asked.write_all(format!("{call}\n").as_bytes()).await?;
        let mut answer = read_line(&mut self.answers).await?;
        if DialAnswer::parse(&answer).map_err(io::Error::other)? != DialAnswer::Ok {
            return Ok(answer);
        }
        for _ in 0..call.items() {
            let length = self.answers.read_u32_le().await?;
            let bytes = usize::try_from(length).unwrap_or(usize::MAX);
            if bytes > limit::MAX_TEE_ITEM {
                return Err(io::Error::other("an item is too long"));
            }
            answer.extend(length.to_le_bytes());
            let at = answer.len();
            answer.resize(at + bytes, 0);
            self.answers.read_exact(&mut answer[at..]).await?;
        }
        Ok(answer)
    }
}

/// The program in the shim's own directory.
fn beside() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    Some(own.with_file_name(PROGRAM)).filter(|path| path.exists())
}
