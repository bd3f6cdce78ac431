//! ACPI tables out of a directory as a guest shows its fw_cfg: `etc/table-loader` and the files that it
//! asks for, each a file, or a directory with a file `raw` as Linux has them in
//! `/sys/firmware/qemu_fw_cfg/by_name`. Beside them there may be SMBIOS' tables as `DMI`, which Linux has in
//! `/sys/firmware/dmi/tables`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use measure::tdx::{ACPI_FILE_BYTES, Acpi, SMBIOS_BYTES};

use super::super::artifact::read;
use super::memory::{Sizes, size};

const LOADER: &str = "etc/table-loader";
const RAW: &str = "raw";
const SMBIOS: &str = "DMI";
/// The most vCPUs of a guest.
const VCPUS: u32 = 4096;
/// Shapes that one prediction is for.
const SHAPES: usize = 1024;

/// The size of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Size {
    pub(super) mib: u64,
    /// Where several shapes have that memory.
    pub(super) vcpus: Option<u32>,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mib)?;
        self.vcpus.map_or(Ok(()), |vcpus| write!(f, "/{vcpus}"))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((mib, vcpus)) = text.split_once('/') else {
            let mib = size(text)?;
            return Ok(Self { mib, vcpus: None });
        };
        let count = vcpus
            .parse()
            .ok()
            .filter(|count| (1..=VCPUS).contains(count));
        let count = count.ok_or_else(|| format!("a number of vCPUs from 1 to {VCPUS}"))?;
        Ok(Self {
            mib: size(mib)?,
            vcpus: Some(count),
        })
    }
}

/// A directory, and the size that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Dir {
    pub(super) size: Option<Size>,
    pub(super) path: PathBuf,
    /// Its tables, where they were read and judged before.
    pub(super) tables: Option<Tables>,
}

impl FromStr for Dir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.split_once('=');
        let sized = split.and_then(|(size, path)| Some((size.parse().ok()?, path)));
        Ok(match sized {
            Some((size, path)) => Self {
                size: Some(size),
                path: path.into(),
                tables: None,
            },
            None => Self {
                size: None,
                path: text.into(),
                tables: None,
            },
        })
    }
}

/// What a guest has of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tables {
    loader: Vec<u8>,
    files: Vec<(String, Vec<u8>)>,
    smbios: Option<Vec<u8>>,
}

impl Tables {
    /// The tables of each size, in their order.
    pub(super) fn of(sizes: &Sizes, dirs: &[Dir]) -> anyhow::Result<Vec<(Size, Self)>> {
        ensure!(
            dirs.len() <= SHAPES,
            "--acpi is there {} times, and {SHAPES} is the most",
            dirs.len()
        );
        let known = |mib: u64| sizes.mib().any(|size| size == mib);
        for dir in dirs {
            match dir.size {
                Some(size) if !known(size.mib) => {
                    bail!("--acpi {size}=...: --memory has no such size")
                }
                None if sizes.len() > 1 => bail!(
                    "--acpi {}: ACPI tables differ with the size of memory: give those of each, as --acpi \
                     SIZE=DIR",
                    dir.path.display()
                ),
                _ => {}
            }
        }
        let mut all = Vec::new();
        for mib in sizes.mib() {
            for (size, dir) in shapes(mib, dirs)? {
                let tables = dir.tables.clone();
                all.push((size, tables.map_or_else(|| Self::read(&dir.path), Ok)?));
            }
        }
        Ok(all)
    }

    /// The tables of one directory.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let loader = file(dir, LOADER)?;
        let asked = Acpi::asked(&loader).with_context(|| dir.display().to_string())?;
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for name in asked {
            if files.iter().all(|(known, _)| *known != name) {
                let content = file(dir, &name)?;
                files.push((name, content));
            }
        }
        let smbios = dir.join(SMBIOS);
        let smbios = match smbios.exists() {
            true => Some(read(&smbios, SMBIOS_BYTES)?),
            false => None,
        };
        Ok(Self {
            loader,
            files,
            smbios,
        })
    }

    /// The files by name, as [`Acpi`] has them.
    pub(crate) fn files(&self) -> Vec<(&str, &[u8])> {
        let files = self.files.iter();
        files
            .map(|(name, content)| (name.as_str(), content.as_slice()))
            .collect()
    }

    pub(crate) fn loader(&self) -> &[u8] {
        &self.loader
    }

    /// SMBIOS' tables, where they are there.
    pub(crate) fn smbios(&self) -> Option<&[u8]> {
        self.smbios.as_deref()
    }

    /// All files with their names in a directory.
    pub(super) fn named(&self) -> Vec<(&str, &[u8])> {
        let mut files = self.files();
        files.insert(0, (LOADER, self.loader()));
        files.extend(self.smbios().map(|tables| (SMBIOS, tables)));
        files
    }
}

