//! Follows the kubelet's changes of a volume: it renames a link over `..data`, and the guest gets the new set.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::polled::polled;
use super::{Slot, content};
use crate::guest::Guest;

/// How often to look where the host has no inotify instance left: the kubelet itself looks once a minute.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long apart at most the tries are for a change that the guest does not take.
const MAX_RETRY: Duration = Duration::from_secs(300);
/// How long a change may take to settle: the kubelet removes what it replaced right afterwards.
const SETTLE: Duration = Duration::from_millis(50);
/// Room for some of inotify's events.
const BUFFER: usize = 4096;

/// A task that follows one volume. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch(JoinHandle<()>);

impl Watch {
    /// Follows the volume of a slot that is called `name` in the guest.
    pub(super) fn start(guest: Guest, slot: Slot, name: String, events: Events) -> Self {
        Self(tokio::spawn(follow(guest, slot, name, events)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(guest: Guest, slot: Slot, name: String, mut events: Events) {
    let mut again = None;
    loop {
        let retry = async {
            match again {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = events.changed(&slot.source) => again = None,
            () = retry => {}
            _ = guest.gone() => return,
        }
        sleep(SETTLE).await;
        match pass_on(&guest, &slot, &name).await {
            Ok(()) => {
                again = None;
                debug!(path = %slot.source.display(), "a volume has changed");
            }
            // A token that is not renewed ends one day: it is tried again, ever more seldom.
            Err(error) => {
                let wait = again.map_or(INTERVAL, |wait| (wait * 2).min(MAX_RETRY));
                again = Some(wait);
                warn!(%error, path = %slot.source.display(), "a volume's change is not in the guest");
            }
        }
    }
}

async fn pass_on(guest: &Guest, slot: &Slot, name: &str) -> Result<(), GuestError> {
    let source = slot.source.clone();
    let set = tokio::task::spawn_blocking(move || content::set(&source))
        .await
        .map_err(|error| GuestError::new(ErrorCode::Internal, "volume", error))?
        .map_err(|error| GuestError::new(error.code(), "volume", error))?;
    slot.send(guest, name, set).await.map(drop)
}

/// News of a directory.
#[derive(Debug)]
pub(super) struct Events {
    kernel: Option<AsyncFd<OwnedFd>>,
    /// Where the link led when it was last looked at.
    seen: Option<std::path::PathBuf>,
}

impl Events {
    pub(super) fn of(directory: &Path) -> Self {
        let watch = || -> std::io::Result<AsyncFd<OwnedFd>> {
            let kernel = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            let what = WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
            inotify::add_watch(&kernel, directory, what)?;
            polled(kernel)
        };
        let kernel = watch();
        if let Err(error) = &kernel {
            warn!(%error, path = %directory.display(), "no inotify: a volume is looked at now and then");
        }
        Self {
            kernel: kernel.ok(),
            seen: target(directory),
        }
    }

    /// Waits until the set of the directory is another.
    async fn changed(&mut self, directory: &Path) {
        loop {
            match &self.kernel {
                Some(kernel) => {
                    if next(kernel).await.is_err() {
                        self.kernel = None;
                    }
                }
                None => sleep(INTERVAL).await,
            }
            let now = target(directory);
            if now.is_some() && now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

/// Waits for events, and takes them all: what they are shows in the directory.
async fn next(kernel: &AsyncFd<OwnedFd>) -> std::io::Result<()> {
    let mut ready = kernel.readable().await?;
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(kernel.get_ref(), &mut buffer);
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(ReadFlags::IGNORED) => {
                return Err(std::io::ErrorKind::NotFound.into());
            }
            Ok(_) => {}
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    ready.clear_ready();
    Ok(())
}

fn target(directory: &Path) -> Option<std::path::PathBuf> {
    std::fs::read_link(directory.join(content::DATA)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_link_that_is_renamed_over_another_is_a_change_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        symlink("..1", root.join(content::DATA)).unwrap();
        let mut events = Events::of(root);
        std::fs::write(root.join("other.new"), "").unwrap();
        std::fs::rename(root.join("other.new"), root.join("other")).unwrap();
        let early = timeout(Duration::from_millis(100), events.changed(root)).await;
        assert!(early.is_err());
        symlink("..2", root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join(content::DATA)).unwrap();
        let changed = timeout(Duration::from_secs(60), events.changed(root)).await;
        changed.unwrap();
    }
}
