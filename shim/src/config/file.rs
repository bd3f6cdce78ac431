//! Reads `configuration.toml` and its drop-ins into a [`Config`], and tells all that is wrong with them
//! and all that is worth knowing.

mod tee;

use std::path::{Path, PathBuf};

use toml::Value;
use tracing::debug;

use super::key::{self, Fate, VMMS};
use super::problem::{ConfigError, Note, Place, Problem};
use super::source::{Setting, Source};
use super::{Config, EmptyDirs, SharedFs, Vm, confidential};

/// The table that is honoured, of those for VMMs.
const QEMU: &str = "hypervisor.qemu";
/// A boot under emulation takes some seconds; with KVM it takes a third of one.
const SLOW_BOOT_MS: i64 = 10_000;
/// Keys of which another one is the common name: shown where they are set.
const SECOND_NAMES: &[&str] = &[
    "agent.kata.dial_timeout",
    "runtime.create_container_timeout",
    "runtime.experimental_force_guest_pull",
];

/// One value that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The key with its table.
    pub key: String,
    /// The value.
    pub value: Value,
    /// Where it was set; `None` where it is the default.
    pub place: Option<Place>,
}

/// All that there is to say about a configuration.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The files that were read, in their order.
    pub files: Vec<PathBuf>,
    /// What holds, as far as there is no problem with it.
    pub config: Config,
    /// Each key that is honoured, with its value.
    pub values: Vec<Effective>,
    /// What is accepted and worth knowing.
    pub notes: Vec<Note>,
    /// Why it is refused, where there is anything here.
    pub problems: Vec<Problem>,
}

/// Reads the file, or the built-in defaults where there is none.
///
/// # Errors
/// [`ConfigError`] has each problem with its file, line and key.
pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let Inspection {
        config,
        notes,
        problems,
        ..
    } = inspect(path);
    for note in notes {
        debug!(%note, "configuration");
    }
    match problems.is_empty() {
        true => Ok(config),
        false => Err(ConfigError { problems }),
    }
}

/// Reads the file and says everything about it.
#[must_use]
pub fn inspect(path: Option<&Path>) -> Inspection {
    let mut inspection = Inspection::default();
    let source = match path {
        Some(path) => Source::read(path, &mut inspection.problems),
        None => Source::default(),
    };
    inspection.check(&source);
    inspection.apply(&source);
    inspection.settle(&source);
    inspection.values = effective(&inspection.config, &source);
    inspection.files = source.files;
    // In the order in which a person reads the file.
    let line = |place: &Option<Place>| place.as_ref().map(|place| (place.path.clone(), place.line));
    inspection
        .problems
        .sort_by_key(|problem| line(&problem.place));
    inspection.notes.sort_by_key(|note| line(&note.place));
    inspection
}

impl Inspection {
    fn refuse(
        &mut self,
        place: &Place,
        key: &str,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.problems.push(Problem {
            place: Some(place.clone()),
            key: key.to_owned(),
            reason: reason.into(),
            fix: fix.into(),
        });
    }

    fn note(&mut self, place: &Place, key: &str, text: impl Into<String>) {
        self.notes.push(Note {
            place: Some(place.clone()),
            key: key.to_owned(),
            text: text.into(),
        });
    }

