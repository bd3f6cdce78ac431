//! Where the product's own programs and the guest are, as `make build` leaves them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Cargo's target directory: the one that this very program was built into, which a clone elsewhere
/// with the same sources must not be mistaken for.
#[must_use]
pub fn target_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return PathBuf::from(dir);
    }
    let program = std::env::current_exe().unwrap_or_default();
    // Cargo marks it, and its directory for each target below it.
    let marked = program
        .ancestors()
        .filter(|dir| dir.join("CACHEDIR.TAG").is_file());
    marked
        .last()
        .map_or_else(|| top().join("target"), Path::to_owned)
}

/// Where `make build` leaves programs: they are static, which cargo treats as another target.
const BUILT: &str = "x86_64-unknown-linux-gnu/release";

/// Directory of the programs: `CLOISTER_BIN_DIR`, else where `make build` leaves them.
#[must_use]
pub fn bin_dir() -> PathBuf {
    std::env::var_os("CLOISTER_BIN_DIR")
        .map_or_else(|| target_dir().join(BUILT), |dir| top().join(dir))
}

/// Directory of `vmlinux`, `initramfs.cpio` and `manifest.json`: `CLOISTER_GUEST_DIR`, else
/// `target/guest`.
#[must_use]
pub fn guest_dir() -> PathBuf {
    std::env::var_os("CLOISTER_GUEST_DIR")
        .map_or_else(|| target_dir().join("guest"), |dir| top().join(dir))
}

/// One of the product's programs.
///
/// # Errors
/// When it has not been built; the text says how to.
pub fn bin(name: &str) -> Result<PathBuf> {
    let path = bin_dir().join(name);
    ensure!(
        path.is_file(),
        "{} is not built: run `make build`",
        path.display()
    );
    Ok(path)
}

/// One of the guest's artifacts.
///
/// # Errors
/// When it has not been built; the text says how to.
pub fn guest(name: &str) -> Result<PathBuf> {
    let path = guest_dir().join(name);
    ensure!(
        path.is_file(),
        "{} is not built: run `make build`",
        path.display()
    );
    Ok(path)
}

/// `PATH` for what we start: ours first, then the caller's, then where Debian keeps root's tools.
#[must_use]
pub fn path_variable() -> OsString {
    let callers = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(bin_dir())
        .chain(std::env::split_paths(&callers))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(all).unwrap_or(callers)
}

/// The workspace.
#[must_use]
pub fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The directory with containerd and ctr of another release of Debian, which `.ci/setup` fetches.
#[must_use]
pub fn containerd_of(suite: &str) -> Option<PathBuf> {
    let directory = top().join(".cache/containerd").join(suite);
    directory.join("ctr").is_file().then_some(directory)
}
