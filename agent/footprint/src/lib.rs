//! What a process of ours holds in memory, kept small. There is an agent and a shim for each pod: what they hold and do
//! not use is lost to the pods beside it, which counts more than the time of an allocation.
//!
//! Left to itself, glibc (mallopt(3)) has a heap for each of some threads, of which only what is free at the top goes
//! back to the kernel; and each large block that is freed raises the size from which blocks are the kernel's own,
//! up to 32 MiB, and with it what may stay free at the top. A pull of an image has both: many threads, and large
//! buffers. And the pages of the program that one start in a pod's life needs stay mapped after it.

#![expect(
    unsafe_code,
    reason = "mallopt(3), malloc_trim(3), dl_iterate_phdr(3) and madvise(2) have no safe wrapper"
)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::ffi::c_void;
use std::ops::Range;

/// Bytes from which a block is mapped by itself, and goes back when it is freed.
const OF_ITS_OWN: libc::c_int = 64 << 10;
/// Bytes that may be free at the top of the heap.
const FREE_AT_TOP: libc::c_int = 128 << 10;

/// The smallest page of the processors that we run on: addresses of mappings are multiples of it.
const PAGE: usize = 4096;

/// Has one heap for all threads, whose limits do not move. To be called before there are threads.
pub fn keep_small() {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, OF_ITS_OWN),
        (libc::M_TRIM_THRESHOLD, FREE_AT_TOP),
    ] {
        // SAFETY: mallopt takes two numbers, locks the heap itself, and keeps no reference. It refuses a parameter
        // that it does not know, which leaves the default.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives back what is free within the heap: one block that stays keeps all below it, as far as glibc goes by itself.
/// For the end of something of which there may have been many at once.
pub fn trim() {
    // SAFETY: malloc_trim touches nothing but free memory of the heap, which it locks.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Gives back what is free within the heap, and unmaps the program, of which what is still needed is mapped again by
/// its next use. For the end of work that comes once or took much.
///
/// On the host the program's pages are the file's, and with nobody who maps them the first to go when memory is short.
/// A guest's initramfs never goes: there the agent's set gets smaller, and not what the guest has in memory.
pub fn give_back() {
    trim();
    // Without /proc there is nothing to give back by.
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for range in within(&clean(&text), &program()) {
        // SAFETY: the pages are of the program itself, which stays mapped where it is as long as the process lives:
        // no other thread can have put anything else there since /proc was read, as it could in the place of a
        // library that was closed. They are the file's own: nothing was ever written to them, and nobody may write.
        // What is read there after this call is read from the file again, and is the same.
        let _ = unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(range.start),
                range.len(),
                libc::MADV_DONTNEED,
            )
        };
    }
}

/// The address ranges that the program itself was loaded to. What is loaded besides may go.
fn program() -> Vec<Range<usize>> {
    let mut found = Vec::new();
    // SAFETY: the callback has the type that is asked for, does not unwind, and is called before this returns, with
    // the address of `found`, of which there is no other use meanwhile.
    let _ = unsafe { libc::dl_iterate_phdr(Some(note_program), (&raw mut found).cast()) };
    found
}

/// Notes the segments of the first object, which is the program, and ends the walk.
unsafe extern "C" fn note_program(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut c_void,
) -> libc::c_int {
    // SAFETY: the C library passes a valid description on, and what `program` gave it. Both are used within the
    // call alone.
    let (object, found) = unsafe { (&*object, &mut *found.cast::<Vec<Range<usize>>>()) };
    if object.dlpi_phdr.is_null() {
        return 1;
    }
    // SAFETY: a program's headers are in its memory, as many as it says, and nobody writes to them.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let address = |header: &libc::Elf64_Phdr| -> Option<Range<usize>> {
        let start = usize::try_from(object.dlpi_addr.checked_add(header.p_vaddr)?).ok()?;
        let end = start.checked_add(usize::try_from(header.p_filesz).ok()?)?;
        // The kernel maps whole pages.
        Some(start - start % PAGE..end.checked_next_multiple_of(PAGE)?)
    };
    let loaded = headers.iter().filter(|one| one.p_type == libc::PT_LOAD);
    found.extend(loaded.filter_map(address));
    1
}

/// The parts of ranges that are within others.
fn within(ranges: &[Range<usize>], others: &[Range<usize>]) -> Vec<Range<usize>> {
    let both = |one: &Range<usize>, other: &Range<usize>| {
        one.start.max(other.start)..one.end.min(other.end)
    };
    let pairs = ranges
        .iter()
        .flat_map(|one| others.iter().map(move |other| both(one, other)));
    pairs.filter(|part| !part.is_empty()).collect()
}

