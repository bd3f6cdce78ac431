//! ACPI tables out of a directory as a guest shows its fw_cfg: `etc/table-loader` and the files that it
//! asks for, each a file, or a directory with a file `raw` as Linux has them in
//! `/sys/firmware/qemu_fw_cfg/by_name`.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use measure::tdx::{ACPI_FILE_BYTES, Acpi};

use super::super::artifact::read;
use super::memory::{Sizes, size};

const LOADER: &str = "etc/table-loader";
const RAW: &str = "raw";

/// A directory, and the size of memory that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Dir {
    mib: Option<u64>,
    path: PathBuf,
}

impl FromStr for Dir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.split_once('=');
        Ok(
            match split.and_then(|(mib, path)| Some((size(mib).ok()?, path))) {
                Some((mib, path)) => Self {
                    mib: Some(mib),
                    path: path.into(),
                },
                None => Self {
                    mib: None,
                    path: text.into(),
                },
            },
        )
    }
}

/// What a guest's fw_cfg has of tables.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tables {
    loader: Vec<u8>,
    files: Vec<(String, Vec<u8>)>,
}

impl Tables {
    /// The tables of each size, in their order.
    pub(super) fn of(sizes: &Sizes, dirs: &[Dir]) -> anyhow::Result<Vec<(u64, Self)>> {
        let known = |mib: u64| sizes.mib().any(|size| size == mib);
        for dir in dirs {
            match dir.mib {
                Some(mib) if !known(mib) => bail!("--acpi {mib}=...: --memory has no such size"),
                None if sizes.len() > 1 => bail!(
                    "--acpi {}: ACPI tables differ with the size of memory: give those of each, as --acpi \
                     SIZE=DIR",
                    dir.path.display()
                ),
                _ => {}
            }
        }
        let tables = |mib: u64| {
            let is = |dir: &&Dir| dir.mib.is_none_or(|size| size == mib);
            let mut found = dirs.iter().filter(is);
            let dir = found.next().with_context(|| {
                format!("--acpi has no tables for {mib} MiB: add --acpi {mib}=DIR")
            })?;
            ensure!(
                found.next().is_none(),
                "--acpi is there twice for {mib} MiB"
            );
            Ok((mib, Self::read(&dir.path)?))
        };
        sizes.mib().map(tables).collect()
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
        Ok(Self { loader, files })
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
}

/// A file of fw_cfg, whose name a guest's host chose.
fn file(dir: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let name = Path::new(name);
    let inside = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    ensure!(
        inside,
        "{LOADER} asks for {}, which is no name in a directory",
        name.display()
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
        for (sizes, texts, part) in [
            ("1G,2G", &[plain.clone()][..], "SIZE=DIR"),
            ("1G,2G", &[sized(1024)], "add --acpi 2048=DIR"),
            ("1G", &[sized(2048)], "no such size"),
            ("1G", &[sized(1024), plain.clone()], "twice"),
        ] {
            let said = of(sizes, texts).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
    }
}
