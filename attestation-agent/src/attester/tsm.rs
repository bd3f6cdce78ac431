//! The kernel's interface of its TEE: reports through configfs, registers through sysfs.
//!
//! A directory made below `tsm/report` is one report: what is written into `inblob` is signed when
//! `outblob` is read. Each write counts up `generation`, so that a report which somebody else wrote
//! into is noticed. Sources: Linux's `Documentation/ABI/testing/configfs-tsm-report` and
//! `sysfs-devices-virtual-misc-tdx_guest`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use evidence::eventlog::LOG_BYTES;

use super::REPORT_DATA_BYTES;
use super::platform::{Platform, REGISTER_BYTES, Registers, Report};

/// Where directories of reports are made.
const REPORTS: &str = "sys/kernel/config/tsm/report";
/// Where the registers are, each a file.
const MEASUREMENTS: &str = "sys/devices/virtual/misc/tdx_guest/measurements";
/// The log that the firmware left.
const CCEL: &str = "sys/firmware/acpi/tables/data/CCEL";
/// Bytes of a report, or of the certificates beside it.
const BLOB_BYTES: usize = 64 * 1024;
/// Bytes of an attribute in text.
const TEXT_BYTES: usize = 64;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The kernel's interface for one kind of TEE.
#[derive(Debug)]
pub struct Tsm {
    root: PathBuf,
    provider: &'static str,
    make: fn(&Path) -> io::Result<()>,
    remove: fn(&Path) -> io::Result<()>,
}

impl Tsm {
    /// The interface of an SNP guest below a root directory, which is `/` outside of tests.
    #[must_use]
    pub fn sev_guest(root: impl Into<PathBuf>) -> Self {
        Self::of(root.into(), "sev_guest")
    }

    /// The interface of a TD.
    #[must_use]
    pub fn tdx_guest(root: impl Into<PathBuf>) -> Self {
        Self::of(root.into(), "tdx_guest")
    }

    fn of(root: PathBuf, provider: &'static str) -> Self {
        Self {
            root,
            provider,
            make: |path| fs::create_dir(path),
            remove: |path| fs::remove_dir(path),
        }
    }

    /// Whether this kernel has the interface, of whichever TEE.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.root.join(REPORTS).is_dir()
    }

    fn begin(&self) -> io::Result<Entry<'_>> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cloister-{}-{number}", std::process::id());
        let path = self.root.join(REPORTS).join(name);
        (self.make)(&path).map_err(|cause| told(&path, &cause))?;
        Ok(Entry { tsm: self, path })
    }
}

/// A report's directory, which goes with this value.
struct Entry<'a> {
    tsm: &'a Tsm,
    path: PathBuf,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        // The kernel takes the files along. What stays is of no harm: the next has another name.
        let _ = (self.tsm.remove)(&self.path);
    }
}

impl Entry<'_> {
    fn text(&self, name: &str) -> io::Result<String> {
        let text = read(&self.path.join(name), TEXT_BYTES)?;
        let text = String::from_utf8(text).map_err(io::Error::other)?;
        Ok(text.trim().to_owned())
    }

    fn number(&self, name: &str) -> io::Result<u64> {
        let text = self.text(name)?;
        let wrong = |_| io::Error::other(format!("{name} is {text:?}, which is no number"));
        text.parse().map_err(wrong)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        write(&self.path.join(name), bytes)
    }

    fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }
}

impl Platform for Tsm {
    fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> io::Result<Report> {
        let entry = self.begin()?;
        let provider = entry.text("provider")?;
        if provider != self.provider {
            return Err(io::Error::other(format!(
                "the kernel's reports are of {provider:?}, and {:?} is configured",
                self.provider
            )));
        }
        let mut expected = entry.number("generation")?;
        // A guest below an SVSM has no report of level 0, and no verifier takes another.
        if entry.has("privlevel") {
            if entry.has("privlevel_floor") && entry.number("privlevel_floor")? != 0 {
                return Err(io::Error::other(
                    "this guest runs below VMPL 0, at which reports are asked for",
                ));
            }
            entry.write("privlevel", b"0")?;
            expected += 1;
        }
        entry.write("inblob", report_data)?;
        expected += 1;
        let outblob = read(&entry.path.join("outblob"), BLOB_BYTES)?;
        let auxblob = match entry.has("auxblob") {
            true => read(&entry.path.join("auxblob"), BLOB_BYTES)?,
            false => Vec::new(),
        };
        let generation = entry.number("generation")?;
        if generation != expected {
            return Err(io::Error::other(format!(
                "somebody else wrote into the report: its generation is {generation}, not {expected}"
            )));
        }
        if outblob.is_empty() {
            return Err(io::Error::other(
                "the report is empty: the host's quote service gave none (is it running?)",
            ));
        }
        Ok(Report { outblob, auxblob })
    }

    fn boot_log(&self) -> io::Result<Option<Vec<u8>>> {
        let path = self.root.join(CCEL);
        match path.exists() {
            true => read(&path, LOG_BYTES).map(Some),
            false => Ok(None),
        }
    }
}

impl Registers for Tsm {
    fn read(&self, register: usize) -> io::Result<[u8; REGISTER_BYTES]> {
        let path = self.register(register);
        let value = read(&path, REGISTER_BYTES)?;
        let length = value.len();
        value.try_into().map_err(|_| {
            let cause = format!("{length} bytes, and a register has {REGISTER_BYTES}");
            told(&path, &io::Error::other(cause))
        })
    }

