//! A container's volumes in a guest that shares no files with the host: sent before the container is made,
//! and its last words brought back when it has ended.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use agent_api::{GuestError, limit};
use rustix::fs::OFlags;
use tracing::{debug, warn};

use super::Tasks;
use super::prepare::Prepared;
use crate::container::Container;
use crate::guest::Guest;
use crate::volume::Volumes;

impl Tasks {
    /// Sends what goes into slots, and puts the guest's paths into the specification.
    pub(super) async fn fill_slots(
        &self,
        guest: &Guest,
        container: &Container,
        prepared: &mut Prepared,
    ) -> Result<(), GuestError> {
        if prepared.slots.is_empty() {
            return Ok(());
        }
        // What follows may be given up at any await.
        container.hold(Volumes::begun());
        let mut volumes = Volumes::begun();
        for wanted in std::mem::take(&mut prepared.slots) {
            let Some(mount) = prepared.spec.mounts.get_mut(wanted.index) else {
                continue;
            };
            mount.source = volumes
                .fill(guest, &container.id, &wanted, &mount.destination)
                .await?;
        }
        container.hold(volumes);
        Ok(())
    }
}

/// Writes a container's termination message where the kubelet looks for it, before its end is told.
pub(super) async fn bring_back_message(container: &Container, guest: &Guest) {
    let Some(path) = container.termination_log() else {
        return;
    };
    let message = match guest.termination_message(&container.id).await {
        Ok(message) => message,
        // The owner's policy may keep it in the guest.
        Err(error) => {
            return debug!(%error, container = container.id, "no termination message");
        }
    };
    if message.is_empty() {
        return;
    }
    if let Err(error) = write_message(&path, &message) {
        warn!(%error, path = %path.display(), "termination message");
    }
}

/// The guest chose the text, and what is longer than the kubelet reads is cut. The file is looked at once more
/// before it is touched: no FIFO holds this up, and nothing but a regular file is written.
fn write_message(path: &Path, message: &str) -> io::Result<()> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(i32::try_from(flags).map_err(io::Error::other)?)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    file.set_len(0)?;
    file.write_all(last_words(message).as_bytes())
}

/// The end of a message, as much as the kubelet reads: why a program ended stands there.
fn last_words(message: &str) -> &str {
    let mut start = message.len().saturating_sub(limit::MAX_TERMINATION_MESSAGE);
    while !message.is_char_boundary(start) {
        start += 1;
    }
    message.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode};

    #[test]
    fn a_message_is_cut_and_follows_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert!(write_message(&path, "not made here").is_err());
        std::fs::write(&path, "before, and longer than what comes").unwrap();
        write_message(&path, "why").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"why");
        write_message(&path, &"x".repeat(limit::MAX_TERMINATION_MESSAGE * 2)).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(length, 4096);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(write_message(&link, "no").is_err());
    }

    #[test]
    fn the_end_of_a_message_is_kept_and_no_character_is_halved() {
        let most = limit::MAX_TERMINATION_MESSAGE;
        let long = format!("begin{}end", "x".repeat(most));
        assert_eq!(last_words(&long).len(), most);
        assert!(last_words(&long).ends_with("xend"));
        // Three bytes each, of which the limit is no multiple.
        let signs = "\u{fffd}".repeat(most);
        assert_eq!(last_words(&signs).len(), most - most % 3);
        assert_eq!(last_words("why"), "why");
    }

    #[test]
    fn a_fifo_in_place_of_the_file_is_not_written_whether_someone_reads_it_or_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::openat(CWD, &path, flags, Mode::empty()).unwrap();
        let error = write_message(&path, "no").unwrap_err();
        assert!(error.to_string().contains("regular"), "{error}");
        drop(reader);
        assert!(write_message(&path, "no").is_err());
    }
}
