//! Follows the kubelet's changes of a volume: it renames a link over `..data`, and the guest gets the new set.
//!
//! The link is looked at again and again: of inotify's instances root has a hundred or so for a whole node, and every
//! pod has volumes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::GuestError;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::{Slot, content};
use crate::guest::Guest;

/// How often to look: the kubelet itself does so once a minute.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long apart at most the tries are for a change that the guest does not take.
const MAX_RETRY: Duration = Duration::from_secs(300);

/// A task that follows one volume. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch(JoinHandle<()>);

impl Watch {
    /// Follows the volume of a slot that is called `name` in the guest.
    pub(super) fn start(guest: Guest, slot: Slot, name: String, seen: Seen) -> Self {
        Self(tokio::spawn(follow(guest, slot, name, seen)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(guest: Guest, slot: Slot, name: String, mut seen: Seen) {
    let mut wait = INTERVAL;
    loop {
        tokio::select! {
            () = sleep(wait) => {}
            _ = guest.gone() => return,
        }
        let Some(news) = seen.news(&slot.source) else {
            continue;
        };
        match pass_on(&guest, &slot, &name).await {
            Ok(()) => {
                (seen, wait) = (news, INTERVAL);
                debug!(path = %slot.source.display(), "a volume has changed");
            }
            // A token that is not renewed ends one day: it is tried again, ever more seldom.
            Err(error) => {
                wait = (wait * 2).min(MAX_RETRY);
                warn!(%error, path = %slot.source.display(), "a volume's change is not in the guest");
            }
        }
    }
}

async fn pass_on(guest: &Guest, slot: &Slot, name: &str) -> Result<(), GuestError> {
    let set = super::read(&slot.source, content::set)
        .await
        .map_err(|error| GuestError::new(error.code(), "volume", error))?;
    slot.send(guest, name, set).await.map(drop)
}

/// The set of a directory that the guest has: where the link led.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen(Option<PathBuf>);

impl Seen {
    pub(super) fn of(directory: &Path) -> Self {
        Self(std::fs::read_link(directory.join(content::DATA)).ok())
    }

    /// Where it leads now, if that is to another set.
    fn news(&self, directory: &Path) -> Option<Self> {
        let now = Self::of(directory);
        (now.0.is_some() && now != *self).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_that_is_renamed_over_another_is_a_change_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        symlink("..1", root.join(content::DATA)).unwrap();
        let seen = Seen::of(root);
        std::fs::write(root.join("other"), "").unwrap();
        assert_eq!(seen.news(root), None);
        symlink("..2", root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join(content::DATA)).unwrap();
        let news = seen.news(root).unwrap();
        // What the guest did not take is still news.
        assert!(seen.news(root).is_some());
        assert_eq!(news.news(root), None);
        std::fs::remove_file(root.join(content::DATA)).unwrap();
        assert_eq!(news.news(root), None);
    }
}
