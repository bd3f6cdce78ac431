//! The first flavour: Debian's cloud kernel. It is taken as Debian built it, unpacked without
//! being installed, in the newest version that the machine's apt offers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::apt::{self, AptError, Package};
use crate::bzimage::{self, BzImageError};
use crate::kernel::{self, Flavour, Kernel, KernelError, Record};

/// The oldest series that does: it is the first in Debian with virtio-fs built in and with guest
/// drivers for SEV-SNP and TDX.
pub const OLDEST: (u32, u32) = (6, 12);

/// Why Debian's kernel was not had.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// apt failed.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// Everything that apt offers is too old.
    #[error(
        "apt offers no linux-image-*-cloud-amd64 of 6.12 or newer (the newest is {newest}); run \
         `apt-get update`, or enable the security or backports suite of this Debian release"
    )]
    TooOld {
        /// The newest release that it offers, or `none`.
        newest: String,
    },
    /// The package does not have the kernel where kernels are.
    #[error("`{package}` has no vmlinuz")]
    NoImage {
        /// The package.
        package: String,
    },
    /// The kernel does not come out of its image.
    #[error("`{path}`")]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BzImageError,
    },
    /// A file of the cache could not be read or written.
    #[error("cannot use `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory did not become a kernel directory.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Has the newest of Debian's kernels in a directory below `cache`, fetched at most once.
///
/// # Errors
/// [`DebianError`], which names the step that failed.
pub fn kernel(cache: &Path) -> Result<Kernel, DebianError> {
    let names = apt::search("^linux-image-.*cloud-amd64(-unsigned)?$")?;
    let chosen = newest(&names)?;
    let (image, depends) = apt::show(&chosen.package)?;
    let place = cache.join(format!("debian-{}", image.version.replace([':', '~'], "_")));
    if let Ok(kernel) = Kernel::open(&place)
        && kernel.record().packages.first() == Some(&image)
    {
        return Ok(kernel);
    }
    let mut packages = vec![image];
    // From 7.0 on, Debian has the kernel and its modules in packages of their own.
    for name in depends {
        let part = ["linux-binary-", "linux-modules-"]
            .iter()
            .any(|start| name.starts_with(start) && name.contains(&chosen.release));
        if part && packages.iter().all(|p| p.name != name) {
            packages.push(apt::show(&name)?.0);
        }
    }
    assemble(cache, &place, &chosen.release, packages)
}

/// Fetches and unpacks the packages and arranges their files as a kernel directory.
fn assemble(
    cache: &Path,
    place: &Path,
    release: &str,
    packages: Vec<Package>,
) -> Result<Kernel, DebianError> {
    let file = |path: &Path, source| DebianError::File {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(cache).map_err(|source| file(cache, source))?;
    let fresh = tempfile::tempdir_in(cache).map_err(|source| file(cache, source))?;
    let root = fresh.path().join("unpacked");
    for package in &packages {
        apt::unpack(&apt::fetch(package, &cache.join("packages"))?, &root)?;
    }
    let images = [
        root.join(format!("boot/vmlinuz-{release}")),
        root.join(format!("usr/lib/modules/{release}/vmlinuz")),
    ];
    let image = images.iter().find(|path| path.exists());
    let image = image.ok_or_else(|| DebianError::NoImage {
        package: packages[0].name.clone(),
    })?;
    let bytes = fs::read(image).map_err(|source| file(image, source))?;
    let vmlinux = bzimage::vmlinux(&bytes).map_err(|source| DebianError::Image {
        path: image.clone(),
        source,
    })?;
    for (name, content) in [("vmlinux", vmlinux), ("vmlinuz", bytes)] {
        let to = fresh.path().join(name);
        fs::write(&to, content).map_err(|source| file(&to, source))?;
    }

    let take = |from: &[String], name: &str| -> Result<(), DebianError> {
        let to = fresh.path().join(name);
        let from = from
            .iter()
            .map(|path| root.join(path))
            .find(|path| path.exists());
        let from = from.ok_or_else(|| file(&to, io::ErrorKind::NotFound.into()))?;
        fs::rename(&from, &to).map_err(|source| file(&from, source))
    };
    let either = |end: &str| ["lib", "usr/lib"].map(|lib| format!("{lib}/modules/{release}/{end}"));
    take(&either("kernel"), "modules")?;
    take(&either("modules.builtin"), "modules.builtin")?;
    let [_, second] = either("config");
    take(&[format!("boot/config-{release}"), second], "config")?;
    fs::remove_dir_all(&root).map_err(|source| file(&root, source))?;

    let record = Record {
        flavour: Flavour::Debian,
        release: release.to_owned(),
        packages,
        fragment_sha256: None,
        compiler: None,
    };
    Ok(kernel::seal(fresh, &record, place)?)
}

/// A package and the kernel release that is in it.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    release: String,
    package: String,
}

