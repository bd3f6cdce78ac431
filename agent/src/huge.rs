//! Huge pages: as many as the containers of the pod may have together, taken out of the guest's memory.
//!
//! A limit (`hugepages-2Mi` of a container) promises pages, so they are there before the container is, and go
//! back when it does. The cgroup holds a container to its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use agent_api::{ErrorCode, GuestError, oci};

use crate::fault::{OrFail, invalid};

const POOLS: &str = "/sys/kernel/mm/hugepages";
const MEMORY: &str = "/proc/meminfo";
const PHASE: &str = "hugepages";
/// Sizes of pages that one request names.
const MAX_SIZES: usize = 8;

/// Bytes by the size of pages, both as the kernel counts them.
pub type Limits = BTreeMap<u64, u64>;

/// The pages that containers have; none in a confidential guest, whose memory is not made for them.
#[derive(Debug)]
pub struct Pages {
    pools: Option<Arc<Pools>>,
}

#[derive(Debug)]
struct Pools {
    directory: PathBuf,
    /// Where the kernel tells of its memory.
    memory: PathBuf,
    /// Bytes that the containers there are have been promised together, by size.
    promised: Mutex<Limits>,
}

impl Pages {
    /// None yet.
    #[must_use]
    pub fn new(is_confidential: bool) -> Self {
        Self {
            pools: (!is_confidential).then(|| {
                Arc::new(Pools {
                    directory: PathBuf::from(POOLS),
                    memory: PathBuf::from(MEMORY),
                    promised: Mutex::default(),
                })
            }),
        }
    }

    /// Whether there can be none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.pools.is_none()
    }

    /// Makes pages for a container; answers what to give back.
    ///
    /// # Errors
    ///
    /// The kernel has no such pages, or the memory is too small or too scattered for them.
    pub async fn reserve(&self, asked: &[oci::LinuxHugepageLimit]) -> Result<Limits, GuestError> {
        let limits = limits(asked)?;
        if limits.is_empty() {
            return Ok(limits);
        }
        let Some(pools) = &self.pools else {
            let text = "a confidential guest has no huge pages: remove the limit";
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        };
        let pools = Arc::clone(pools);
        // The kernel moves memory about for them.
        tokio::task::spawn_blocking(move || pools.reserve(&limits).map(|()| limits))
            .await
            .or_internal(PHASE, "make pages")?
    }

    /// Gives a container's pages back to the memory.
    pub async fn release(&self, held: Limits) {
        let Some(pools) = self.pools.as_ref().filter(|_| !held.is_empty()) else {
            return;
        };
        let pools = Arc::clone(pools);
        let released = tokio::task::spawn_blocking(move || pools.release(&held)).await;
        if let Err(error) = released {
            tracing::warn!(%error, "huge pages are not given back");
        }
    }
}

impl Pools {
    fn reserve(&self, limits: &Limits) -> Result<(), GuestError> {
        let mut promised = self.promised();
        let before = promised.clone();
        for (size, bytes) in limits {
            let more = sum(&promised, *size).saturating_add(*bytes);
            promised.insert(*size, more);
        }
        for size in limits.keys() {
            if let Err(error) = self.set(*size, sum(&promised, *size)) {
                for size in limits.keys() {
                    let _ = self.set(*size, sum(&before, *size));
                }
                *promised = before;
                return Err(error);
            }
        }
        Ok(())
    }

    fn release(&self, held: &Limits) {
        let mut promised = self.promised();
        for (size, bytes) in held {
            let left = sum(&promised, *size).saturating_sub(*bytes);
            promised.insert(*size, left);
            if let Err(error) = self.set(*size, left) {
                tracing::warn!(%error, "huge pages are not given back");
            }
        }
    }

    fn promised(&self) -> MutexGuard<'_, Limits> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel keep as many pages of a size as these bytes are. Pages that files of a volume hold still
    /// are beyond that; the kernel counts them out as they go.
    fn set(&self, size: u64, bytes: u64) -> Result<(), GuestError> {
        let pool = self
            .directory
            .join(format!("hugepages-{}kB/nr_hugepages", size >> 10));
        let (wanted, kib) = (bytes / size, size >> 10);
        let before = read(&pool).ok_or_else(|| {
            let text = format!("the guest's kernel has no pages of {kib} KiB: use hugepages-2Mi");
            GuestError::new(ErrorCode::Unimplemented, PHASE, text)
        })?;
        let new = wanted.saturating_sub(before);
        let short = |got: u64| {
            let text = format!(
                "the guest's memory has room for {got} of {new} more pages of {kib} KiB: raise the memory of the VM"
            );
            GuestError::new(ErrorCode::ResourceExhausted, PHASE, text)
        };
        // The kernel would swap, write back and kill for them.
        let room = available(&self.memory).or_internal(PHASE, self.memory.display())? / kib.max(1);
        if new > room {
            return Err(short(room));
        }
        fs::write(&pool, wanted.to_string()).or_internal(PHASE, pool.display())?;
        let there = read(&pool).unwrap_or_default();
        match there >= wanted {
            true => Ok(()),
            false => Err(short(there.saturating_sub(before))),
        }
    }
}

