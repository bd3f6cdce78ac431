//! The devices that a container may open: a program of the kernel's for its cgroup, as cgroup v2 wants it.
//!
//! ```text
//!   what opens or makes a node ─► type, access, major, minor ─► the first rule that fits: yes ─┐
//!                                                               none: no                       ▼ EPERM
//! ```
//!
//! The rules are those that runc gives to every container (the usual character devices; nodes may be made of
//! any device), and the disks that the request names. The host's own rules name its devices by numbers that
//! mean others here. The call has no safe wrapper without a compiler for C at build time.
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller>, `linux/bpf.h`

#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Others may add filters, and do not take this one away.
const ALLOW_MULTI: u32 = 2;
/// Bytes of a request, and of an instruction.
const REQUEST: usize = 48;
const INSTRUCTION: usize = 8;
/// How often a program is offered: the kernel stops looking at it when a signal arrives, and says so by `EAGAIN`.
const OFFERS: usize = 16;

/// `BPF_DEVCG_DEV_*` and `BPF_DEVCG_ACC_*`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const ALL: i32 = 7;

/// What runc lets every container have: null, zero, full, random, urandom, tty, console, ptmx, terminals and
/// the device of tunnels.
const USUAL: [(u32, Option<u32>); 10] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
    (10, Some(200)),
];

/// What a container may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The disk's number.
    pub major: u32,
    /// The same.
    pub minor: u32,
    /// Whether it may be written to; it may be read in any case.
    pub writes: bool,
}

/// A rule that lets a device be had.
struct Rule {
    kind: i32,
    access: i32,
    major: Option<u32>,
    minor: Option<u32>,
}

/// Lets the processes of a cgroup have the usual devices and these disks, and no other device.
///
/// # Errors
///
/// Those of bpf(2).
pub(super) fn confine(cgroup: &File, disks: &[Access]) -> io::Result<()> {
    let program = load(&program(&rules(disks)))?;
    let mut request = [0; REQUEST];
    put(&mut request, 0, &descriptor(cgroup)?.to_ne_bytes());
    put(&mut request, 4, &descriptor(&program)?.to_ne_bytes());
    put(&mut request, 8, &CGROUP_DEVICE.to_ne_bytes());
    put(&mut request, 12, &ALLOW_MULTI.to_ne_bytes());
    bpf(PROG_ATTACH, &request).map(drop)
}

fn rules(disks: &[Access]) -> Vec<Rule> {
    let made = |kind| Rule {
        kind,
        access: MAKE,
        major: None,
        minor: None,
    };
    let usual = USUAL.map(|(major, minor)| Rule {
        kind: CHARACTER,
        access: ALL,
        major: Some(major),
        minor,
    });
    let disks = disks.iter().map(|disk| Rule {
        kind: BLOCK,
        access: if disk.writes { ALL } else { MAKE | READ },
        major: Some(disk.major),
        minor: Some(disk.minor),
    });
    let made = [made(BLOCK), made(CHARACTER)];
    made.into_iter().chain(usual).chain(disks).collect()
}

fn load(program: &[u8]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let count = u32::try_from(program.len() / INSTRUCTION).map_err(io::Error::other)?;
    let mut request = [0; REQUEST];
    put(&mut request, 0, &TYPE_CGROUP_DEVICE.to_ne_bytes());
    put(&mut request, 4, &count.to_ne_bytes());
    put(&mut request, 8, &address(program.as_ptr()));
    put(&mut request, 16, &address(license.as_ptr().cast()));
    let mut loaded = bpf(PROG_LOAD, &request);
    for _ in 1..OFFERS {
        match &loaded {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                loaded = bpf(PROG_LOAD, &request);
            }
            _ => break,
        }
    }
    let descriptor = loaded?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf(command: libc::c_int, request: &[u8; REQUEST]) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `REQUEST` bytes of the request and what it points to, all of which outlive the
    // call, and writes to neither.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, request.as_ptr(), REQUEST) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

