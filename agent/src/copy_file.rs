//! `CopyFile`: the host puts a file, a directory or a symbolic link below the shared directory,
//! where there is no shared file system.
//!
//! Every step is relative to an open directory and follows no link, so that a link which was
//! copied before leads a later copy nowhere.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use agent_api::{GuestError, agent};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, mkdirat,
    openat, openat2, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::fault::{OrFail, invalid};
use crate::gate::Allowed;
use crate::path;

const PHASE: &str = "copy-file";
/// A whole file; what it is for are configuration and secrets.
const MAX_FILE: i64 = 1 << 30;
/// A file under construction lies beside its place under this ending.
const PARTIAL: &str = ".partial";

/// Writes one chunk. The file gets its name when its last chunk has come.
///
/// # Errors
///
/// The path leads elsewhere, the numbers do not fit, or the disk is full.
pub fn copy(request: &Allowed<agent::CopyFileRequest>) -> Result<(), GuestError> {
    copy_below(Path::new(path::SHARED), request)
}

fn copy_below(base: &Path, request: &agent::CopyFileRequest) -> Result<(), GuestError> {
    let place = Path::new(&request.path)
        .strip_prefix(base)
        .map_err(|_| invalid(PHASE, format!("path is not below {}", base.display())))?;
    let name = place
        .file_name()
        .ok_or_else(|| invalid(PHASE, "path names no file"))?;
    if place
        .components()
        .any(|part| !matches!(part, Component::Normal(_)))
    {
        return Err(invalid(PHASE, "path has .. in it"));
    }
    let directory_mode = Mode::from_raw_mode(request.dir_mode & 0o7777);
    let parent = open_parent(
        base,
        place.parent().unwrap_or(Path::new("")),
        directory_mode,
    )?;
    let mode = Mode::from_raw_mode(request.file_mode & 0o7777);
    match FileType::from_raw_mode(request.file_mode) {
        FileType::Directory => {
            make_directory(&parent, name, mode)?;
            chmodat(&parent, name, mode, AtFlags::empty()).or_internal(PHASE, "chmod")?;
            own(&parent, name, request)
        }
        FileType::Symlink => {
            remove(&parent, name)?;
            let target = OsStr::from_bytes(&request.data);
            symlinkat(target, &parent, name).or_internal(PHASE, "make the link")?;
            own(&parent, name, request)
        }
        FileType::RegularFile | FileType::Unknown => write_chunk(&parent, name, mode, request),
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            Err(invalid(
                PHASE,
                "file_mode is not of a file, a directory or a link",
            ))
        }
    }
}

fn write_chunk(
    parent: &OwnedFd,
    name: &OsStr,
    mode: Mode,
    request: &agent::CopyFileRequest,
) -> Result<(), GuestError> {
    let length = i64::try_from(request.data.len()).unwrap_or(i64::MAX);
    let end = request.offset.checked_add(length);
    let in_file = |end: &i64| *end <= request.file_size;
    let end = end
        .filter(in_file)
        .filter(|_| request.offset >= 0 && request.file_size <= MAX_FILE);
    let end = end.ok_or_else(|| invalid(PHASE, "offset, data and file_size do not fit"))?;
    let mut partial = name.to_owned();
    partial.push(PARTIAL);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fresh = if request.offset == 0 {
        OFlags::TRUNC
    } else {
        OFlags::empty()
    };
    let file = openat(parent, &partial, flags | fresh, Mode::RUSR | Mode::WUSR)
        .or_internal(PHASE, "open the file")?;
    write_all_at(&file, &request.data, request.offset.unsigned_abs())
        .or_internal(PHASE, "write the file")?;
    if end < request.file_size {
        return Ok(());
    }
    own(parent, &partial, request)?;
    chmodat(parent, &partial, mode, AtFlags::empty()).or_internal(PHASE, "chmod")?;
    renameat(parent, &partial, parent, name).or_internal(PHASE, "name the file")
}

