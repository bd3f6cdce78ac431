//! Debian's packages through the machine's own apt: what it offers, fetched and unpacked without
//! root. Where apt fetches from is the machine's business; no mirror is named here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::command::{self, CommandError};
use crate::digest;

/// Why a package was not had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// apt or dpkg failed.
    #[error(transparent)]
    Tool(#[from] CommandError),
    /// apt knows no such package.
    #[error("apt offers no package `{0}`; run `apt-get update`")]
    Unknown(String),
    /// apt's record of the package lacks a field.
    #[error("apt's record of `{package}` has no {field}")]
    Record {
        /// The package.
        package: String,
        /// The field.
        field: &'static str,
    },
    /// The downloaded file is not the one that apt's index describes.
    #[error("`{package}` has digest {found}, and apt's index says {expected}")]
    Digest {
        /// The package.
        package: String,
        /// From the signed index.
        expected: String,
        /// Of the file.
        found: String,
    },
    /// A file of the cache could not be read or written.
    #[error("cannot use `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A package as the signed index describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the `.deb` file, as hex.
    pub sha256: String,
}

/// Names of the offered packages that match an extended regular expression, in no order.
///
/// # Errors
/// [`AptError::Tool`] when apt does not answer.
pub fn search(pattern: &str) -> Result<Vec<String>, AptError> {
    let mut search = Command::new("apt-cache");
    search.args(["search", "--names-only", pattern]);
    let listing = command::output(&mut search)?;
    Ok(String::from_utf8_lossy(&listing)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// The candidate version of a package, and the names that it depends on.
///
/// # Errors
/// [`AptError::Unknown`] and [`AptError::Record`] when the index does not describe it.
pub fn show(name: &str) -> Result<(Package, Vec<String>), AptError> {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions", name]);
    let record = command::output(&mut show).map_err(|_| AptError::Unknown(name.to_owned()))?;
    parse_record(name, &String::from_utf8_lossy(&record))
}

fn parse_record(name: &str, record: &str) -> Result<(Package, Vec<String>), AptError> {
    let field = |key: &str| {
        record
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
            .map(str::to_owned)
    };
    let needed = |field_name: &'static str| {
        field(field_name).ok_or(AptError::Record {
            package: name.to_owned(),
            field: field_name,
        })
    };
    let package = Package {
        name: name.to_owned(),
        version: needed("Version")?,
        sha256: needed("SHA256")?.to_ascii_lowercase(),
    };
    let depends = field("Depends").unwrap_or_default();
    let depends = depends
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    Ok((package, depends))
}

/// Fetches a package into `cache`, unless it is there, and checks it against the index.
///
/// # Errors
/// [`AptError`], which names the step that failed.
pub fn fetch(package: &Package, cache: &Path) -> Result<PathBuf, AptError> {
    let file = cache.join(format!("{}.deb", package.sha256));
    if file.exists() && check(package, &file).is_ok() {
        return Ok(file);
    }
    make_dir(cache)?;
    let fresh = tempfile::tempdir_in(cache).map_err(|source| AptError::File {
        path: cache.to_owned(),
        source,
    })?;
    let mut download = Command::new("apt-get");
    download
        .args(["download", "--quiet"])
        // Root's apt would fetch as a user of its own, who cannot write to our directory.
        .args(["-o", "APT::Sandbox::User=root"])
        .arg(format!("{}={}", package.name, package.version))
        .current_dir(fresh.path());
    command::output(&mut download)?;
    let io = |source| AptError::File {
        path: fresh.path().to_owned(),
        source,
    };
    let got = fs::read_dir(fresh.path())
        .map_err(io)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .ok_or_else(|| AptError::Unknown(package.name.clone()))?;
    check(package, &got)?;
    fs::rename(&got, &file).map_err(io)?;
    Ok(file)
}

fn check(package: &Package, file: &Path) -> Result<(), AptError> {
    let (found, _) = digest::of_file(file).map_err(|source| AptError::File {
        path: file.to_owned(),
        source,
    })?;
    if found == package.sha256 {
        return Ok(());
    }
    Err(AptError::Digest {
        package: package.name.clone(),
        expected: package.sha256.clone(),
        found,
    })
}

/// Unpacks a package's files under `into`. Its scripts are not run.
///
/// # Errors
/// [`AptError::Tool`] when dpkg-deb refuses.
pub fn unpack(deb: &Path, into: &Path) -> Result<(), AptError> {
    make_dir(into)?;
    command::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))?;
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), AptError> {
    fs::create_dir_all(path).map_err(|source| AptError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_version_digest_and_dependencies() {
        let record = "Package: p\nVersion: 6.12.117-1~deb12u1\nDepends: kmod, linux-base (>= 4) | b\n\
                      Description: x\n Version: not this\nSHA256: AB12\n";
        let (package, depends) = parse_record("p", record).unwrap();
        assert_eq!(package.version, "6.12.117-1~deb12u1");
        assert_eq!(package.sha256, "ab12");
        assert_eq!(depends, ["kmod", "linux-base", "b"]);
    }

    #[test]
    fn a_record_without_a_digest_is_refused() {
        let refused = parse_record("p", "Package: p\nVersion: 1\n").unwrap_err();
        assert_eq!(refused.to_string(), "apt's record of `p` has no SHA256");
    }
}
