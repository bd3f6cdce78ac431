//! Watches a container's `memory.events`, and tells when a process was killed for its memory.

use std::fs::File;
use std::io;

use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cgroup::Cgroup;
use crate::polled::Polled;

/// Ends the watch when it is dropped.
#[derive(Debug)]
pub struct Watch {
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts to watch; each kill, or several at once, sends the container's id.
///
/// # Errors
///
/// The kernel has no memory controller, or those of epoll(7).
pub fn watch(container: &str, cgroup: &Cgroup, to: mpsc::Sender<String>) -> io::Result<Watch> {
    // The kernel wakes whoever polls the file for priority data when a count in it changes.
    let file = File::open(cgroup.file("memory.events"))?;
    let file = Polled::new(file.into(), Interest::PRIORITY)?;
    let (container, cgroup) = (container.to_owned(), cgroup.clone());
    let task = tokio::spawn(async move {
        let mut known = cgroup.oom_kills();
        while let Ok(mut guard) = file.ready(Interest::PRIORITY).await {
            guard.clear_ready();
            let kills = cgroup.oom_kills();
            if kills > known && to.send(container.clone()).await.is_err() {
                return;
            }
            known = kills;
        }
    });
    Ok(Watch { task })
}
