//! What a pod may ask for by annotation: each sets a key of the configuration for this pod, behind the
//! operator's list and under the key's own rule.
//!
//! Kata's names: `io.katacontainers.config.{hypervisor,runtime,agent}.<name>`, and `cloister` in that
//! place for what Kata does not have. An annotation is allowed where `enable_annotations` has an
//! expression for `<name>` (of the hypervisor's), or for `runtime.<name>` and so on (of the others').
//! Nothing is ever ignored: an annotation that is not allowed, unknown, malformed or refused by its
//! key's rule fails the pod, and none takes back what protects the host or another pod.

mod size;
mod table;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use tracing::info;

use super::key::{self, Fate};
use super::problem::{ConfigError, Problem};
use super::{Config, allow, file};

/// What every such annotation starts with.
pub const PREFIX: &str = "io.katacontainers.config.";
/// The annotation that carries init-data: base64(gzip(TOML)).
pub const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// What all of Kata's start with.
const KATA: &str = "io.katacontainers.";
/// The families that are told apart.
const HYPERVISOR: &str = "hypervisor.";
const CLOISTER: &str = "cloister.";
/// Init-data has at most this many bytes. Kubernetes caps all annotations at 256 KiB.
const MAX_INIT_DATA: usize = 256 * 1024;
/// Every other value has at most this many.
const MAX_VALUE: usize = 4096;
/// One pod has at most this many.
const MAX_COUNT: usize = 256;

