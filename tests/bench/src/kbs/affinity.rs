//! Which core runs what: the broker has one, everything of the bench the other.

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Two cores of those that this process may use.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    /// Where the broker runs, and where its cryptography is measured by itself.
    pub broker: usize,
    /// Where the guests run.
    pub guests: usize,
}

impl Cores {
    /// The last two: the first one has the most interrupts.
    ///
    /// # Errors
    /// When there are not two.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("ask for the cores")?;
        let cores: Vec<usize> = (0..CpuSet::count())
            .filter(|core| allowed.is_set(*core).unwrap_or(false))
            .collect();
        let [.., guests, broker] = cores[..] else {
            ensure!(cores.len() >= 2, "the bench needs two cores");
            unreachable!("two cores are enough")
        };
        Ok(Self { broker, guests })
    }
}

/// Binds this thread, and all threads and programs that it starts, to a core.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).context("choose a core")?;
    sched_setaffinity(Pid::from_raw(0), &set).context("bind to a core")
}
