//! Huge pages: as many as the containers of the pod may have together, taken out of the guest's memory.
//!
//! A limit (`hugepages-2Mi` of a container) promises pages, so they are there before the container is, and go
//! back when it does. The cgroup holds a container to its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use agent_api::{ErrorCode, GuestError, oci};

use crate::fault::{OrFail, invalid};

const POOLS: &str = "/sys/kernel/mm/hugepages";
const PHASE: &str = "hugepages";
/// Sizes of pages that one request names.
const MAX_SIZES: usize = 8;

/// Bytes by the size of pages, both as the kernel counts them.
pub type Limits = BTreeMap<u64, u64>;

/// The pages that containers have; none in a confidential guest, whose memory is not made for them.
#[derive(Debug)]
pub struct Pages {
    pools: Option<PathBuf>,
    turn: Mutex<()>,
}

impl Pages {
    /// None yet.
    #[must_use]
    pub fn new(is_confidential: bool) -> Self {
        Self {
            pools: (!is_confidential).then(|| PathBuf::from(POOLS)),
            turn: Mutex::default(),
        }
    }

    /// Makes pages for a container; answers what to give back.
    ///
    /// # Errors
    ///
    /// The kernel has no such pages, or the memory is too small or too scattered for them.
    pub fn reserve(&self, asked: &[oci::LinuxHugepageLimit]) -> Result<Limits, GuestError> {
        let limits = limits(asked)?;
        let Some(pools) = &self.pools else {
            return match limits.is_empty() {
                true => Ok(limits),
                false => {
                    let text = "a confidential guest has no huge pages: remove the limit";
                    Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text))
                }
            };
        };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut made = Limits::new();
        for (size, bytes) in limits {
            if let Err(error) = more(pools, size, bytes / size) {
                give_back(pools, &made);
                return Err(error);
            }
            made.insert(size, bytes);
        }
        Ok(made)
    }

    /// Gives a container's pages back to the memory.
    pub fn release(&self, held: &Limits) {
        if let Some(pools) = &self.pools {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            give_back(pools, held);
        }
    }
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
            invalid(PHASE, format!("{shown:?} is no size of pages"))
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

fn pool(pools: &Path, size: u64) -> PathBuf {
    pools.join(format!("hugepages-{}kB/nr_hugepages", size >> 10))
}

fn read(pool: &Path) -> Option<u64> {
    fs::read_to_string(pool).ok()?.trim().parse().ok()
}

fn more(pools: &Path, size: u64, count: u64) -> Result<(), GuestError> {
    let pool = pool(pools, size);
    let kib = size >> 10;
    let before = read(&pool).ok_or_else(|| {
        let text = format!("the guest's kernel has no pages of {kib} KiB");
        GuestError::new(ErrorCode::Unimplemented, PHASE, text)
    })?;
    let wanted = before.saturating_add(count);
    fs::write(&pool, wanted.to_string()).or_internal(PHASE, pool.display())?;
    let there = read(&pool).unwrap_or_default();
    if there >= wanted {
        return Ok(());
    }
    let _ = fs::write(&pool, before.to_string());
    let got = there.saturating_sub(before);
    let text = format!(
        "the guest's memory has room for {got} of {count} pages of {kib} KiB: raise the memory of the VM"
    );
    Err(GuestError::new(ErrorCode::ResourceExhausted, PHASE, text))
}

fn give_back(pools: &Path, held: &Limits) {
    for (size, bytes) in held {
        let pool = pool(pools, *size);
        let left = read(&pool).unwrap_or_default().saturating_sub(bytes / size);
        if let Err(error) = fs::write(&pool, left.to_string()) {
            tracing::warn!(%error, pool = %pool.display(), "huge pages are not given back");
        }
    }
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

    #[test]
    fn pages_are_there_for_all_containers_and_go_back() {
        let root = tempfile::tempdir().unwrap();
        let pool = root.path().join("hugepages-2048kB");
        fs::create_dir(&pool).unwrap();
        let file = pool.join("nr_hugepages");
        fs::write(&file, "0\n").unwrap();
        let pages = Pages {
            pools: Some(root.path().to_owned()),
            turn: Mutex::default(),
        };
        let one = pages
            .reserve(&asked(&[("2MB", 4 << 20), ("1GB", 0)]))
            .unwrap();
        let two = pages.reserve(&asked(&[("2MB", 6 << 20)])).unwrap();
        assert_eq!(read(&file), Some(5));
        pages.release(&one);
        assert_eq!(read(&file), Some(3));
        let error = pages.reserve(&asked(&[("2MB", 2 << 20), ("1GB", 1 << 30)]));
        assert_eq!(error.unwrap_err().code, ErrorCode::Unimplemented);
        assert_eq!(read(&file), Some(3), "what was made is given back");
        pages.release(&two);
        assert_eq!(read(&file), Some(0));
    }

    #[test]
    fn a_confidential_guest_has_none_and_sizes_are_ocis() {
        let pages = Pages::new(true);
        assert!(pages.reserve(&asked(&[("2MB", 0), ("1GB", 0)])).is_ok());
        let error = pages.reserve(&asked(&[("2MB", 2 << 20)])).unwrap_err();
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
