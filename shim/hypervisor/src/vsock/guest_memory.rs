//! The parts of guest memory that one descriptor chain names, moved to and from sockets without a
//! copy in between.
#![expect(
    unsafe_code,
    reason = "guest memory is handed to readv and sendmsg, which no safe wrapper takes"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::transfer::{Buffer, Payload};

/// The most pieces of one chain. Linux uses up to 19 for 64 KiB; a queue has 128 entries.
const MAX_PIECES: usize = 256;

/// The pieces of a chain that are left.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    pieces: VecDeque<VolatileSlice<'a>>,
    len: usize,
}

impl<'a> Pieces<'a> {
    /// Collects what descriptors name. `None` for a chain with too many pieces, or with one that
    /// is not guest memory.
    pub(super) fn collect(
        memory: &'a GuestMemoryMmap,
        descriptors: impl Iterator<Item = Descriptor>,
        access: Permissions,
    ) -> Option<Self> {
        let mut pieces = VecDeque::new();
        let mut len: usize = 0;
        for descriptor in descriptors {
            let size = usize::try_from(descriptor.len()).ok()?;
            for slice in memory.get_slices(descriptor.addr(), size, access).ok()? {
                let slice = slice.ok()?;
                len = len.checked_add(slice.len())?;
                if pieces.len() == MAX_PIECES {
                    return None;
                }
                pieces.push_back(slice);
            }
        }
        Some(Self { pieces, len })
    }

    /// Cuts the first `size` bytes off. `None` when there are fewer.
    pub(super) fn split_to(&mut self, size: usize) -> Option<Self> {
        if size > self.len {
            return None;
        }
        let mut front = Self {
            pieces: VecDeque::new(),
            len: size,
        };
        let mut missing = size;
        while missing > 0 {
            let piece = self.pieces.pop_front()?;
            let taken = piece.len().min(missing);
            front.pieces.push_back(piece.subslice(0, taken).ok()?);
            if taken < piece.len() {
                self.pieces.push_front(piece.offset(taken).ok()?);
            }
            missing -= taken;
        }
        self.len -= size;
        Some(front)
    }

    /// Copies the pieces' bytes out, as many as fit.
    pub(super) fn copy_to(&self, mut bytes: &mut [u8]) {
        for piece in &self.pieces {
            let count = piece.copy_to(bytes);
            bytes = &mut bytes[count..];
        }
    }

    /// Copies bytes into the pieces, as many as fit.
    pub(super) fn copy_from(&self, mut bytes: &[u8]) {
        for piece in &self.pieces {
            let count = piece.len().min(bytes.len());
            piece.copy_from(&bytes[..count]);
            bytes = &bytes[count..];
        }
    }

    pub(super) fn size(&self) -> usize {
        self.len
    }

    /// Calls `transfer` with the pieces as the kernel wants them, at most `most` bytes, and cuts
    /// off what it moved.
    fn transfer(
        &mut self,
        most: usize,
        transfer: impl FnOnce(&mut [libc::iovec]) -> isize,
    ) -> io::Result<usize> {
        let mut left = most;
        // The guards keep a piece mapped where mappings come and go.
        let mut guards = Vec::with_capacity(self.pieces.len());
        let mut vectors = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let count = piece.len().min(left);
            if count == 0 {
                break;
            }
            let guard = piece.ptr_guard_mut();
            vectors.push(libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: count,
            });
            guards.push(guard);
            left -= count;
        }
        let moved = transfer(&mut vectors);
        drop(guards);
        let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        match self.split_to(moved) {
            Some(_) => Ok(moved),
            None => Err(io::Error::other("the kernel moved more than it was given")),
        }
    }
}

impl Payload for Pieces<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn write_to(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.transfer(usize::MAX, |vectors| {
            // SAFETY: a zeroed msghdr is a valid empty message.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = vectors.as_mut_ptr();
            message.msg_iovlen = vectors.len();
            // SAFETY: the vectors name mapped guest memory, which stays mapped as the pieces borrow
            // the mapping. The guest may write to it meanwhile; the kernel copies bytes and makes
            // no assumption about their values.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
        })
    }

    fn append_to(&mut self, queue: &mut VecDeque<u8>) {
        let start = queue.len();
        queue.resize(start + self.len, 0);
        let (_, tail) = queue.as_mut_slices();
        if tail.len() >= self.len {
            let at = tail.len() - self.len;
            self.copy_to(&mut tail[at..]);
        } else {
            self.copy_to(&mut queue.make_contiguous()[start..]);
        }
        self.pieces.clear();
        self.len = 0;
    }
}

impl Buffer for Pieces<'_> {
    fn capacity(&self) -> usize {
        self.len
    }

    fn read_from(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        self.transfer(most, |vectors| {
            let count = libc::c_int::try_from(vectors.len()).unwrap_or(0);
            // SAFETY: the vectors name mapped guest memory, which stays mapped as the pieces borrow
            // the mapping, and which no Rust reference covers.
            unsafe { libc::readv(socket.as_raw_fd(), vectors.as_ptr(), count) }
        })
    }
}