/// The directories for one size of memory: one, or one for each number of vCPUs.
fn shapes(mib: u64, dirs: &[Dir]) -> anyhow::Result<Vec<(Size, &Dir)>> {
    let mut found: Vec<_> = dirs
        .iter()
        .map(|dir| (dir.size.unwrap_or(Size { mib, vcpus: None }), dir))
        .filter(|(size, _)| size.mib == mib)
        .collect();
    found.sort_by_key(|(size, _)| *size);
    ensure!(
        !found.is_empty(),
        "--acpi has no tables for {mib} MiB: add --acpi {mib}=DIR"
    );
    let mut seen = BTreeSet::new();
    for (size, _) in &found {
        ensure!(
            (found.len() == 1 || size.vcpus.is_some()) && seen.insert(*size),
            "--acpi is there twice for {size}: tell shapes of one size apart by their vCPUs, as --acpi \
             {mib}/VCPUS=DIR"
        );
    }
    Ok(found)
}

/// Whether a name leads to a place in the directory that it is looked for in.
pub(super) fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    parts.all(|part| matches!(part, Component::Normal(_)))
}

/// A file of fw_cfg, whose name a guest's host chose.
fn file(dir: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(
        is_inside(name),
        "{LOADER} asks for {name}, which is no name in a directory"
    );
    let mut path = dir.join(name);
    if path.is_dir() {
        path.push(RAW);
    }
    read(&path, ACPI_FILE_BYTES)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    fn dirs(texts: &[String]) -> Vec<Dir> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// A list that allocates this file.
    fn loader(name: &str) -> Vec<u8> {
        let mut loader = 1u32.to_le_bytes().to_vec();
        loader.extend(name.as_bytes());
        loader.resize(128, 0);
        loader
    }

    #[test]
    fn files_are_read_as_they_are_or_as_linux_shows_them_and_no_name_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("etc/acpi/tables")).unwrap();
        fs::write(path("etc/table-loader"), loader("etc/acpi/tables")).unwrap();
        fs::write(path("etc/acpi/tables/raw"), b"DSDT").unwrap();
        let read = Tables::read(dir.path()).unwrap();
        assert_eq!(read.files(), [("etc/acpi/tables", &b"DSDT"[..])]);
        assert_eq!((read.smbios(), read.named().len()), (None, 2));
        fs::write(path("DMI"), b"list").unwrap();
        let read = Tables::read(dir.path()).unwrap();
        assert_eq!(read.named()[2], ("DMI", &b"list"[..]));
        for name in ["../secret", "/etc/passwd", "etc/../../secret"] {
            fs::write(path("etc/table-loader"), loader(name)).unwrap();
            let said = Tables::read(dir.path()).unwrap_err().to_string();
            assert!(said.contains("no name in a directory"), "{name}: {said}");
        }
    }

    #[test]
    fn each_size_of_memory_has_tables_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/table-loader"), loader("etc/t")).unwrap();
        fs::write(dir.path().join("etc/t"), b"t").unwrap();
        let plain = dir.path().to_str().unwrap().to_owned();
        let sized = |mib: u64| format!("{mib}={plain}");
        let of = |sizes: &str, texts: &[String]| {
            let read = Tables::of(&sizes.parse().unwrap(), &dirs(texts));
            read.map(|read| read.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!(of("1G", std::slice::from_ref(&plain)), Ok(1));
        assert_eq!(of("1G,2G", &[sized(1024), sized(2048)]), Ok(2));
        let shaped = |shape: &str| format!("{shape}={plain}");
        let shapes = [shaped("1G/2"), shaped("1G/4"), sized(2048)];
        assert_eq!(of("1G,2G", &shapes), Ok(3));
        for (sizes, texts, part) in [
            ("1G,2G", &[plain.clone()][..], "SIZE=DIR"),
            ("1G,2G", &[sized(1024)], "add --acpi 2048=DIR"),
            ("1G", &[sized(2048)], "no such size"),
            ("1G", &[sized(1024), plain.clone()], "twice for 1024:"),
            ("1G", &[shaped("1G/2"), plain.clone()], "twice for 1024:"),
            (
                "1G",
                &[shaped("1G/2"), shaped("1024/2")],
                "twice for 1024/2:",
            ),
            ("1G", &vec![plain.clone(); SHAPES + 1], "1024 is the most"),
        ] {
            let said = of(sizes, texts).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
    }
}
