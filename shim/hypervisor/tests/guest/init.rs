//! The first process of the guest that the tests boot: loads the modules that the initramfs lists,
//! tells the host, and then offers one service per vsock port. Built by the test with rustc alone,
//! so it has the standard library and the few system calls it declares.
//!
//! | port | service |
//! |---|---|
//! | 7 | echo |
//! | 9 | takes bytes to their end, answers their number |
//! | 19 | reads a number, writes so many bytes in one write |
//! | 21 | reads a port, connects to it on the host, answers `ok` or the error, and microseconds |
//! | 22 | reads a number, connects to the host port and writes so many bytes in one write |
//! | 23 | reads `poweroff`, `reset` or `panic`, and does it |

use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::thread;
use std::time::Instant;

const AF_VSOCK: u16 = 40;
const SOCK_STREAM: c_int = 1;
const SYS_FINIT_MODULE: c_long = 313;
const CID_ANY: u32 = u32::MAX;
const CID_HOST: u32 = 2;
const HOST_PORT: u32 = 1030;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const RB_AUTOBOOT: c_int = 0x0123_4567;

#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const SockaddrVm, len: u32) -> c_int;
    fn connect(fd: c_int, address: *const SockaddrVm, len: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept(fd: c_int, address: *mut c_void, len: *mut c_void) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

fn main() {
    set_up();
    for (port, service) in [
        (7, echo as fn(File) -> io::Result<()>),
        (9, take),
        (19, give),
        (21, dial),
        (22, push),
        (23, end),
    ] {
        let listener = listen_on(port).expect("listen");
        thread::spawn(move || serve(&listener, service));
    }
    let mut host = dial_host(HOST_PORT).expect("connect to the host");
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let clock = fs::read_to_string(clock).unwrap_or_default();
    let disks = fs::read_dir("/sys/block").map_or(0, Iterator::count);
    writeln!(host, "READY {disks} {} {cmdline}", clock.trim()).expect("tell the host");
    println!("guest is ready");
    loop {
        thread::park();
    }
}

fn set_up() {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir(target);
        let (kind, target) = (CString::new(kind).unwrap(), CString::new(target).unwrap());
        unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    }
    for module in fs::read_to_string("/modules/load").unwrap_or_default().lines() {
        let file = File::open(module).expect("module");
        let result = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0) };
        if result != 0 {
            println!("{module}: {}", io::Error::last_os_error());
        }
    }
}

fn address(cid: u32, port: u32) -> SockaddrVm {
    SockaddrVm { family: AF_VSOCK, reserved: 0, port, cid, zero: [0; 4] }
}

fn vsock() -> io::Result<File> {
    let fd = unsafe { socket(c_int::from(AF_VSOCK), SOCK_STREAM, 0) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { File::from_raw_fd(fd) }) }
}

fn listen_on(port: u32) -> io::Result<File> {
    let socket = vsock()?;
    let address = address(CID_ANY, port);
    if unsafe { bind(socket.as_raw_fd(), &address, 16) } != 0 || unsafe { listen(socket.as_raw_fd(), 128) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn dial_host(port: u32) -> io::Result<File> {
    let socket = vsock()?;
    if unsafe { connect(socket.as_raw_fd(), &address(CID_HOST, port), 16) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn serve(listener: &File, service: fn(File) -> io::Result<()>) {
    loop {
        let fd = unsafe { accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
        if fd < 0 {
            continue;
        }
        let stream = unsafe { File::from_raw_fd(fd) };
        thread::spawn(move || service(stream));
    }
}

fn echo(mut stream: File) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

fn take(mut stream: File) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return writeln!(stream, "{total}"),
            count => total += count,
        }
    }
}

fn give(mut stream: File) -> io::Result<()> {
    let bytes = pattern(number(&stream)?);
    let written = stream.write(&bytes)?;
    stream.write_all(&bytes[written..])
}

fn dial(mut stream: File) -> io::Result<()> {
    let port = number(&stream)?;
    let start = Instant::now();
    let result = dial_host(port as u32);
    let took = start.elapsed().as_micros();
    match result {
        Ok(_) => writeln!(stream, "ok {took}"),
        Err(error) => writeln!(stream, "{} {took}", error.raw_os_error().unwrap_or(0)),
    }
}

fn push(stream: File) -> io::Result<()> {
    let bytes = pattern(number(&stream)?);
    let mut host = dial_host(HOST_PORT)?;
    host.write_all(&bytes)
}

fn end(stream: File) -> io::Result<()> {
    match line(&stream)?.as_str() {
        "poweroff" => unsafe { reboot(RB_POWER_OFF) },
        "reset" => unsafe { reboot(RB_AUTOBOOT) },
        // The kernel panics when its first process ends.
        _ => std::process::exit(1),
    };
    Ok(())
}

fn line(stream: &File) -> io::Result<String> {
    let mut line = String::new();
    BufReader::with_capacity(64, stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn number(stream: &File) -> io::Result<usize> {
    line(stream)?.parse().map_err(io::Error::other)
}

fn pattern(len: usize) -> Vec<u8> {
    // Copied, not computed: an emulator is slow at the latter.
    let block: Vec<u8> = (0..251).collect();
    block.iter().copied().cycle().take(251 * 64).collect::<Vec<u8>>().repeat(len / (251 * 64) + 1)[..len].to_vec()
}
