//! One set of files of a directory slot: written aside, then seen as one.
//!
//! Programs watch a ConfigMap's directory for the kubelet's way of changing it: `..data` is a link that is
//! renamed over the one before. So it is done here. A container can write to its slot where its mount lets
//! it, so that every step is relative to an open directory and follows no link.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_api::GuestError;
use agent_api::content::ContentFile;
use agent_api::limit;
use attestation_agent::Secret;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, linkat, mkdirat, openat, readlinkat,
    renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tokio::sync::OwnedSemaphorePermit;

use super::PHASE;
use super::place::too_much;
use super::written::Written;
use crate::fault::OrFail;

/// Of every directory of a set.
pub(super) const DIRECTORY_MODE: u32 = 0o755;
/// The bits of a mode that a host sets.
pub(super) const PERMISSIONS: u32 = 0o777;
/// Of a file that is being written.
pub(super) const CLOSED_MODE: u32 = 0o600;
/// The link to the set that is seen, and the same before it is.
const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";
/// What the directory itself uses begins so.
const OWN: &str = "..";

/// A set under construction. Dropping it takes it back.
#[derive(Debug)]
pub(super) struct Stage {
    slot: OwnedFd,
    directory: OwnedFd,
    number: u64,
    name: String,
    /// What is seen of the set in the slot.
    tops: BTreeSet<String>,
    bytes: usize,
    held: usize,
    files: usize,
    is_seen: bool,
}

impl Stage {
    pub(super) fn begin(slot: &Path, number: u64) -> Result<Self, GuestError> {
        let name = name_of(number);
        let begun = || -> Result<(OwnedFd, OwnedFd), Errno> {
            let open = directory(&CWD, slot.as_os_str())?;
            mkdirat(&open, &name, Mode::from_raw_mode(DIRECTORY_MODE))?;
            let inner = directory(&open, OsStr::new(&name))?;
            fchmod(&inner, Mode::from_raw_mode(DIRECTORY_MODE))?;
            Ok((open, inner))
        };
        let (open, inner) = begun().or_internal(PHASE, "begin a set")?;
        Ok(Self {
            slot: open,
            directory: inner,
            number,
            name,
            tops: BTreeSet::new(),
            bytes: 0,
            held: 0,
            files: 0,
            is_seen: false,
        })
    }