/// The program: the request's parts into registers, then each rule, and no at the end.
fn program(rules: &[Rule]) -> Vec<u8> {
    // Registers: 0 the answer, 1 the request, 2 type, 3 access, 4 major, 5 minor.
    let mut code = Vec::new();
    word(&mut code, 2, 0);
    code.extend(instruction(MOVE, 3, 2, 0, 0));
    code.extend(instruction(SHIFT, 3, 0, 0, 16));
    code.extend(instruction(AND, 2, 0, 0, 0xffff));
    word(&mut code, 4, 4);
    word(&mut code, 5, 8);
    for rule in rules {
        let mut tests = vec![(2, rule.kind)];
        if rule.access != ALL {
            // What is asked for beyond what the rule gives.
            tests.push((0, 0));
        }
        let numbers = [(4, rule.major), (5, rule.minor)];
        // The kernel compares 32 bits as they are.
        tests.extend(
            numbers
                .iter()
                .filter_map(|(r, n)| Some((*r, n.map(u32::cast_signed)?))),
        );
        let beyond = [
            instruction(MOVE, 0, 3, 0, 0),
            instruction(AND, 0, 0, 0, !rule.access),
        ];
        let mut body = Vec::new();
        for (register, value) in tests {
            if register == 0 {
                body.extend(beyond.map(|one| (one, false)));
            }
            body.push((instruction(UNLESS, register, 0, 0, value), true));
        }
        body.push((instruction(SET, 0, 0, 0, 1), false));
        body.push((instruction(EXIT, 0, 0, 0, 0), false));
        let length = body.len();
        for (at, (mut one, jumps)) in body.into_iter().enumerate() {
            if jumps {
                // To the next rule.
                let over = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
                put(&mut one, 2, &over.to_ne_bytes());
            }
            code.extend(one);
        }
    }
    code.extend(instruction(SET, 0, 0, 0, 0));
    code.extend(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// Opcodes (`linux/bpf_common.h`): load a word, move, shift right, and, jump unless equal, set, exit.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const SHIFT: u8 = 0x74;
const AND: u8 = 0x54;
const UNLESS: u8 = 0x56;
const SET: u8 = 0xb4;
const EXIT: u8 = 0x95;

/// Loads a word of the request.
fn word(code: &mut Vec<u8>, register: u8, at: i16) {
    code.extend(instruction(LOAD, register, 1, at, 0));
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> [u8; INSTRUCTION] {
    let mut bytes = [code, to | from << 4, 0, 0, 0, 0, 0, 0];
    put(&mut bytes, 2, &offset.to_ne_bytes());
    put(&mut bytes, 4, &value.to_ne_bytes());
    bytes
}

fn descriptor(file: &impl AsRawFd) -> io::Result<u32> {
    u32::try_from(file.as_raw_fd()).map_err(io::Error::other)
}

fn address(pointer: *const u8) -> [u8; 8] {
    (pointer.addr() as u64).to_ne_bytes()
}

fn put(to: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = to.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does, as far as these programs go.
    fn answer(code: &[u8], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let request = [kind | access << 16, major, minor];
        let mut registers = [0_u32; 6];
        let mut at = 0;
        loop {
            let one = &code[at * INSTRUCTION..][..INSTRUCTION];
            let (to, from) = (usize::from(one[1] & 15), usize::from(one[1] >> 4));
            let offset = i16::from_ne_bytes([one[2], one[3]]);
            let value = u32::from_ne_bytes([one[4], one[5], one[6], one[7]]);
            at += 1;
            match one[0] {
                LOAD => registers[to] = request[usize::try_from(offset).unwrap() / 4],
                MOVE => registers[to] = registers[from],
                SHIFT => registers[to] >>= value,
                AND => registers[to] &= value,
                UNLESS if registers[to] != value => at += usize::try_from(offset).unwrap(),
                UNLESS => {}
                SET => registers[to] = value,
                EXIT => return registers[0],
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn a_container_has_the_usual_devices_its_disks_and_no_other() {
        let of = |minor, writes| Access {
            major: 8,
            minor,
            writes,
        };
        let code = program(&rules(&[of(16, true), of(32, false)]));
        let (block, character, read, write) = (1, 2, 2, 4);
        for (kind, access, major, minor, expected) in [
            (character, read | write, 1, 3, 1),
            (character, read | write, 136, 77, 1),
            (character, read | write, 1, 1, 0),
            (character, read, 10, 229, 0),
            (block, read | write, 8, 16, 1),
            (block, read, 8, 0, 0),
            (block, read, 8, 32, 1),
            (block, read | write, 8, 32, 0),
            (block, write, 8, 32, 0),
            (block, read, 254, 0, 0),
            (character, read, 8, 16, 0),
            // A node may be made of any device; to open it is another thing.
            (block, 1, 254, 0, 1),
            (block, 1 | read, 254, 0, 0),
        ] {
            let found = answer(&code, kind, access, major, minor);
            assert_eq!(found, expected, "{kind} {access} {major}:{minor}");
        }
    }
}