fn write_all_at(file: &OwnedFd, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        let written = rustix::io::pwrite(file, data, offset)?;
        offset = offset.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        data = data.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Opens the directory that holds the file, making what is missing of the way to it.
fn open_parent(base: &Path, way: &Path, mode: Mode) -> Result<OwnedFd, GuestError> {
    std::fs::create_dir_all(base).or_internal(PHASE, base.display())?;
    let mut directory = openat(
        CWD,
        base,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .or_internal(PHASE, base.display())?;
    let mut walked = PathBuf::new();
    for part in way {
        make_directory(&directory, part, mode)?;
        walked.push(part);
        directory = openat2(
            &directory,
            part,
            OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .or_internal(PHASE, walked.display())?;
    }
    Ok(directory)
}

fn make_directory(parent: &OwnedFd, name: &OsStr, mode: Mode) -> Result<(), GuestError> {
    match mkdirat(
        parent,
        name,
        if mode.is_empty() { Mode::RWXU } else { mode },
    ) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).or_internal(PHASE, "make a directory"),
    }
}

fn remove(parent: &OwnedFd, name: &OsStr) -> Result<(), GuestError> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).or_internal(PHASE, "replace the file"),
    }
}

fn own(parent: &OwnedFd, name: &OsStr, request: &agent::CopyFileRequest) -> Result<(), GuestError> {
    let id = |n: i32| u32::try_from(n).map_err(|_| invalid(PHASE, "uid or gid is negative"));
    let (uid, gid) = (
        Uid::from_raw(id(request.uid)?),
        Gid::from_raw(id(request.gid)?),
    );
    chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .or_internal(PHASE, "chown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn request(base: &Path, path: &str, data: &[u8]) -> agent::CopyFileRequest {
        use std::os::unix::fs::MetadataExt;
        let owner = fs::metadata(base).unwrap();
        agent::CopyFileRequest {
            path: base.join(path).to_str().unwrap().to_owned(),
            file_size: data.len().try_into().unwrap(),
            file_mode: 0o100_640,
            dir_mode: 0o040_750,
            uid: owner.uid().try_into().unwrap(),
            gid: owner.gid().try_into().unwrap(),
            data: data.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn a_file_appears_when_its_last_chunk_has_come() {
        let base = tempfile::tempdir().unwrap();
        let mut chunk = request(base.path(), "a/b/c", b"first ");
        chunk.file_size = 10;
        copy_below(base.path(), &chunk).unwrap();
        assert!(!base.path().join("a/b/c").exists());
        chunk.offset = 6;
        chunk.data = b"last".to_vec();
        copy_below(base.path(), &chunk).unwrap();
        assert_eq!(fs::read(base.path().join("a/b/c")).unwrap(), b"first last");
        copy_below(base.path(), &request(base.path(), "a/b/c", b"new")).unwrap();
        assert_eq!(fs::read(base.path().join("a/b/c")).unwrap(), b"new");
    }

    #[test]
    fn links_are_made_and_never_followed() {
        let base = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let mut link = request(base.path(), "link", outside.path().as_os_str().as_bytes());
        link.file_mode = 0o120_777;
        copy_below(base.path(), &link).unwrap();
        assert_eq!(
            fs::read_link(base.path().join("link")).unwrap(),
            outside.path()
        );
        assert!(copy_below(base.path(), &request(base.path(), "link/x", b"1")).is_err());
        symlink(outside.path().join("y"), base.path().join("z.partial")).unwrap();
        assert!(copy_below(base.path(), &request(base.path(), "z", b"1")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn paths_and_numbers_that_do_not_fit_are_refused() {
        let base = tempfile::tempdir().unwrap();
        for path in ["../x", "a/../../x", "", "/etc/x"] {
            assert!(
                copy_below(base.path(), &request(base.path(), path, b"1")).is_err(),
                "{path}"
            );
        }
        let good = request(base.path(), "x", b"1");
        let bad = [
            agent::CopyFileRequest {
                offset: -1,
                ..good.clone()
            },
            agent::CopyFileRequest {
                file_size: 0,
                ..good.clone()
            },
            agent::CopyFileRequest {
                offset: i64::MAX,
                ..good.clone()
            },
            agent::CopyFileRequest {
                uid: -1,
                ..good.clone()
            },
            agent::CopyFileRequest {
                file_mode: 0o060_600,
                ..good
            },
        ];
        for request in bad {
            assert!(copy_below(base.path(), &request).is_err());
        }
    }
}
