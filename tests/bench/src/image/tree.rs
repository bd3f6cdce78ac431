//! What the image is made of: files of this machine's `/usr`, as six layers.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where each layer begins to take files; what is missing there is taken further down the list, and then from the top.
const SOURCES: [&str; 6] = [
    "lib/x86_64-linux-gnu",
    "bin",
    "share",
    "lib",
    "share/locale",
    "include",
];
const USR: &str = "/usr";
/// Not a distribution's.
const NOT: [&str; 2] = ["/usr/local", "/usr/src"];
/// A file larger than this is passed over: one of them would be most of a layer.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// What an image should at least have, as a share of what was asked for.
const ENOUGH: f64 = 0.8;

/// One layer: an uncompressed archive.
#[derive(Debug)]
pub struct Layer {
    /// The archive.
    pub tar: Vec<u8>,
    /// Its regular files.
    pub files: usize,
}

/// Makes the layers, of `bytes` of files altogether.
///
/// # Errors
/// When a file cannot be read, or `/usr` has too few of them.
pub fn layers(bytes: u64) -> Result<Vec<Layer>> {
    let each = bytes / SOURCES.len() as u64;
    let mut taken = HashSet::new();
    let mut layers = Vec::new();
    for index in 0..SOURCES.len() {
        let mut pick = Pick {
            left: each,
            taken: &mut taken,
            paths: Vec::new(),
        };
        for source in SOURCES[index..].iter().chain(&SOURCES) {
            pick.walk(&Path::new(USR).join(source))?;
        }
        let paths = pick.paths;
        layers.push(archive(&paths)?);
    }
    let found: usize = layers.iter().map(|layer| layer.tar.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let share = found as f64 / bytes as f64;
    ensure!(
        share > ENOUGH,
        "{USR} of this machine has too few files for an image of {bytes} bytes"
    );
    Ok(layers)
}

struct Pick<'a> {
    left: u64,
    taken: &'a mut HashSet<PathBuf>,
    paths: Vec<(PathBuf, Metadata)>,
}

impl Pick<'_> {
    fn walk(&mut self, directory: &Path) -> Result<()> {
        if self.left == 0 || NOT.iter().any(|not| directory.starts_with(not)) {
            return Ok(());
        }
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Ok(());
        };
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths {
            let meta = path.symlink_metadata()?;
            if meta.is_dir() {
                self.walk(&path)?;
            } else if (meta.is_file() && meta.len() <= FILE_BYTES_MAX || meta.is_symlink())
                && self.left > 0
                && self.taken.insert(path.clone())
            {
                self.left = self.left.saturating_sub(meta.len());
                self.paths.push((path, meta));
            }
        }
        Ok(())
    }
}

/// Every directory stands before what is in it, as builders of images write them.
fn archive(paths: &[(PathBuf, Metadata)]) -> Result<Layer> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut known = HashSet::new();
    let mut files = 0;
    for (path, meta) in paths {
        let parents: Vec<&Path> = path.ancestors().skip(1).collect();
        for parent in parents.into_iter().rev().skip(1) {
            if known.insert(parent.to_owned()) {
                let meta = parent.metadata()?;
                add(&mut tar, parent, &meta)?;
            }
        }
        files += usize::from(meta.is_file());
        add(&mut tar, path, meta)?;
    }
    Ok(Layer {
        tar: tar.into_inner()?,
        files,
    })
}

fn add<W: Write>(tar: &mut tar::Builder<W>, path: &Path, meta: &Metadata) -> Result<()> {
    let name = path.strip_prefix("/")?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(meta.mode() & 0o7777);
    header.set_uid(meta.uid().into());
    header.set_gid(meta.gid().into());
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_size(0);
    if meta.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        let name = format!("{}/", name.display());
        tar.append_data(&mut header, name, std::io::empty())?;
    } else if meta.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, name, std::fs::read_link(path)?)?;
    } else {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(())
}