/// How the value of an annotation is read.
#[derive(Debug, Clone, Copy)]
enum Take {
    /// As its key's.
    Key,
    /// A size in MiB, perhaps with a unit.
    Mebibytes,
    /// Words, parted by this character.
    List(char),
    /// A program that `valid_hypervisor_paths` admits.
    Program,
    /// A program that `valid_virtio_fs_daemon_paths` admits.
    Daemon,
    /// A file that exists.
    File,
    /// This word alone.
    Just(&'static str),
    /// Read by its own module.
    InitData,
    /// Not from a pod, for this reason.
    Never(&'static str),
}

/// What is wrong: the reason and the remedy.
type Refusal = (String, String);

/// The configuration of one pod.
///
/// # Errors
/// [`ConfigError`] names each annotation that is not allowed, unknown, malformed or refused.
pub fn apply(
    mut config: Config,
    annotations: &BTreeMap<String, String>,
) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let ours = annotations.iter().filter(|(key, _)| key.starts_with(KATA));
    for (count, (key, value)) in ours.enumerate() {
        let taken = match count < MAX_COUNT {
            true => take(&mut config, key, value),
            false => Err((
                format!("a pod has at most {MAX_COUNT} of {KATA}*"),
                String::new(),
            )),
        };
        if let Err(refusal) = taken {
            problems.push(problem(key, refusal));
        }
        if count >= MAX_COUNT {
            break;
        }
    }
    if problems.is_empty()
        && let Err((key, reason, fix)) = file::consistent(&config)
    {
        problems.push(problem(key, (reason, fix.to_owned())));
    }
    match problems.is_empty() {
        true => Ok(config),
        false => Err(ConfigError { problems }),
    }
}

/// The annotations that a list enables, each behind [`PREFIX`].
#[must_use]
pub fn enabled(config: &Config) -> Vec<String> {
    let patterns = &config.enable_annotations;
    let mut names: Vec<String> = table::names()
        .filter(|name| is_enabled(patterns, name))
        .collect();
    names.sort();
    names
}

fn problem(key: &str, (reason, fix): Refusal) -> Problem {
    Problem {
        place: None,
        key: format!("annotation {}", shorten(key)),
        reason,
        fix,
    }
}

fn take(config: &mut Config, annotation: &str, text: &str) -> Result<(), Refusal> {
    let Some(name) = annotation.strip_prefix(PREFIX) else {
        return check_other(annotation, text);
    };
    let Some((key, take)) = table::find(name) else {
        return Err(unknown(name));
    };
    if let Take::Never(why) = take {
        return Err((why.to_owned(), "remove it".to_owned()));
    }
    if !is_enabled(&config.enable_annotations, name) {
        let listed = name.strip_prefix(HYPERVISOR).unwrap_or(name);
        let fix = format!("add {listed:?} to enable_annotations in [hypervisor.qemu]");
        return Err(("is not allowed".to_owned(), fix));
    }
    let most = match take {
        Take::InitData => MAX_INIT_DATA,
        _ => MAX_VALUE,
    };
    if text.len() > most {
        return Err((format!("has more than {most} bytes"), String::new()));
    }
    let value = match take {
        Take::InitData => return Ok(()),
        Take::Never(why) => Err(why.to_owned()),
        Take::Just(word) if text.trim() != word => {
            return Err((
                format!("only {word:?} can be asked for"),
                "remove it".to_owned(),
            ));
        }
        Take::Key | Take::Just(_) => value::read(&key, text),
        Take::Mebibytes => size::mebibytes(text),
        Take::List(separator) => Ok(value::list(text, separator)),
        Take::Program => admit(
            text,
            &config.valid_hypervisor_paths,
            "valid_hypervisor_paths",
        ),
        Take::Daemon => {
            let globs = &config.valid_virtio_fs_daemon_paths;
            admit(text, globs, "valid_virtio_fs_daemon_paths")
        }
        Take::File => existing(text),
    };
    let value = value.map_err(|cause| (cause, String::new()))?;
    set(config, &key, &value)
}

/// Judges a value by its key's rule and puts it into the configuration.
fn set(config: &mut Config, key: &str, value: &toml::Value) -> Result<(), Refusal> {
    let Some((_, fate)) = key::find(key) else {
        return Err((format!("there is no key {key}"), "remove it".to_owned()));
    };
    match fate {
        Fate::Moot(why) => info!(key, why, "an annotation that means nothing here"),
        Fate::Only(only) => only.check(value)?,
        Fate::Honoured(row) => {
            let mut changed = config.clone();
            row.set
                .apply(&mut changed, value)
                .map_err(|cause| (cause, String::new()))?;
            not_weaker(config, &changed)?;
            *config = changed;
        }
    }
    Ok(())
}

/// Whether a pod's configuration still protects what the operator's did.
fn not_weaker(before: &Config, after: &Config) -> Result<(), Refusal> {
    if after.disable_guest_seccomp && !before.disable_guest_seccomp {
        let reason = "the operator has seccomp profiles applied, and a pod does not take them away";
        return Err((reason.to_owned(), "remove it".to_owned()));
    }
    if before.sandbox_cgroup && !after.sandbox_cgroup {
        let reason =
            "the operator has pods counted in their cgroups, and a pod does not leave its own";
        return Err((reason.to_owned(), "remove it".to_owned()));
    }
    match (before.vm.max_vcpus, after.vm.max_vcpus) {
        (Some(most), after) if after.is_none_or(|after| after > most) => {
            let reason = format!("the operator's default_maxvcpus is {most}");
            Err((reason, "use no more, or remove it".to_owned()))
        }
        _ => Ok(()),
    }
}

fn is_enabled(patterns: &[String], name: &str) -> bool {
    match name.strip_prefix(HYPERVISOR) {
        Some(name) => allow::enables(patterns, name),
        None => allow::enables_whole(patterns, name),
    }
}

/// Kata's annotations that are no configuration.
fn check_other(annotation: &str, text: &str) -> Result<(), Refusal> {
    if text.len() > MAX_VALUE {
        return Err((format!("has more than {MAX_VALUE} bytes"), String::new()));
    }
    let malformed = |cause: &str| (format!("{:?}: {cause}", shorten(text)), String::new());
    match annotation.strip_prefix(KATA).unwrap_or(annotation) {
        // The guest has no swap, so that these ask for what is so anyway.
        "container.resource.swappiness" => match text.trim().parse::<u8>() {
            Ok(0..=100) => Ok(()),
            _ => Err(malformed("use 0 to 100")),
        },
        "container.resource.swap_in_bytes" => match text.trim().parse::<u64>() {
            Ok(_) => Ok(()),
            Err(_) => Err(malformed("is not a number of bytes")),
        },
        // Kata's runtimes write these for their own use; nothing reads them here.
        "pkg.oci.container_type" => match text {
            "pod_sandbox" | "pod_container" | "single_container" => Ok(()),
            _ => Err(malformed(
                "is not one of \"pod_sandbox\", \"pod_container\", \"single_container\"",
            )),
        },
        "pkg.oci.bundle_path" => match Path::new(text).is_absolute() {
            true => Ok(()),
            false => Err(malformed("is not an absolute path")),
        },
        "config_path" => Err((
            "a pod does not choose the operator's file".to_owned(),
            "name the file as ConfigPath of a runtime in containerd's configuration".to_owned(),
        )),
        "enable_vcpus_pinning" => Err(unknown("runtime.enable_vcpus_pinning")),
        "asset_hash_type" => Err(unknown("hypervisor.asset_hash_type")),
        name => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Refusal {
    let names: Vec<String> = table::names().collect();
    let candidates: Vec<&str> = names.iter().map(String::as_str).collect();
    let near = key::nearest(name, &candidates).map(|near| format!("did you mean {PREFIX}{near}?"));
    (
        "is not supported".to_owned(),
        near.unwrap_or_else(|| "remove it".to_owned()),
    )
}

fn admit(text: &str, globs: &[String], list: &str) -> Result<toml::Value, String> {
    match allow::admits(globs, Path::new(text)) {
        true => existing(text),
        false => Err(format!(
            "{:?} is not admitted by {list} in [hypervisor.qemu]",
            shorten(text)
        )),
    }
}

fn existing(text: &str) -> Result<toml::Value, String> {
    let path = Path::new(text);
    match path.is_absolute() && path.is_file() {
        true => Ok(toml::Value::from(text)),
        false => Err(format!(
            "{:?} is not the absolute path of a file that exists",
            shorten(text)
        )),
    }
}

/// What a message shows of a pod's words.
fn shorten(text: &str) -> String {
    /// The longest name of an annotation that Kubernetes takes has some 320.
    const MAX_SHOWN: usize = 320;
    text.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests;