/// The newest of the offered packages; of two with the same release, the signed one.
fn newest(names: &[String]) -> Result<Offer, DebianError> {
    let best = names
        .iter()
        .filter_map(|name| {
            let release = name.strip_prefix("linux-image-")?;
            let signed = release.strip_suffix("-unsigned");
            let release = signed.unwrap_or(release);
            Some((numbers(release)?, signed.is_none(), release, name))
        })
        .max();
    match best {
        Some((numbers, _, release, name)) if (numbers.0, numbers.1) >= OLDEST => Ok(Offer {
            release: release.to_owned(),
            package: name.clone(),
        }),
        best => Err(DebianError::TooOld {
            newest: best.map_or("none", |(_, _, release, _)| release).to_owned(),
        }),
    }
}

/// The numbers of a release such as `6.12.117+deb12-cloud-amd64` or `6.1.0-56-cloud-amd64`:
/// series, patch level, and Debian's ABI number (zero when there is none). The names of
/// meta-packages (`cloud-amd64`, `6.12-cloud-amd64`) have no patch level and give `None`.
fn numbers(release: &str) -> Option<(u32, u32, u32, u32)> {
    let version = release.split(['+', '-']).next()?;
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let (major, minor, patch) = (parts.next()??, parts.next()??, parts.next()??);
    let abi = release
        .strip_prefix(version)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.split('-').next()?.parse().ok());
    Some((major, minor, patch, abi.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter()
            .map(|name| format!("linux-image-{name}"))
            .collect()
    }

    #[test]
    fn the_newest_release_is_chosen_by_number_and_signed_before_unsigned() {
        let offered = names(&[
            "cloud-amd64",
            "6.12-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.12.117+deb12-cloud-amd64-unsigned",
            "6.12.117+deb12-cloud-amd64",
            "6.12.95+deb12-cloud-amd64",
        ]);
        let chosen = newest(&offered).unwrap();
        assert_eq!(chosen.package, "linux-image-6.12.117+deb12-cloud-amd64");
        assert_eq!(chosen.release, "6.12.117+deb12-cloud-amd64");
    }

    #[test]
    fn an_unsigned_package_does_when_there_is_no_other() {
        let chosen = newest(&names(&["6.12.9+deb12-cloud-amd64-unsigned"])).unwrap();
        assert_eq!(chosen.release, "6.12.9+deb12-cloud-amd64");
    }

    #[test]
    fn only_old_kernels_is_an_error_that_says_what_to_enable() {
        let offered = names(&["6.1.0-50-cloud-amd64", "6.1.0-56-cloud-amd64"]);
        let refused = newest(&offered).unwrap_err().to_string();
        assert!(
            refused.contains("the newest is 6.1.0-56-cloud-amd64"),
            "{refused}"
        );
        assert!(refused.contains("backports"), "{refused}");
        assert!(newest(&[]).is_err());
    }
}
