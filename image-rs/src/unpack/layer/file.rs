//! A file of a layer: made, filled with what the archive has of it, and as long as it is to be.

use std::io::BufRead;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, ftruncate, openat};
use rustix::io::Errno;

use super::{Layer, Spot};
use crate::unpack::entry::Entry;
use crate::unpack::meta::Fresh;
use crate::unpack::sparse::Segment;
use crate::unpack::{Archive, UnpackError};

impl Layer<'_> {
    pub(super) fn file<R: BufRead>(
        &mut self,
        spot: &Spot<'_>,
        entry: &Entry,
        size: u64,
        map: Option<&[Segment]>,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let (limits, path) = (&self.options.limits, spot.path.as_bytes());
        if size > limits.file_bytes {
            return Err(UnpackError::limit("file_bytes", limits.file_bytes));
        }
        let whole = [Segment {
            offset: 0,
            length: size,
        }];
        let map = map.unwrap_or(&whole);
        let stored = map.iter().map(|segment| segment.length).sum();
        self.usage.add_bytes(stored, limits)?;
        let file = self.make(spot, "make file", |spot| {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(spot.directory, spot.name, flags, Fresh::mode(entry.mode))
        })?;
        for segment in map {
            write(&file, *segment, path, archive)?;
        }
        let written = map.iter().rev().find(|segment| segment.length > 0);
        if written.map_or(0, |last| last.offset + last.length) < size {
            ftruncate(&file, size)
                .map_err(|errno| UnpackError::system("set size of", path, errno))?;
        }
        self.fresh.file(&file, entry, self.options, path)
    }
}

/// Writes what the archive has of a file, from where it lies.
fn write<R: BufRead>(
    file: &OwnedFd,
    segment: Segment,
    path: &[u8],
    archive: &mut Archive<R>,
) -> Result<(), UnpackError> {
    let (mut position, mut left) = (segment.offset, segment.length);
    while left > 0 {
        let count = archive.take_content(left, |bytes| {
            write_all(file, bytes, position)
                .map_err(|errno| UnpackError::system("write", path, errno))
        })?;
        if count == 0 {
            return Err(UnpackError::Truncated("a file"));
        }
        position += count as u64;
        left -= count as u64;
    }
    Ok(())
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut position: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, position) {
            Ok(written) => {
                bytes = &bytes[written..];
                position += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