fn sum(limits: &Limits, size: u64) -> u64 {
    limits.get(&size).copied().unwrap_or_default()
}

/// KiB that the kernel can give without taking them from anybody (proc_meminfo(5)).
fn available(memory: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(memory)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other("it has no MemAvailable"))
}

/// The limits that ask for pages at all.
fn limits(asked: &[oci::LinuxHugepageLimit]) -> Result<Limits, GuestError> {
    if asked.len() > MAX_SIZES {
        return Err(invalid(PHASE, format!("more than {MAX_SIZES} sizes")));
    }
    let mut limits = Limits::new();
    for limit in asked.iter().filter(|limit| limit.Limit > 0) {
        let size = size(&limit.Pagesize).ok_or_else(|| {
            let shown: String = limit.Pagesize.chars().take(16).collect();
            invalid(
                PHASE,
                format!("{shown:?} is no size of pages: use 2MB or 1GB"),
            )
        })?;
        limits.insert(size, limit.Limit);
    }
    Ok(limits)
}

/// Bytes of `2MB`, `1GB`, as OCI writes them.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(2)?)?;
    let shift = match unit {
        "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

fn read(pool: &Path) -> Option<u64> {
    fs::read_to_string(pool).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(list: &[(&str, u64)]) -> Vec<oci::LinuxHugepageLimit> {
        let limit = |(size, bytes): &(&str, u64)| oci::LinuxHugepageLimit {
            Pagesize: (*size).to_owned(),
            Limit: *bytes,
            ..Default::default()
        };
        list.iter().map(limit).collect()
    }

    #[tokio::test]
    async fn pages_are_there_for_all_containers_and_go_back() {
        let root = tempfile::tempdir().unwrap();
        let pool = root.path().join("hugepages-2048kB");
        fs::create_dir(&pool).unwrap();
        let file = pool.join("nr_hugepages");
        fs::write(&file, "0\n").unwrap();
        let memory = root.path().join("meminfo");
        fs::write(&memory, "MemFree: 1 kB\nMemAvailable:   20480 kB\n").unwrap();
        let pages = Pages {
            pools: Some(Arc::new(Pools {
                directory: root.path().to_owned(),
                memory,
                promised: Mutex::default(),
            })),
        };
        let one = pages
            .reserve(&asked(&[("2MB", 4 << 20), ("1GB", 0)]))
            .await
            .unwrap();
        let two = pages.reserve(&asked(&[("2MB", 6 << 20)])).await.unwrap();
        assert_eq!(read(&file), Some(5));
        pages.release(one).await;
        assert_eq!(read(&file), Some(3));
        let unknown = asked(&[("2MB", 2 << 20), ("1GB", 1 << 30)]);
        let error = pages.reserve(&unknown).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unimplemented);
        assert_eq!(read(&file), Some(3), "what was made is given back");
        let refused = pages.reserve(&asked(&[("2MB", 64 << 20)])).await;
        let error = refused.unwrap_err();
        assert!(error.message.contains("10 of 32 more"), "{error}");
        assert_eq!(read(&file), Some(3));
        // What a volume holds beyond its container is not promised twice when that one comes again.
        fs::write(&file, "4\n").unwrap();
        pages.release(two).await;
        assert_eq!(read(&file), Some(0));
        pages.reserve(&asked(&[("2MB", 6 << 20)])).await.unwrap();
        assert_eq!(read(&file), Some(3));
    }

    #[tokio::test]
    async fn a_confidential_guest_has_none_and_sizes_are_ocis() {
        let pages = Pages::new(true);
        let none = pages.reserve(&asked(&[("2MB", 0), ("1GB", 0)])).await;
        assert!(none.is_ok());
        let refused = pages.reserve(&asked(&[("2MB", 2 << 20)])).await;
        let error = refused.unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        assert_eq!(
            (size("2MB"), size("1GB"), size("64KB")),
            (Some(2 << 20), Some(1 << 30), Some(64 << 10))
        );
        for bad in ["", "MB", "2M", "0MB", "x2MB", "-2MB", "2\u{fffd}"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }
}