    fn extend(&self, register: usize, digest: &[u8; REGISTER_BYTES]) -> io::Result<()> {
        write(&self.register(register), digest)
    }
}

impl Tsm {
    fn register(&self, register: usize) -> PathBuf {
        let name = format!("rtmr{register}:sha384");
        self.root.join(MEASUREMENTS).join(name)
    }
}

fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let cap = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)
        .and_then(|file| file.take(cap).read_to_end(&mut bytes))
        .map_err(|cause| told(path, &cause))?;
    match bytes.len() <= most {
        true => Ok(bytes),
        false => Err(told(
            path,
            &io::Error::other(format!("more than {most} bytes")),
        )),
    }
}

/// In one write: the kernel takes each for a whole value.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write(bytes))
        .map_err(|cause| told(path, &cause))?;
    match written == bytes.len() {
        true => Ok(()),
        false => Err(told(path, &io::ErrorKind::WriteZero.into())),
    }
}

fn told(path: &Path, cause: &io::Error) -> io::Error {
    io::Error::new(cause.kind(), format!("{}: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    /// Plays the kernel for one report: the files of a directory that is made, `inblob` and `outblob` as
    /// pipes, so that a thread answers in the kernel's order.
    fn kernel(path: &Path, provider: &str, counted: u64, out: &'static [u8]) -> io::Result<()> {
        fs::create_dir(path)?;
        fs::write(path.join("provider"), format!("{provider}\n"))?;
        fs::write(path.join("generation"), "0\n")?;
        let pipes = ["inblob", "outblob"].map(|name| path.join(name));
        assert!(Command::new("mkfifo").args(&pipes).status()?.success());
        if provider == "sev_guest" {
            fs::write(path.join("privlevel"), "")?;
            fs::write(path.join("privlevel_floor"), "0\n")?;
            fs::write(path.join("auxblob"), b"table")?;
        }
        let path = path.to_owned();
        thread::spawn(move || {
            let asked = fs::read(path.join("inblob")).unwrap();
            assert_eq!(asked, [7; REPORT_DATA_BYTES]);
            fs::write(path.join("generation"), format!("{counted}\n")).unwrap();
            let mut signed = OpenOptions::new()
                .write(true)
                .open(path.join("outblob"))
                .unwrap();
            let _ = signed.write_all(out);
        });
        Ok(())
    }

    fn below(root: &Path, make: fn(&Path) -> io::Result<()>, tsm: Tsm) -> Tsm {
        fs::create_dir_all(root.join(REPORTS)).unwrap();
        let remove = |path: &Path| fs::remove_dir_all(path);
        Tsm {
            make,
            remove,
            ..tsm
        }
    }

    #[test]
    fn a_report_is_asked_for_as_the_kernel_wants_it_and_nothing_stays() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &Path| kernel(path, "sev_guest", 2, b"signed");
        let tsm = below(root.path(), make, Tsm::sev_guest(root.path()));
        assert!(tsm.is_there());
        let report = tsm.report(&[7; REPORT_DATA_BYTES]).unwrap();
        assert_eq!(
            (&*report.outblob, &*report.auxblob),
            (&b"signed"[..], &b"table"[..])
        );
        assert_eq!(fs::read_dir(root.path().join(REPORTS)).unwrap().count(), 0);
    }

    #[test]
    fn another_provider_another_writer_and_an_empty_quote_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let refused = |make: fn(&Path) -> io::Result<()>| {
            let tsm = below(root.path(), make, Tsm::tdx_guest(root.path()));
            tsm.report(&[7; REPORT_DATA_BYTES]).unwrap_err().to_string()
        };
        assert!(refused(|path| kernel(path, "sev_guest", 2, b"")).contains("\"sev_guest\""));
        assert!(refused(|path| kernel(path, "tdx_guest", 2, b"quote")).contains("somebody else"));
        assert!(refused(|path| kernel(path, "tdx_guest", 1, b"")).contains("is empty"));
        let none = Tsm::tdx_guest("/nowhere");
        assert!(!none.is_there());
        assert!(none.report(&[7; REPORT_DATA_BYTES]).is_err());
    }

    #[test]
    fn a_register_is_written_whole_and_a_log_is_read_where_there_is_one() {
        let root = tempfile::tempdir().unwrap();
        let tsm = Tsm::tdx_guest(root.path());
        assert_eq!(tsm.boot_log().unwrap(), None);
        let register = root.path().join(MEASUREMENTS).join("rtmr3:sha384");
        fs::create_dir_all(register.parent().unwrap()).unwrap();
        fs::write(&register, [0; REGISTER_BYTES]).unwrap();
        Registers::extend(&tsm, 3, &[9; REGISTER_BYTES]).unwrap();
        assert_eq!(Registers::read(&tsm, 3).unwrap(), [9; REGISTER_BYTES]);
        assert!(Registers::extend(&tsm, 2, &[9; REGISTER_BYTES]).is_err());
        let log = root.path().join(CCEL);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(&log, b"log").unwrap();
        assert_eq!(tsm.boot_log().unwrap().unwrap(), b"log");
        fs::write(&log, vec![0; LOG_BYTES + 1]).unwrap();
        assert!(tsm.boot_log().is_err());
    }
}
