//! `cloister collect`: one archive for a bug report, of which its sender need not be afraid.
//!
//! In it are versions, what `cloister check` says, the configuration, where each run and sandbox is, and
//! the last lines of guests' consoles; with `--logs` also of what programs wrote. No specification, no
//! arguments, no environment, no init-data is read into it, and every text passes [`redact`] once more:
//! a value that is a run's secret by its specification does not appear, wherever it was printed.

mod redact;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{check, run};
pub(crate) use redact::Redact;
use shim::config;
use shim::state_dir;

/// The end of a console that is taken.
const CONSOLE_TAIL: u64 = 64 * 1024;
/// Sandboxes that are looked at; more are counted.
const MAX_SANDBOXES: usize = 200;
/// Lines of each program's output.
const LOG_LINES: usize = 200;
/// The console's file in a sandbox's directory.
const CONSOLE: &str = "console.log";

/// What to collect.
#[derive(Debug, Args)]
pub(super) struct Collect {
    /// The shim's configuration file; else the one that it would read.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Also the last lines of what programs wrote, which only you can judge.
    #[arg(long)]
    logs: bool,
    /// The archive; it must not be there yet.
    #[arg(long, short, default_value = "cloister-report.tar.gz")]
    output: PathBuf,
}

impl Collect {
    pub(super) async fn run(self) -> Result<()> {
        let redact = Redact::new(run::secrets());
        let report = check::report(self.config.as_deref()).await;
        let mut options = File::options();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.output)
            .with_context(|| format!("make {}", self.output.display()))?;
        let mut archive = Archive::new(file, redact);
        archive.add("check.json", &serde_json::to_string_pretty(&report)?)?;
        archive.add("check.txt", &report.to_string())?;
        archive.add("versions.json", &serde_json::to_string_pretty(&versions())?)?;
        archive.add_configuration(self.config.as_deref())?;
        let states: Vec<Value> = run::states();
        archive.add("runs.json", &serde_json::to_string_pretty(&states)?)?;
        archive.add_sandboxes(&state_dir::root())?;
        if self.logs {
            for (name, text) in run::log_tails(LOG_LINES) {
                archive.add(&format!("logs/{name}.txt"), &text)?;
            }
        }
        let names = archive.finish()?;
        println!("{}", self.output.display());
        for name in names {
            eprintln!("  {name}");
        }
        eprintln!(
            "Look through it before you send it: `tar -xzOf {} | less`.",
            self.output.display()
        );
        Ok(())
    }
}

fn versions() -> Value {
    let text = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let release = text("/etc/os-release");
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    json!({
        "cloister": env!("CARGO_PKG_VERSION"),
        "kernel": text("/proc/sys/kernel/osrelease"),
        "distribution": pretty.unwrap_or_default().trim_matches('"'),
        "is_root": rustix::process::geteuid().is_root(),
        "at": OffsetDateTime::now_utc().unix_timestamp(),
    })
}

/// The archive, through which nothing goes that was not redacted.
struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    redact: Redact,
    names: Vec<String>,
    now: u64,
}

impl Archive {
    fn new(file: File, redact: Redact) -> Self {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        Self {
            tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            redact,
            names: Vec::new(),
            now: u64::try_from(now).unwrap_or_default(),
        }
    }

    fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let text = self.redact.text(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or_default());
        header.set_mode(0o600);
        header.set_mtime(self.now);
        header.set_cksum();
        let path = format!("cloister-report/{name}");
        self.tar
            .append_data(&mut header, &path, text.as_bytes())
            .with_context(|| format!("write {name} into the archive"))?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// The values that hold; those of keys that may hide something are left out.
    fn add_configuration(&mut self, named: Option<&Path>) -> Result<()> {
        let variable = config::from_environment();
        let path = config::choose(named, variable.as_deref());
        let inspection = config::inspect(path.as_deref());
        let mut text = String::new();
        for file in &inspection.files {
            text.push_str(&format!("# {}\n", file.display()));
        }
        for value in &inspection.values {
            let shown = match redact::is_secret_key(&value.key) {
                true => redact::HIDDEN.to_owned(),
                false => value.value.to_string(),
            };
            text.push_str(&format!("{} = {shown}\n", value.key));
        }
        for problem in &inspection.problems {
            text.push_str(&format!("# refused: {problem}\n"));
        }
        self.add("configuration.txt", &text)
    }

    /// Where each sandbox is, and the end of its guest's console.
    fn add_sandboxes(&mut self, root: &Path) -> Result<()> {
        let mut states = Vec::new();
        for (namespace, sandbox) in state_dir::sandboxes(root).into_iter().take(MAX_SANDBOXES) {
            let directory = state_dir::StateDir::of(&namespace, &sandbox)?;
            let process = |role: &str| {
                let recorded = directory.recorded(role)?;
                Some(json!({"pid": recorded.pid, "lives": recorded.is_alive()}))
            };
            states.push(json!({
                "namespace": namespace,
                "sandbox": sandbox,
                "shim": process("shim"),
                "vmm": process("vmm"),
                "virtiofsd": process("virtiofsd"),
            }));
            if let Some(text) = tail(&directory.path().join(CONSOLE)) {
                self.add(&format!("console/{namespace}.{sandbox}.txt"), &text)?;
            }
        }
        self.add("sandboxes.json", &serde_json::to_string_pretty(&states)?)
    }

    fn finish(self) -> Result<Vec<String>> {
        let mut file = self.tar.into_inner()?.finish()?;
        file.flush()?;
        Ok(self.names)
    }
}

/// The end of a file, as text.
fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(CONSOLE_TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_goes_into_the_archive_is_redacted() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("a.tar.gz");
        let file = File::create_new(&path).unwrap();
        let mut archive = Archive::new(file, Redact::new(vec!["planted-value".to_owned()]));
        archive.add("a.txt", "A=planted-value\nplain").unwrap();
        assert_eq!(archive.finish().unwrap(), ["a.txt"]);
        let unpacked = flate2::read::GzDecoder::new(File::open(&path).unwrap());
        let mut tar = tar::Archive::new(unpacked);
        let mut entry = tar.entries().unwrap().next().unwrap().unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert!(
            !text.contains("planted-value") && text.contains("plain"),
            "{text}"
        );
    }
}
