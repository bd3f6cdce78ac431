//! A real PostgreSQL server of its own for a test, on loopback, with nothing in it.

use std::os::unix::{fs::chown, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

use crate::{need::skip, registry::free_port};

const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// The running server; it ends, and its data with it, when the value is dropped.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    port: u16,
    programs: PathBuf,
    _dir: TempDir,
}

impl Postgres {
    /// Starts it. `None`, and a word about it, where the machine has no PostgreSQL.
    ///
    /// # Errors
    /// When it does not come up.
    ///
    /// # Panics
    /// When there is none, and `CLOISTER_NO_SKIP=1` forbids skipping.
    pub fn start() -> Result<Option<Self>> {
        let Some(programs) = programs() else {
            skip("needs PostgreSQL (`postgresql`); `.ci/setup` installs it");
            return Ok(None);
        };
        // The server refuses to run as root.
        let user = if geteuid().is_root() {
            let user = User::from_name("postgres")?.context("there is no user `postgres`")?;
            Some((user.uid.as_raw(), user.gid.as_raw()))
        } else {
            None
        };
        let dir = tempfile::tempdir()?;
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid))?;
        }
        let run = |name: &str| {
            let mut command = Command::new(programs.join(name));
            command.current_dir(dir.path()).stdin(Stdio::null());
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let data = dir.path().join("data");
        let made = run("initdb")
            .args([
                "--auth=trust",
                "--username=kbs",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(&data)
            .output()?;
        ensure!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let port = free_port()?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = run("postgres")
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k"])
            .arg(dir.path())
            .arg("-D")
            .arg(&data)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self {
            child,
            port,
            programs,
            _dir: dir,
        };
        server.wait()?;
        Ok(Some(server))
    }

    /// A new, empty database on it, by its address.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn database(&self, name: &str) -> Result<String> {
        let made = Command::new(self.programs.join("createdb"))
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                "kbs",
                name,
            ])
            .output()?;
        ensure!(
            made.status.success(),
            "createdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        Ok(format!("postgres://kbs@127.0.0.1:{}/{name}", self.port))
    }

    fn wait(&mut self) -> Result<()> {
        let since = Instant::now();
        loop {
            let asked = Command::new(self.programs.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
                .status()?;
            if asked.success() {
                return Ok(());
            }
            ensure!(
                self.child.try_wait()?.is_none(),
                "PostgreSQL ended at its start"
            );
            ensure!(
                since.elapsed() < READY,
                "PostgreSQL was not ready within {READY:?}"
            );
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Without waiting for its clients; SIGKILL would leave its shared memory behind.
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        let _ = kill(pid, Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}

/// The directory of the newest version that Debian has installed.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, path)| Path::new(path).join("postgres").is_file())
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path)
}
