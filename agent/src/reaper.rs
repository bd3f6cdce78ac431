//! The one place that waits for processes.
//!
//! PID 1 inherits every orphan, so it must wait for any child, and then no other part of the
//! program may wait for a particular one. Spawning and reaping hold the same lock: a child cannot
//! be reaped before somebody is registered for it, and a pid cannot be signalled after it was
//! reaped and perhaps given to another process.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Statuses of orphans that are kept while somebody expects one.
const MAX_UNCLAIMED: usize = 4096;

/// Waits for all children.
#[derive(Debug, Default)]
pub struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    awaited: HashMap<Pid, watch::Sender<Option<i32>>>,
    /// How many expect an orphan whose pid they do not know yet.
    expecting: usize,
    unclaimed: HashMap<Pid, i32>,
}

/// A process that is, or was, a child of PID 1.
#[derive(Clone, Debug)]
pub struct Child {
    pid: Pid,
    exit: watch::Receiver<Option<i32>>,
}

/// While it lives, statuses of unknown orphans are kept, for [`Expectation::claim`].
#[derive(Debug)]
pub struct Expectation {
    reaper: Arc<Reaper>,
}

impl Reaper {
    /// Starts to reap, on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// The signal cannot be watched.
    pub fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let mut children = signal(SignalKind::child())?;
        let this = Arc::clone(&reaper);
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                this.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts a program.
    ///
    /// # Errors
    ///
    /// Those of [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut table = self.lock();
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        Ok(table.register(pid))
    }

    /// Announces that an orphan will be claimed.
    #[must_use]
    pub fn expect(self: &Arc<Self>) -> Expectation {
        self.lock().expecting += 1;
        Expectation {
            reaper: Arc::clone(self),
        }
    }

    /// Sends a signal; `false` where the process has already been reaped.
    ///
    /// # Errors
    ///
    /// Those of kill(2).
    pub fn signal(&self, child: &Child, signal: Signal) -> io::Result<bool> {
        let _table = self.lock();
        if child.status().is_some() {
            return Ok(false);
        }
        kill_process(child.pid, signal)?;
        Ok(true)
    }

    fn reap(&self) {
        let mut table = self.lock();
        // Ends with None while children live and with ECHILD when there are none.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(status) = exit_code(status) else {
                continue;
            };
            if let Some(waiting) = table.awaited.remove(&pid) {
                waiting.send_replace(Some(status));
            } else if table.expecting > 0 && table.unclaimed.len() < MAX_UNCLAIMED {
                table.unclaimed.insert(pid, status);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn register(&mut self, pid: Pid) -> Child {
        let (sender, exit) = watch::channel(self.unclaimed.remove(&pid));
        if exit.borrow().is_none() {
            self.awaited.insert(pid, sender);
        }
        Child { pid, exit }
    }
}

impl Expectation {
    /// Registers for the orphan, which may have ended already.
    #[must_use]
    pub fn claim(self, pid: Pid) -> Child {
        self.reaper.lock().register(pid)
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = self.reaper.lock();
        table.expecting -= 1;
        if table.expecting == 0 {
            table.unclaimed.clear();
        }
    }
}

impl Child {
    /// One that runs for ever, and that nobody waits for.
    #[cfg(test)]
    pub(crate) fn running() -> Self {
        let (_, exit) = watch::channel(None);
        Self {
            pid: rustix::process::getpid(),
            exit,
        }
    }

    /// Its pid, in the guest's own namespace.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The exit code, or 128 + signal; `None` while it runs.
    #[must_use]
    pub fn status(&self) -> Option<i32> {
        *self.exit.borrow()
    }

    /// Waits for the end. Any number of callers may.
    pub async fn wait(&self) -> i32 {
        let mut exit = self.exit.clone();
        // The sender lives in the table until it has sent, so that an error means it has.
        let _ = exit.wait_for(Option::is_some).await;
        self.status().unwrap_or(UNKNOWN_STATUS)
    }
}

/// What a shell says of a process that it lost.
const UNKNOWN_STATUS: i32 = 255;

/// `None` for a process that has only stopped or gone on.
fn exit_code(status: rustix::process::WaitStatus) -> Option<i32> {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, because there is one process to wait in.
    #[tokio::test]
    async fn every_child_gives_its_status_once_and_for_all() {
        let reaper = Reaper::start().unwrap();
        let mut quick = Command::new("/bin/sh");
        quick.args(["-c", "exit 7"]);
        let children: Vec<_> = (0..8).map(|_| reaper.spawn(&mut quick).unwrap()).collect();
        for child in &children {
            assert_eq!(child.wait().await, 7);
            assert_eq!(child.wait().await, 7);
            assert!(!reaper.signal(child, Signal::KILL).unwrap());
        }
        let sleeper = reaper.spawn(Command::new("/bin/sleep").arg("100")).unwrap();
        assert!(reaper.signal(&sleeper, Signal::KILL).unwrap());
        assert_eq!(sleeper.wait().await, 128 + 9);
        assert!(reaper.spawn(&mut Command::new("/nowhere")).is_err());

        // An orphan that ends before it is claimed.
        let expectation = reaper.expect();
        let forgotten = reaper.spawn(&mut quick).unwrap();
        reaper.lock().awaited.clear();
        let pid = forgotten.pid();
        for _ in 0..500 {
            if reaper.lock().unclaimed.contains_key(&pid) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(expectation.claim(pid).wait().await, 7);
        assert!(reaper.lock().unclaimed.is_empty());
    }
}
