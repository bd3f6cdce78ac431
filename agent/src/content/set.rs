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
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, linkat, mkdirat, openat, readlinkat,
    renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::PHASE;
use super::place::too_much;
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

    /// The slot's directory as it was opened, whatever stands under its name by now.
    fn here(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.slot.as_raw_fd()))
    }

    /// Writes one more file, whose path was checked.
    pub(super) fn add(&mut self, file: &ContentFile) -> Result<(), GuestError> {
        self.bytes += file.data.len();
        self.held += held(file);
        self.files += 1;
        if self.bytes > limit::MAX_CONTENT_SET || self.files > limit::MAX_CONTENT_FILES {
            return Err(too_much("the set"));
        }
        let top = file.path.split('/').next().unwrap_or_default();
        self.tops.insert(top.to_owned());
        self.write(file).or_internal(PHASE, "write a file")
    }

    /// Takes a file over from the set that is seen, whatever its container has made of it. One that the container
    /// has removed stays so.
    pub(super) fn keep(&mut self, seen: u64, path: &str) -> Result<(), GuestError> {
        let link = || -> Result<bool, io::Error> {
            let mut from = directory(&self.slot, OsStr::new(&name_of(seen)))?;
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            for part in above.split('/').filter(|part| !part.is_empty()) {
                from = directory(&from, OsStr::new(part))?;
            }
            let (to, _) = self.parent(path)?;
            match linkat(&from, name, &to, name, AtFlags::empty()) {
                Ok(()) => Ok(true),
                Err(Errno::NOENT) => Ok(false),
                Err(error) => Err(error.into()),
            }
        };
        if link().or_internal(PHASE, "keep a file")? {
            let top = path.split('/').next().unwrap_or_default();
            self.tops.insert(top.to_owned());
        }
        Ok(())
    }

    fn write(&self, file: &ContentFile) -> io::Result<()> {
        let (parent, rest) = self.parent(&file.path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = openat(&parent, rest, flags, Mode::from_raw_mode(CLOSED_MODE))?;
        let mut made = File::from(made);
        made.write_all(&file.data)?;
        settle(&made, file)
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

    /// Lets the set be seen in the place of the one before, which goes.
    pub(super) fn publish(mut self) -> Result<(), GuestError> {
        self.show().or_internal(PHASE, "show a set")?;
        self.tidy().or_internal(PHASE, "remove the set before")
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

    /// Removes what is no part of the set that is seen.
    fn tidy(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.here())? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let stays = match name.starts_with(OWN) {
                true => name == DATA || name == self.name,
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
pub(super) fn held(file: &ContentFile) -> usize {
    const PAGE: usize = 4096;
    const INODE: usize = 1024;
    file.data.len().next_multiple_of(PAGE) + INODE * file.path.split('/').count()
}

/// Gives a written file its owner and mode.
pub(super) fn settle(file: &File, as_said: &ContentFile) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(as_said.uid), Gid::from_raw(as_said.gid));
    fchown(file, Some(uid), Some(gid))?;
    fchmod(file, Mode::from_raw_mode(as_said.mode & PERMISSIONS))?;
    Ok(())
}
