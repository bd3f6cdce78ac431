//! Processors and memory that the host adds while the guest runs, and memory that it gets back.
//!
//! A confidential guest takes part in neither: its size is measured, and what the host would do with pages
//! that are given back is the host's to choose.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::{ErrorCode, GuestError, agent};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::fault::OrFail;
use crate::gate::Allowed;
use crate::module::{self, Ability};

/// The image's name for the driver of the device by which memory is given back.
const BALLOON: &str = "balloon";
/// The device's number (virtio 1.3 §5).
const BALLOON_ID: &str = "0x0005";
const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
/// How long the kernel may take to see what the host has added.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);
const ARRIVAL_POLL: Duration = Duration::from_millis(20);
/// The most processors that one request takes into use.
const MAX_CPUS: u32 = 1024;

/// The driver of the device by which memory is given back, where `sys` shows such a device.
///
/// # Errors
///
/// Names the module.
pub fn balloon(sys: &Path) -> Result<Ability, module::Error> {
    Ability::of_device(sys, BALLOON_ID, BALLOON)
}

/// Says whether memory is taken into use as it comes.
///
/// # Errors
///
/// The kernel of a confidential guest might take it: such a guest does not go on.
pub fn settle(is_confidential: bool) -> Result<(), GuestError> {
    settle_in(Path::new(MEMORY), is_confidential)
}

fn settle_in(memory: &Path, is_confidential: bool) -> Result<(), GuestError> {
    let taken = if is_confidential { "offline" } else { "online" };
    match fs::write(memory.join("auto_online_blocks"), taken) {
        Ok(()) => Ok(()),
        // A kernel that takes no memory at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if is_confidential => Err(error).or_internal("boot", "refuse added memory"),
        Err(error) => {
            tracing::debug!(%error, "memory that is added");
            Ok(())
        }
    }
}

/// Gives back what is free from now on. A guest goes on without; a confidential one does not begin.
pub fn begin(is_confidential: bool, balloon: Ability) {
    if !is_confidential && let Err(error) = balloon.load() {
        tracing::warn!(%error, "free memory is not given back");
    }
}

/// The guest's blocks of memory, as many as were known when it was last asked to take some into use. A
/// confidential guest takes none.
#[derive(Debug)]
pub struct Blocks(Option<Mutex<usize>>);

impl Blocks {
    /// Those that are there at the start.
    #[must_use]
    pub fn new(is_confidential: bool) -> Self {
        Self((!is_confidential).then(|| Mutex::new(blocks(Path::new(MEMORY)))))
    }

    fn known(&self) -> Result<&Mutex<usize>, GuestError> {
        self.0.as_ref().ok_or_else(|| {
            let text = "a confidential guest keeps the size that was measured";
            GuestError::new(ErrorCode::FailedPrecondition, "online", text)
        })
    }
}

/// Takes what the host has added into use: so many processors, and all memory unless only processors are
/// meant. Who waits has the answer when they are there.
///
/// # Errors
///
/// The guest is confidential, they do not come, or the kernel refuses.
pub async fn online(
    blocks: &Blocks,
    request: &Allowed<agent::OnlineCPUMemRequest>,
) -> Result<(), GuestError> {
    let known = blocks.known()?;
    if request.nb_cpus > MAX_CPUS {
        let text = format!("{} processors: use at most {MAX_CPUS}", request.nb_cpus);
        return Err(GuestError::new(ErrorCode::InvalidArgument, "online", text));
    }
    let patience = if request.wait {
        ARRIVAL_TIMEOUT
    } else {
        Duration::ZERO
    };
    processors(Path::new(CPUS), request.nb_cpus, patience).await?;
    if request.cpu_only {
        return Ok(());
    }
    let mut known = known.lock().await;
    let there = arrived(Path::new(MEMORY), *known, patience).await?;
    for block in offline(Path::new(MEMORY), "memory", "state", "offline") {
        fs::write(&block, "online").or_internal("online", block.display())?;
    }
    // Only now: who has to ask again finds what came.
    *known = there;
    Ok(())
}

async fn processors(root: &Path, count: u32, patience: Duration) -> Result<(), GuestError> {
    let until = Instant::now() + patience;
    let mut left = count;
    loop {
        for processor in offline(root, "cpu", "online", "0") {
            if left == 0 {
                break;
            }
            fs::write(&processor, "1").or_internal("online", processor.display())?;
            left -= 1;
        }
        if left == 0 || patience.is_zero() {
            return Ok(());
        }
        if Instant::now() >= until {
            let text = format!("{left} of {count} processors did not come");
            return Err(GuestError::new(ErrorCode::DeadlineExceeded, "online", text));
        }
        sleep(ARRIVAL_POLL).await;
    }
}

