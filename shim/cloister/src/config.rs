//! `cloister config`: what the shim makes of a configuration file, before a pod meets it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use shim::config::{self, Config, Inspection, Note, Place, Problem, annotation};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tell all that is wrong with a configuration and all that is worth knowing; exits with 1 where it is
    /// refused.
    ///
    /// Each problem is FILE:LINE: KEY: REASON: REMEDY. Kata's configuration.toml and its drop-ins in config.d
    /// are read as they are.
    Check(Check),
    /// Print the values that hold, and from which file each comes.
    Show(Show),
}

/// The file.
#[derive(Debug, Args)]
pub(super) struct File {
    /// The configuration; without it, the one that the shim would read: $CLOISTER_CONFIG, $KATA_CONF_FILE, or
    /// the first in /etc and /usr/share.
    file: Option<PathBuf>,
}

/// What to check.
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    file: File,
    /// Tell problems only.
    #[arg(long, short)]
    quiet: bool,
}

/// What to show.
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    file: File,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Command {
    /// Runs the command; returns the exit code.
    pub(super) fn run(self) -> Result<u8> {
        match self {
            Self::Check(check) => Ok(check.run()),
            Self::Show(show) => show.run(),
        }
    }
}

impl File {
    /// The file's path, and what there is to say about it.
    fn inspect(&self) -> (Option<PathBuf>, Inspection) {
        let variable = config::from_environment();
        let path = config::choose(self.file.as_deref(), variable.as_deref());
        let mut inspection = config::inspect(path.as_deref());
        inspection.notes.extend(absent(&inspection));
        (path, inspection)
    }
}

impl Check {
    fn run(self) -> u8 {
        let (path, inspection) = self.file.inspect();
        for problem in &inspection.problems {
            println!("{problem}");
        }
        if !self.quiet {
            for note in &inspection.notes {
                println!("note: {note}");
            }
            let name = name(path.as_deref());
            match inspection.problems.len() {
                0 => println!("{name}: accepted, with {} notes", inspection.notes.len()),
                count => println!("{name}: refused, with {count} problems"),
            }
        }
        u8::from(!inspection.problems.is_empty())
    }
}

impl Show {
    fn run(self) -> Result<u8> {
        let (path, inspection) = self.file.inspect();
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&as_json(&inspection))?),
            false => print!("{}", as_text(path.as_deref(), &inspection)),
        }
        Ok(u8::from(!inspection.problems.is_empty()))
    }
}

fn as_text(path: Option<&Path>, inspection: &Inspection) -> String {
    let mut text = format!("# {}\n", name(path));
    for drop_in in inspection.files.iter().skip(1) {
        let _ = writeln!(text, "# {}", drop_in.display());
    }
    let mut table = "";
    for value in &inspection.values {
        let (of, key) = value.key.rsplit_once('.').unwrap_or(("", &value.key));
        if of != table {
            let _ = writeln!(text, "\n[{of}]");
            table = of;
        }
        let from = value
            .place
            .as_ref()
            .map_or_else(|| "default".to_owned(), short);
        let _ = writeln!(text, "{:<56} # {from}", format!("{key} = {}", value.value));
    }
    let enabled = annotation::enabled(&inspection.config);
    let _ = writeln!(text, "\n# a pod may set: {}", list(&enabled));
    for note in &inspection.notes {
        let _ = writeln!(text, "# note: {note}");
    }
    for problem in &inspection.problems {
        let _ = writeln!(text, "# refused: {problem}");
    }
    text
}

fn as_json(inspection: &Inspection) -> serde_json::Value {
    let place = |place: &Option<Place>| place.as_ref().map(ToString::to_string);
    let values = inspection
        .values
        .iter()
        .map(|value| json!({"key": value.key, "value": value.value, "from": place(&value.place)}));
    let notes = inspection.notes.iter().map(
        |Note {
             place: at,
             key,
             text,
         }| { json!({"key": key, "from": place(at), "note": text}) },
    );
    let problems = inspection.problems.iter().map(|problem| {
        let Problem {
            place: at,
            key,
            reason,
            fix,
        } = problem;
        json!({"key": key, "from": place(at), "reason": reason, "fix": fix})
    });
    json!({
        "files": inspection.files,
        "values": values.collect::<Vec<_>>(),
        "annotations": annotation::enabled(&inspection.config),
        "notes": notes.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    })
}

/// What the configuration names and this machine does not have. It is no problem of the file's: another
/// machine may have it.
fn absent(inspection: &Inspection) -> Vec<Note> {
    let Config { vm, init_data, .. } = &inspection.config;
    let named = [
        ("hypervisor.qemu.path", Some(&vm.qemu)),
        ("hypervisor.qemu.kernel", Some(&vm.kernel)),
        ("hypervisor.qemu.initrd", vm.initrd.as_ref()),
        ("hypervisor.qemu.firmware", vm.firmware.as_ref()),
        ("hypervisor.qemu.igvm", vm.igvm.as_ref()),
        (
            "hypervisor.qemu.virtio_fs_daemon",
            vm.virtio_fs_daemon.as_ref(),
        ),
        ("cloister.init_data", init_data.as_ref()),
    ];
    let absent = named.into_iter().filter_map(|(key, path)| {
        // A program's bare name is looked for in PATH.
        let path = path.filter(|path| path.components().count() > 1 && !path.exists())?;
        let place = inspection.values.iter().find(|value| value.key == key);
        Some(Note {
            place: place.and_then(|value| value.place.clone()),
            key: key.to_owned(),
            text: format!("{} is not on this machine", path.display()),
        })
    });
    absent.collect()
}

fn name(path: Option<&Path>) -> String {
    path.map_or_else(
        || "no file: the built-in defaults".to_owned(),
        |path| path.display().to_string(),
    )
}

/// A place without the directories, which the head of the output has.
fn short(place: &Place) -> String {
    let name = place.path.file_name().unwrap_or_default();
    format!("{}:{}", name.to_string_lossy(), place.line)
}

fn list(names: &[String]) -> String {
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}