    /// What it takes of the guest's memory, in bytes.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Which set of its slot it is.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether it has taken the place of the one before.
    pub(super) fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// The slot's directory as it was opened, whatever stands under its name by now.
    fn here(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.slot.as_raw_fd()))
    }

    /// Counts one more file.
    pub(super) fn count(&mut self, path: &str, bytes: usize) -> Result<(), GuestError> {
        self.bytes += bytes;
        self.held += held(path, bytes);
        self.files += 1;
        match self.bytes > limit::MAX_CONTENT_SET || self.files > limit::MAX_CONTENT_FILES {
            true => Err(too_much("the set")),
            false => Ok(()),
        }
    }

    /// Counts and writes one more file, whose path was checked.
    pub(super) fn add(&mut self, file: &ContentFile) -> Result<(), GuestError> {
        self.count(&file.path, file.data.len())?;
        let write = |mut made: File| {
            made.write_all(&file.data)?;
            settle(&made, file)
        };
        let made = self.make(&file.path);
        made.and_then(write).or_internal(PHASE, "write a file")
    }

    /// Writes a secret that is lent, and was counted.
    pub(super) fn lend(
        &mut self,
        file: &ContentFile,
        secret: &Secret,
        place: OwnedSemaphorePermit,
    ) -> Result<Written, GuestError> {
        let write = |made: File| {
            let written = Written::new(made, secret, place)?;
            settle(written.file(), file)?;
            Ok(written)
        };
        let made = self.make(&file.path);
        made.and_then(write).or_internal(PHASE, "write a file")
    }

    /// Takes a file over from the set that is seen, whatever its container has made of it. One that the container
    /// has removed, with its directory or without, stays so.
    pub(super) fn keep(&mut self, seen: u64, path: &str) -> Result<(), GuestError> {
        let from = || -> Result<OwnedFd, Errno> {
            let set = directory(&self.slot, OsStr::new(&name_of(seen)))?;
            above(set, path)
        };
        let link = || -> io::Result<bool> {
            let from = match from() {
                Err(error) if is_absent(error) => return Ok(false),
                from => from?,
            };
            let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
            let (to, _) = self.parent(path)?;
            match linkat(&from, name, &to, name, AtFlags::empty()) {
                Ok(()) => Ok(true),
                // A directory in its place.
                Err(Errno::PERM) => Ok(false),
                Err(error) if is_absent(error) => Ok(false),
                Err(error) => Err(error.into()),
            }
        };
        if link().or_internal(PHASE, "keep a file")? {
            self.tops.insert(top(path).to_owned());
        }
        Ok(())
    }

    /// Makes a file that only the guest reads yet.
    fn make(&mut self, path: &str) -> io::Result<File> {
        self.tops.insert(top(path).to_owned());
        let (parent, rest) = self.parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = openat(&parent, rest, flags, Mode::from_raw_mode(CLOSED_MODE))?;
        Ok(File::from(made))
    }

    /// The directory of a file in this set, made where it is missing, and the file's name.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let mut parent = self.directory.try_clone()?;
        let mut rest = path;
        while let Some((part, below)) = rest.split_once('/') {
            match mkdirat(&parent, part, Mode::from_raw_mode(DIRECTORY_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            parent = directory(&parent, OsStr::new(part))?;
            fchmod(&parent, Mode::from_raw_mode(DIRECTORY_MODE))?;
            rest = below;
        }
        Ok((parent, rest))
    }

    /// Lets the set be seen in the place of the one before, which goes. `next` is under construction and stays.
    pub(super) fn publish(&mut self, next: Option<&Self>) -> Result<(), GuestError> {
        self.show().or_internal(PHASE, "show a set")?;
        let next = next.map(|next| next.name.as_str());
        self.tidy(next).or_internal(PHASE, "remove the set before")
    }

    fn show(&mut self) -> Result<(), Errno> {
        unlink(&self.slot, NEXT)?;
        symlinkat(&self.name, &self.slot, NEXT)?;
        renameat(&self.slot, NEXT, &self.slot, DATA)?;
        // What fails from here on leaves a set in which a new file has no name yet.
        self.is_seen = true;
        for top in &self.tops {
            let target = format!("{DATA}/{top}");
            let there = readlinkat(&self.slot, top, Vec::new());
            if there.is_ok_and(|found| found.as_bytes() == target.as_bytes()) {
                continue;
            }
            unlink(&self.slot, top)?;
            symlinkat(&target, &self.slot, top)?;
        }
        Ok(())
    }

    /// Removes what is no part of the set that is seen, nor the next.
    fn tidy(&self, next: Option<&str>) -> io::Result<()> {
        for entry in fs::read_dir(self.here())? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let stays = match name.starts_with(OWN) {
                true => name == DATA || name == self.name || next == Some(&*name),
                false => self.tops.contains(name.as_ref()),
            };
            if stays {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.is_seen {
            // Nothing else is kept in the slot's own directory, and nothing links to it.
            let _ = fs::remove_dir_all(self.here().join(&self.name));
        }
    }
}

/// Takes the name of a file out of a set, through no link. What stands elsewhere by now is not looked for.
pub(super) fn strike(slot: &Path, set: u64, path: &str) -> Result<(), GuestError> {
    let strike = || -> Result<(), Errno> {
        let slot = directory(&CWD, slot.as_os_str())?;
        let set = directory(&slot, OsStr::new(&name_of(set)))?;
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        unlinkat(above(set, path)?, name, AtFlags::empty())
    };
    match strike() {
        Err(error) if !is_absent(error) => Err(error).or_internal(PHASE, "take a file out"),
        _ => Ok(()),
    }
}

/// The directory in a set that a file is in.
fn above(set: OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let above = path.rsplit_once('/').map(|(above, _)| above);
    let mut parts = above.into_iter().flat_map(|above| above.split('/'));
    parts.try_fold(set, |at, part| directory(&at, OsStr::new(part)))
}

/// What is seen of a file in the slot's own directory.
fn top(path: &str) -> &str {
    path.split_once('/').map_or(path, |(top, _)| top)
}

/// Whether a file is not there: neither itself nor something else of its name.
fn is_absent(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR
    )
}

fn name_of(set: u64) -> String {
    format!("..set-{set}")
}

fn directory(at: &impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn unlink(at: &OwnedFd, name: &str) -> Result<(), Errno> {
    match unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a file takes of the guest's memory with its directories, in bytes: whole pages, and an inode and a
/// name for each.
pub(super) fn held(path: &str, bytes: usize) -> usize {
    const PAGE: usize = 4096;
    const INODE: usize = 1024;
    bytes.next_multiple_of(PAGE) + INODE * path.split('/').count()
}

/// Gives a written file its owner and mode.
pub(super) fn settle(file: &File, as_said: &ContentFile) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(as_said.uid), Gid::from_raw(as_said.gid));
    fchown(file, Some(uid), Some(gid))?;
    fchmod(file, Mode::from_raw_mode(as_said.mode & PERMISSIONS))?;
    Ok(())
}
