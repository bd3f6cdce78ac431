//! A slow line: a TCP relay that lets so many bytes a second through on the way back, all connections
//! together. TLS passes through it, so that a registry behind it is the real one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// One piece; small enough to be even at some 100 KiB a second.
const PIECE: usize = 8 * 1024;

/// The line. It ends with the test's process.
#[derive(Debug)]
pub struct SlowLine {
    address: String,
    far: Arc<Far>,
}

#[derive(Debug)]
struct Far {
    address: String,
    bytes_per_second: AtomicU64,
    /// When the line is free again.
    free: Mutex<Instant>,
}

impl SlowLine {
    /// Opens a line to `far` (`host:port`).
    ///
    /// # Errors
    /// When nothing can be listened on.
    pub fn open(far: &str, bytes_per_second: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let far = Arc::new(Far {
            address: far.to_owned(),
            bytes_per_second: AtomicU64::new(bytes_per_second),
            free: Mutex::new(Instant::now()),
        });
        let line = Arc::clone(&far);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let line = Arc::clone(&line);
                std::thread::spawn(move || line.carry(&near));
            }
        });
        Ok(Self { address, far })
    }

    /// `host:port` of the near end.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Lets so many bytes a second through from now on. What waits already waits on.
    pub fn set(&self, bytes_per_second: u64) {
        let rate = &self.far.bytes_per_second;
        rate.store(bytes_per_second, Ordering::Relaxed);
        *self.far.free.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl Far {
    fn carry(&self, near: &TcpStream) {
        let Ok(far) = TcpStream::connect(&self.address) else {
            return;
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                copy(near, &far, |_| {});
                let _ = far.shutdown(Shutdown::Write);
            });
            copy(&far, near, |bytes| self.wait_for(bytes));
            // The other way ends with it.
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        });
    }

    /// Waits until the next `bytes` are through.
    fn wait_for(&self, bytes: usize) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed).max(1);
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / rate;
        let until = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + Duration::from_nanos(nanos);
            *free
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, each: impl Fn(usize)) {
    let mut piece = [0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        each(read);
        if to.write_all(&piece[..read]).is_err() {
            return;
        }
    }
}