/// The address ranges of `/proc/PID/smaps` (proc(5)) that are a file's, may not be written, and have no page of
/// the process's own: relocated ones, which are protected afterwards, do.
fn clean(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut file = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "Anonymous:" {
            let is_clean = words.next() == Some("0");
            found.extend(file.take().filter(|_| is_clean));
        } else if !first.ends_with(':') {
            file = mapping(first, &words.collect::<Vec<_>>());
        }
    }
    found
}

/// A mapping's first line: addresses, then rights, offset, device and inode.
fn mapping(addresses: &str, rest: &[&str]) -> Option<Range<usize>> {
    let (start, end) = addresses.split_once('-')?;
    let [rights, _, _, inode, ..] = *rest else {
        return None;
    };
    let address = |text| usize::from_str_radix(text, 16).ok();
    let is_files = rights.starts_with("r-") && rights.ends_with('p') && inode != "0";
    is_files.then_some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Resident bytes of this process: its own, and those of files.
    fn resident() -> (usize, usize) {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = |field| {
            text.split(' ')
                .nth(field)
                .unwrap()
                .parse::<usize>()
                .unwrap()
                * 4096
        };
        (pages(1) - pages(2), pages(2))
    }

    /// What a pull leaves: in each thread's heap nearly all is free, but for a little at its top.
    #[test]
    fn what_many_threads_took_goes_back_though_some_of_it_is_kept() {
        const THREADS: usize = 4;
        const BLOCKS: usize = 8 << 10;
        const BLOCK: usize = 1 << 10;
        keep_small();
        let (before, _) = resident();
        let all_there = Barrier::new(THREADS);
        let kept: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let take = || {
                let mut blocks: Vec<_> = (0..BLOCKS).map(|_| vec![1_u8; BLOCK]).collect();
                all_there.wait();
                blocks.pop().unwrap()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let (_, program) = resident();
        give_back();
        let (after, rest) = resident();
        let more = after.saturating_sub(before);
        assert!(more < THREADS * BLOCKS * BLOCK / 8, "{more} bytes stay");
        assert!(rest < program, "{rest} of {program} bytes of the program");
        assert_eq!(kept.len(), THREADS);
    }

    #[test]
    fn another_file_that_is_mapped_is_left_alone_and_the_program_is_not() {
        use std::os::fd::AsRawFd;

        let mut path = std::env::temp_dir();
        path.push(format!("footprint-{}", std::process::id()));
        std::fs::write(&path, [7; PAGE]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // SAFETY: a new mapping of a file that is open, where the kernel has room.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let clean = clean(&text);
        let given = within(&clean, &program());
        // SAFETY: it was mapped above, and is not used any more.
        unsafe { libc::munmap(mapped, PAGE) };
        let has =
            |ranges: &[Range<usize>], address| ranges.iter().any(|one| one.contains(&address));
        let other = mapped.addr();
        assert!(has(&clean, other) && !has(&given, other), "{given:x?}");
        let own = give_back as fn() as usize;
        assert!(has(&given, own), "{own:x} is not in {given:x?}");
    }

    #[test]
    fn a_range_that_is_partly_the_programs_is_cut() {
        let parts = within(&[1..5, 7..9, 20..30], &[3..8, 25..40]);
        assert_eq!(parts, [3..5, 7..8, 25..30]);
    }

    #[test]
    fn only_pages_of_a_file_that_nobody_wrote_are_given_back() {
        let smaps = "\
1000-3000 r--p 00000000 fe:00 77 /init (deleted)
Size: 8 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
3000-5000 r-xp 00002000 fe:00 77 /init (deleted)
Anonymous:             0 kB
5000-6000 r--p 00004000 fe:00 77 /init (deleted)
Anonymous:             4 kB
6000-7000 rw-p 00005000 fe:00 77 /init (deleted)
Anonymous:             0 kB
7000-8000 r--p 00000000 00:00 0 [vvar]
Anonymous:             0 kB
8000-9000 r--s 00000000 fe:00 78 /shared
Anonymous:             0 kB
9000-a000 ---p 00000000 fe:00 77 /init (deleted)
Anonymous:             0 kB
";
        assert_eq!(clean(smaps), [0x1000..0x3000, 0x3000..0x5000]);
        assert_eq!(
            clean("x-y r--p 0 0 1\nAnonymous: 0 kB\nAnonymous: 0 kB"),
            []
        );
    }
}