    /// Looks at every table and key, whether it is known and what becomes of it.
    fn check(&mut self, source: &Source) {
        let unknown: Vec<(&String, &Place)> = source
            .tables
            .iter()
            .filter(|(table, _)| !key::is_table(table))
            .collect();
        let inside = |path: &str, table: &str| {
            path.strip_prefix(table)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        for (table, place) in &unknown {
            if !unknown.iter().any(|(outer, _)| inside(table, outer)) {
                let near = key::suggest_table(table);
                self.refuse(place, table, "unknown table", did_you_mean(near));
            }
        }
        let chosen = self.choose_vmm(source);
        for (path, setting) in &source.settings {
            if !unknown.iter().any(|(table, _)| inside(path, table)) {
                self.check_key(path, setting, &chosen);
            }
        }
    }

    fn check_key(&mut self, path: &str, setting: &Setting, chosen: &str) {
        let Setting { value, place } = setting;
        let Some((kind, fate)) = key::find(path) else {
            match key::is_table(path) {
                true => self.refuse(place, path, "is a table", format!("write [{path}]")),
                false => self.refuse(place, path, "unknown key", did_you_mean(key::suggest(path))),
            }
            return;
        };
        if let Err(cause) = kind.check(value) {
            return self.refuse(place, path, cause, "");
        }
        // What another VMM would be told is only read.
        if path.starts_with("hypervisor.") && (chosen != QEMU || !path.starts_with(QEMU)) {
            return;
        }
        match fate {
            Fate::Honoured(_) => {}
            Fate::Moot(why) => {
                if !key::asks_for_nothing(value) {
                    self.note(place, path, why);
                }
            }
            Fate::Only(only) => match only.check(value) {
                Err((reason, fix)) => self.refuse(place, path, reason, fix),
                Ok(()) => {
                    if let Some(why) = only.note(value) {
                        self.note(place, path, why);
                    }
                }
            },
        }
    }

    /// The table of the VMM that the file asks for: by name, or because there is no other.
    fn choose_vmm(&mut self, source: &Source) -> String {
        let named = source.get("runtime.hypervisor_name");
        let name = named
            .and_then(|setting| setting.value.as_str())
            .unwrap_or_default();
        let tables: Vec<(String, &Place)> = VMMS
            .iter()
            .map(|vmm| format!("hypervisor.{vmm}"))
            .filter_map(|table| Some((table.clone(), source.tables.get(&table)?)))
            .collect();
        let chosen = match (name, tables.as_slice()) {
            ("", []) => return QEMU.to_owned(),
            ("", [(only, _)]) => only.clone(),
            ("", [(first, place), ..]) => {
                let reason = "there is a table for more than one VMM";
                self.refuse(
                    place,
                    first,
                    reason,
                    "name one as hypervisor_name in [runtime]",
                );
                return first.clone();
            }
            (name, _) => format!("hypervisor.{name}"),
        };
        for (table, place) in &tables {
            if *table != chosen {
                self.note(place, table, format!("[{chosen}] is the one that counts"));
            }
        }
        if chosen != QEMU && VMMS.contains(&chosen.trim_start_matches("hypervisor.")) {
            let at = tables.iter().find(|(table, _)| *table == chosen);
            let place = at
                .map(|(_, place)| *place)
                .or(named.map(|setting| &setting.place));
            if let Some(place) = place {
                let reason = "VMs run under QEMU in this version, and no pod runs under another VMM than \
                              the one that it was promised";
                let fix = "use a file with [hypervisor.qemu], as Kata's configuration-qemu.toml";
                self.refuse(place, &chosen, reason, fix);
            }
        }
        chosen
    }

    /// Puts what is honoured into the configuration, in the order of the rows.
    fn apply(&mut self, source: &Source) {
        let tables = key::tables();
        for (table, keys) in tables.filter(|(table, _)| counts(table)) {
            for row in keys.honoured {
                let path = format!("{table}.{}", row.name);
                let Some(Setting { value, place }) = source.get(&path) else {
                    continue;
                };
                // Another type was refused when the key was looked at.
                let typed = key::find(&path).is_some_and(|(kind, _)| kind.check(value).is_ok());
                if let Err(cause) = row.set.apply(&mut self.config, value)
                    && typed
                {
                    self.refuse(place, &path, cause, "");
                }
            }
        }
    }

    /// What no key says alone.
    fn settle(&mut self, source: &Source) {
        let at = |name: &str| source.get(&format!("{QEMU}.{name}"));
        let given = |name: &str| at(name).filter(|setting| !key::asks_for_nothing(&setting.value));
        match (given("kernel"), given("image"), given("initrd")) {
            // Kata's kernel and image are one guest; ours is another one.
            (kernel, Some(_), None) => {
                let Vm {
                    kernel: own,
                    initrd,
                    ..
                } = Vm::default();
                if let Some(kernel) = kernel {
                    let text = format!(
                        "belongs to the image, which is Kata's guest; Cloister boots its own, {}",
                        own.display()
                    );
                    self.note(&kernel.place, &format!("{QEMU}.kernel"), text);
                }
                self.config.vm.kernel = own;
                self.config.vm.initrd = initrd;
            }
            // A kernel of one's own comes with an initrd of one's own, or with none.
            (Some(_), None, None) => self.config.vm.initrd = None,
            _ => {}
        }
        self.settle_tee(source);
        if at("shared_fs").is_none() && self.config.tee.is_confidential() {
            self.config.vm.shared_fs = SharedFs::None;
        }
        let problems = consistent(&self.config).err().into_iter();
        for (key, reason, fix) in problems {
            let place = source.get(key).map(|setting| setting.place.clone());
            self.problems.push(Problem {
                place: place.or_else(|| source.files.first().cloned().map(Place::file)),
                key: key.to_owned(),
                reason,
                fix: fix.to_owned(),
            });
        }
        self.note_words(source);
    }

    fn note_words(&mut self, source: &Source) {
        let path = format!("{QEMU}.kernel_params");
        let words = source.get(&path).filter(|setting| {
            let text = setting.value.as_str().unwrap_or_default();
            text.split_ascii_whitespace()
                .any(|word| word.starts_with("agent."))
        });
        if let Some(setting) = words {
            self.note(
                &setting.place,
                &path,
                "words of Kata's agent (agent.*) are not read by Cloister's",
            );
        }
        let path = "agent.kata.reconnect_timeout_ms";
        let short = source.get(path).filter(|setting| {
            setting
                .value
                .as_integer()
                .is_some_and(|ms| ms < SLOW_BOOT_MS)
        });
        if let Some(setting) = short {
            let text = "is the time for the whole boot: enough with KVM, and too short without";
            self.note(&setting.place, path, text);
        }
    }
}

/// Whether the keys of a table can set something.
fn counts(table: &str) -> bool {
    table == QEMU || !table.starts_with("hypervisor.")
}

/// Whether the parts of a configuration go together; else the key, the reason and the remedy.
pub(super) fn consistent(config: &Config) -> Result<(), (&'static str, String, &'static str)> {
    let vm = &config.vm;
    if config.tee.is_confidential() && vm.shared_fs == SharedFs::VirtioFs {
        return Err((
            "hypervisor.qemu.shared_fs",
            "files of the host are not shared with a confidential guest".to_owned(),
            "set shared_fs = \"none\"",
        ));
    }
    confidential::consistent(config)?;
    empty_dirs(config)?;
    if let Some(most) = vm.max_vcpus.filter(|most| vm.vcpus > *most) {
        return Err((
            "hypervisor.qemu.default_vcpus",
            format!("{} is more than default_maxvcpus = {most}", vm.vcpus),
            "",
        ));
    }
    if let Some(most) = vm.max_memory_mib.filter(|most| vm.memory_mib > *most) {
        return Err((
            "hypervisor.qemu.default_memory",
            format!("{} is more than default_maxmemory = {most}", vm.memory_mib),
            "",
        ));
    }
    Ok(())
}

/// Whether guests can have the disks that emptyDirs are to be on.
fn empty_dirs(config: &Config) -> Result<(), (&'static str, String, &'static str)> {
    let key = "runtime.emptydir_mode";
    let told = |why: &str| format!("{:?}: {why}", config.empty_dirs.name());
    match config.empty_dirs {
        EmptyDirs::Plain if config.tee.is_confidential() => Err((
            key,
            told("what a confidential guest writes would lie on the host as it is"),
            "set it to \"block-encrypted\"",
        )),
        EmptyDirs::Plain | EmptyDirs::Encrypted if config.vm.disable_block_devices => Err((
            key,
            told("disable_block_device_use lets guests have no disks"),
            "unset disable_block_device_use, or set it to \"shared-fs\"",
        )),
        EmptyDirs::Shared | EmptyDirs::Plain | EmptyDirs::Encrypted => Ok(()),
    }
}

fn effective(config: &Config, source: &Source) -> Vec<Effective> {
    let mut values = Vec::new();
    for (table, keys) in key::tables().filter(|(table, _)| counts(table)) {
        for row in keys.honoured {
            let key = format!("{table}.{}", row.name);
            let place = source.get(&key).map(|setting| setting.place.clone());
            if place.is_some() || !SECOND_NAMES.contains(&key.as_str()) {
                let value = (row.get)(config);
                values.push(Effective { key, value, place });
            }
        }
    }
    values
}

fn did_you_mean(near: Option<String>) -> String {
    near.map_or_else(
        || "remove it".to_owned(),
        |near| format!("did you mean {near}?"),
    )
}

#[cfg(test)]
mod tests;