/// How many blocks of memory there are, once there are more than are `known` and no further ones come.
async fn arrived(root: &Path, known: usize, patience: Duration) -> Result<usize, GuestError> {
    let until = Instant::now() + patience;
    let mut last = blocks(root);
    while !patience.is_zero() {
        sleep(ARRIVAL_POLL).await;
        let now = blocks(root);
        if now > known && now == last {
            break;
        }
        last = now;
        if Instant::now() >= until {
            let text = "the memory that was added did not come";
            return Err(GuestError::new(ErrorCode::DeadlineExceeded, "online", text));
        }
    }
    Ok(last)
}

fn blocks(root: &Path) -> usize {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let is_block = |name: &str| {
        name.strip_prefix("memory")
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_block))
        .count()
}

/// The state files of what is there and not in use, by their numbers.
fn offline(root: &Path, kind: &str, file: &str, state: &str) -> Vec<PathBuf> {
    let number = |name: &str| name.strip_prefix(kind)?.parse::<u32>().ok();
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let number = number(entry.file_name().to_str()?)?;
            Some((number, entry.path().join(file)))
        })
        .filter(|(_, path)| is_in(path, state))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn is_in(path: &Path, state: &str) -> bool {
    let read: io::Result<String> = fs::read_to_string(path);
    read.is_ok_and(|text| text.trim() == state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(root: &Path, name: &str, online: &str) -> PathBuf {
        let directory = root.join(name);
        fs::create_dir(&directory).unwrap();
        let path = directory.join("online");
        fs::write(&path, online).unwrap();
        path
    }

    #[test]
    fn a_confidential_guest_takes_nothing_that_is_added() {
        let refused = Blocks::new(true).known().map(|_| ()).unwrap_err();
        assert_eq!(refused.code, ErrorCode::FailedPrecondition);
        assert!(Blocks::new(false).known().is_ok());
        let root = tempfile::tempdir().unwrap();
        settle_in(&root.path().join("none"), true).unwrap();
        let file = root.path().join("auto_online_blocks");
        for (is_confidential, said) in [(true, "offline"), (false, "online")] {
            settle_in(root.path(), is_confidential).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), said);
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(settle_in(root.path(), true).is_err());
        assert!(settle_in(root.path(), false).is_ok());
    }

    #[tokio::test]
    async fn as_many_processors_are_taken_as_are_asked_for_and_the_first_ones() {
        let root = tempfile::tempdir().unwrap();
        // The first processor has no such file.
        fs::create_dir(root.path().join("cpu0")).unwrap();
        fs::create_dir(root.path().join("cpufreq")).unwrap();
        let ten = processor(root.path(), "cpu10", "0\n");
        let two = processor(root.path(), "cpu2", "0\n");
        let one = processor(root.path(), "cpu1", "1\n");
        processors(root.path(), 1, Duration::from_secs(1))
            .await
            .unwrap();
        let states = [&one, &two, &ten].map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(states, ["1\n", "1", "0\n"]);
    }

    #[tokio::test]
    async fn one_that_does_not_come_is_an_error_only_for_who_waits() {
        let root = tempfile::tempdir().unwrap();
        processor(root.path(), "cpu1", "1");
        processors(root.path(), 1, Duration::ZERO).await.unwrap();
        let error = processors(root.path(), 1, Duration::from_millis(1)).await;
        let error = error.unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded);
        assert!(error.message.contains("1 of 1"), "{error}");
    }

    #[tokio::test]
    async fn memory_is_waited_for_until_there_is_more_than_there_was() {
        let root = tempfile::tempdir().unwrap();
        let add = |name: &str| fs::create_dir(root.path().join(name)).unwrap();
        for name in ["memory0", "memory_x", "power"] {
            add(name);
        }
        let wait = Duration::from_millis(60);
        let late = arrived(root.path(), 1, wait).await.unwrap_err();
        assert_eq!(late.code, ErrorCode::DeadlineExceeded);
        assert_eq!(arrived(root.path(), 1, Duration::ZERO).await.unwrap(), 1);
        add("memory32");
        add("memory33");
        assert_eq!(arrived(root.path(), 1, wait).await.unwrap(), 3);
    }
}
