//! One directory for all that a test leaves on the host, and the turn to run a VM.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::product;

/// Unix socket paths end at 108 bytes, and containerd and the shim put names of their own behind
/// ours: a base longer than this goes to the system's temporary directory instead.
const BASE_MAX: usize = 48;

/// A directory that is removed when the value is dropped. `CLOISTER_KEEP=1` keeps it for reading.
#[derive(Debug)]
pub struct State {
    dir: TempDir,
}

impl State {
    /// Makes a new one below the target directory.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new() -> Result<Self> {
        let mut base = product::target_dir().join("t");
        if base.as_os_str().len() > BASE_MAX {
            base = std::env::temp_dir();
        }
        Self::new_in(&base)
    }

    /// Makes a new one with a path as short as can be, for pods whose ids are as long as Kubernetes' are.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn short() -> Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(base: &Path) -> Result<Self> {
        std::fs::create_dir_all(base).with_context(|| format!("create {}", base.display()))?;
        let mut dir = tempfile::Builder::new()
            .prefix("c")
            .rand_bytes(5)
            .tempdir_in(base)?;
        if std::env::var_os("CLOISTER_KEEP").is_some_and(|v| v == "1") {
            dir.disable_cleanup(true);
            eprintln!("state is kept in {}", dir.path().display());
        }
        Ok(Self { dir })
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Creates a directory in it.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Writes a file in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// The right to run VMs. Tests of several binaries share two cores, and a VM under TCG that gets
/// half a core runs into time limits that are right for a whole one.
#[derive(Debug)]
pub struct VmTurn {
    _lock: Flock<File>,
}

impl VmTurn {
    /// Waits for the turn; it ends when the value is dropped, or with the process.
    ///
    /// # Errors
    /// When the lock file cannot be opened or locked.
    pub fn wait() -> Result<Self> {
        let path = product::target_dir().join("vm.lock");
        let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map(|lock| Self { _lock: lock })
            .map_err(|(_, errno)| anyhow::Error::new(errno).context("lock the VM turn"))
    }
}
