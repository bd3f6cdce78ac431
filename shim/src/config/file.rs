//! Reads `configuration.toml` and its drop-ins into a [`Config`].
//!
//! Drop-ins are the files `config.d/*.toml` beside the file, in the order of their names; tables
//! are merged, everything else is replaced, as Kata does it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::Target;
use hypervisor::{Accel, Machine};
use serde::Deserialize;
use toml::{Table, Value};

use super::key::{self, Problem};
use super::{Config, ConfigError, SharedFs, Tee, kernel_words, scratch_size};

/// No configuration of people's is larger.
const MAX_FILE: u64 = 1024 * 1024;
/// No directory of drop-ins has more.
const MAX_DROP_INS: usize = 256;
/// Why the value of `experimental` that turns guest pull on is spelt so.
const FORCE_GUEST_PULL: &str = "force_guest_pull";

/// Reads the file, or the built-in defaults where there is none.
///
/// # Errors
/// [`ConfigError`] names the file, the key and what is wrong with it.
pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let Some(path) = path else {
        return Ok(Config::default());
    };
    let mut table = read_table(path)?;
    for drop_in in drop_ins(path)? {
        merge(&mut table, read_table(&drop_in)?);
    }
    key::strip_unsupported(&mut table);
    let text = table.to_string();
    let file: FileRoot = toml::from_str(&text).map_err(|cause| ConfigError::Syntax {
        path: path.to_owned(),
        cause: cause.to_string(),
    })?;
    file.check(path)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileRoot {
    hypervisor: Hypervisors,
    agent: Agents,
    runtime: Runtime,
    cloister: Cloister,
    relay: Relay,
    mirror: Mirror,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Hypervisors {
    qemu: Qemu,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Qemu {
    path: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    machine_type: Option<Machine>,
    firmware: Option<PathBuf>,
    default_vcpus: Option<u32>,
    default_memory: Option<u32>,
    kernel_params: String,
    enable_annotations: Vec<String>,
    shared_fs: Option<String>,
    virtio_fs_daemon: Option<PathBuf>,
    virtio_fs_extra_args: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Agents {
    kata: Agent,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Agent {
    reconnect_timeout_ms: Option<u64>,
    /// In seconds.
    create_container_timeout: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Runtime {
    name: Option<String>,
    hypervisor_name: Option<String>,
    agent_name: Option<String>,
    experimental: Vec<String>,
    disable_guest_seccomp: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Cloister {
    accel: Option<Accel>,
    tee: Option<Tee>,
    init_data: Option<PathBuf>,
    /// In MiB.
    scratch_disk: Option<u32>,
    scratch_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Relay {
    allow: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Mirror {
    directory: Option<PathBuf>,
    size_mib: Option<u64>,
}

impl FileRoot {
    fn check(self, path: &Path) -> Result<Config, ConfigError> {
        let refuse = |key: &str, cause: String| ConfigError::Value {
            path: path.to_owned(),
            key: key.to_owned(),
            cause,
        };
        self.runtime
            .check_names()
            .map_err(|(key, cause)| refuse(key, cause))?;
        let mut config = Config::default();
        self.hypervisor
            .qemu
            .apply(&mut config)
            .map_err(|(key, cause)| refuse(key, cause))?;
        let millis = self
            .agent
            .kata
            .reconnect_timeout_ms
            .map(Duration::from_millis);
        config.boot_timeout = millis.unwrap_or(config.boot_timeout);
        let seconds = self
            .agent
            .kata
            .create_container_timeout
            .map(Duration::from_secs);
        config.create_timeout = seconds.unwrap_or(config.create_timeout);
        for (key, zero) in [
            (
                "agent.kata.reconnect_timeout_ms",
                config.boot_timeout.is_zero(),
            ),
            (
                "agent.kata.create_container_timeout",
                config.create_timeout.is_zero(),
            ),
        ] {
            if zero {
                return Err(refuse(
                    key,
                    "a timeout of zero lets nothing succeed".to_owned(),
                ));
            }
        }
        config.force_guest_pull = self
            .runtime
            .experimental
            .iter()
            .any(|word| word == FORCE_GUEST_PULL);
        let seccomp = self.runtime.disable_guest_seccomp;
        config.disable_guest_seccomp = seccomp.unwrap_or(config.disable_guest_seccomp);
        self.cloister
            .apply(&mut config)
            .map_err(|(key, cause)| refuse(key, cause))?;
        for entry in &self.relay.allow {
            let target: Target = entry
                .parse()
                .map_err(|cause: agent_api::LineError| refuse("relay.allow", cause.to_string()))?;
            config.relay_allow.push(target);
        }
        self.mirror
            .apply(&mut config.mirror)
            .map_err(|(key, cause)| refuse(key, cause))?;
        Ok(config)
    }
}

impl Cloister {
    fn apply(self, config: &mut Config) -> Result<(), (&'static str, String)> {
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        config.vm.accel = self.accel.unwrap_or_default();
        config.tee = self.tee.unwrap_or_default();
        config.init_data = given(self.init_data);
        config.scratch_mib = self.scratch_disk.unwrap_or_default();
        scratch_size(config.scratch_mib).map_err(|cause| ("cloister.scratch_disk", cause))?;
        if let Some(path) = given(self.scratch_dir) {
            if !path.is_absolute() {
                return Err((
                    "cloister.scratch_dir",
                    format!("{path:?} is not an absolute path"),
                ));
            }
            config.scratch_dir = path;
        }
        Ok(())
    }
}

impl Runtime {
    fn check_names(&self) -> Result<(), (&'static str, String)> {
        let only = |key, value: &Option<String>, allowed: &[&str]| match value.as_deref() {
            None => Ok(()),
            Some(value) if allowed.contains(&value) => Ok(()),
            Some(value) => Err((key, format!("{value:?} is not one of {allowed:?}"))),
        };
        only("runtime.name", &self.name, &["virt_container", "cloister"])?;
        only("runtime.hypervisor_name", &self.hypervisor_name, &["qemu"])?;
        only(
            "runtime.agent_name",
            &self.agent_name,
            &["kata", "cloister"],
        )?;
        match self
            .experimental
            .iter()
            .find(|word| *word != FORCE_GUEST_PULL)
        {
            Some(word) => Err((
                "runtime.experimental",
                format!("{word:?} is not one of [{FORCE_GUEST_PULL:?}]"),
            )),
            None => Ok(()),
        }
    }
}

impl Mirror {
    fn apply(self, mirror: &mut super::Mirror) -> Result<(), (&'static str, String)> {
        mirror.size_mib = self.size_mib.unwrap_or(mirror.size_mib);
        if let Some(directory) = self.directory {
            // Shims of one node are started in different places.
            if !directory.is_absolute() {
                let cause = format!("{directory:?} is not an absolute path");
                return Err(("mirror.directory", cause));
            }
            mirror.directory = directory;
        }
        Ok(())
    }
}

impl Qemu {
    fn apply(self, config: &mut Config) -> Result<(), (&'static str, String)> {
        let vm = &mut config.vm;
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        vm.qemu = given(self.path).unwrap_or(std::mem::take(&mut vm.qemu));
        if let Some(kernel) = given(self.kernel) {
            // A kernel of one's own comes with an initrd of one's own, or with none.
            vm.kernel = kernel;
            vm.initrd = None;
        }
        vm.initrd = given(self.initrd).or(vm.initrd.take());
        vm.firmware = given(self.firmware);
        vm.machine = self.machine_type.unwrap_or(vm.machine);
        vm.vcpus = self.default_vcpus.unwrap_or(vm.vcpus);
        vm.memory_mib = self.default_memory.unwrap_or(vm.memory_mib);
        vm.kernel_params = kernel_words(&self.kernel_params)
            .map_err(|cause| ("hypervisor.qemu.kernel_params", cause))?;
        vm.shared_fs = match self.shared_fs.as_deref() {
            None | Some("virtio-fs") => SharedFs::VirtioFs,
            Some("none") => SharedFs::None,
            Some(other) => {
                let cause = format!("{other:?} is not one of [\"virtio-fs\", \"none\"]");
                return Err(("hypervisor.qemu.shared_fs", cause));
            }
        };
        vm.virtio_fs_daemon = given(self.virtio_fs_daemon);
        vm.virtio_fs_extra_args = self.virtio_fs_extra_args;
        for name in &self.enable_annotations {
            let plain = name == ".*"
                || name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
            if !plain || name.is_empty() {
                let cause = format!("{name:?} is neither the name of an annotation nor \".*\"");
                return Err(("hypervisor.qemu.enable_annotations", cause));
            }
        }
        config.enable_annotations = self.enable_annotations;
        Ok(())
    }
}

fn read_table(path: &Path) -> Result<Table, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(read)?;
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(read)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > MAX_FILE) {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            cap: MAX_FILE,
        });
    }
    let table: Table = text
        .parse()
        .map_err(|cause: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            cause: cause.to_string(),
        })?;
    match key::check(&table) {
        None => Ok(table),
        Some(Problem::Unsupported(key)) => Err(ConfigError::UnsupportedKey {
            path: path.to_owned(),
            key,
        }),
        Some(Problem::Unknown(key, suggestion)) => Err(ConfigError::UnknownKey {
            path: path.to_owned(),
            key,
            suggestion,
        }),
    }
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    // A link leads to the real file, whose directory the drop-ins are in.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(directory) = real.parent().map(|parent| parent.join("config.d")) else {
        return Ok(Vec::new());
    };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(ConfigError::Read {
                path: directory,
                source,
            });
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .take(MAX_DROP_INS)
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    paths.sort();
    Ok(paths)
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("configuration.toml");
        std::fs::write(&path, text).unwrap();
        load(Some(&path))
    }

    #[test]
    fn no_file_means_the_defaults_and_a_named_one_must_exist() {
        assert_eq!(load(None).unwrap(), Config::default());
        let error = load(Some(Path::new("/nonexistent.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.toml"), "{error}");
    }

    #[test]
    fn keys_of_kata_and_of_cloister_take_effect() {
        let config = load_text(
            r#"
            [hypervisor.qemu]
            kernel = "/k"
            machine_type = "microvm"
            default_vcpus = 2
            default_memory = 300
            kernel_params = "quiet a=b"
            enable_annotations = ["cc_init_data"]
            shared_fs = "none"
            enable_iommu = false
            [agent.kata]
            reconnect_timeout_ms = 1500
            [runtime]
            experimental = ["force_guest_pull"]
            disable_guest_seccomp = false
            [cloister]
            accel = "tcg"
            tee = "sample"
            scratch_disk = 1024
            scratch_dir = "/scratch"
            [relay]
            allow = ["Registry.example:443"]
            [mirror]
            directory = "/big/blobs"
            size_mib = 0
            "#,
        )
        .unwrap();
        assert_eq!(config.vm.kernel, Path::new("/k"));
        assert_eq!(config.vm.initrd, None);
        assert_eq!((config.vm.vcpus, config.vm.memory_mib), (2, 300));
        assert_eq!(config.vm.kernel_params, ["quiet", "a=b"]);
        assert_eq!(config.vm.shared_fs, SharedFs::None);
        assert_eq!(config.boot_timeout, Duration::from_millis(1500));
        assert!(config.force_guest_pull && !config.disable_guest_seccomp);
        assert_eq!((config.tee, config.vm.accel), (Tee::Sample, Accel::Tcg));
        assert_eq!(config.scratch_mib, 1024);
        assert_eq!(config.scratch_dir, Path::new("/scratch"));
        assert_eq!(config.relay_allow[0].to_string(), "registry.example:443");
        assert_eq!(config.mirror.directory, Path::new("/big/blobs"));
        assert!(config.mirror.open().is_none() && Config::default().mirror.open().is_some());
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, named) in [
            ("[relay]\nallow = [\"no-port\"]", "relay.allow"),
            ("[runtime]\nexperimental = [\"x\"]", "runtime.experimental"),
            (
                "[runtime]\nhypervisor_name = \"clh\"",
                "runtime.hypervisor_name",
            ),
            ("[hypervisor.qemu]\nshared_fs = \"9p\"", "shared_fs"),
            (
                "[hypervisor.qemu]\nenable_annotations = [\"a|b\"]",
                "enable_annotations",
            ),
            (
                "[agent.kata]\nreconnect_timeout_ms = 0",
                "reconnect_timeout_ms",
            ),
            ("[cloister]\ntee = \"snp\"", "tee"),
            ("[cloister]\nscratch_disk = 63", "cloister.scratch_disk"),
            ("[cloister]\nscratch_disk = -1", "scratch_disk"),
            ("[cloister]\nscratch_dir = \"tmp\"", "cloister.scratch_dir"),
            ("[mirror]\ndirectory = \"blobs\"", "mirror.directory"),
            ("[mirror]\nsize_mib = -1", "size_mib"),
            ("[mirror]\nsize_mb = 1", "mirror.size_mib?"),
            ("[cloister]\naccell = \"kvm\"", "cloister.accel?"),
        ] {
            let error = load_text(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn drop_ins_are_merged_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("configuration.toml");
        std::fs::write(
            &path,
            "[hypervisor.qemu]\ndefault_vcpus = 1\ndefault_memory = 100",
        )
        .unwrap();
        let drop_ins = dir.path().join("config.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(
            drop_ins.join("20-b.toml"),
            "[hypervisor.qemu]\ndefault_vcpus = 3",
        )
        .unwrap();
        std::fs::write(
            drop_ins.join("10-a.toml"),
            "[hypervisor.qemu]\ndefault_vcpus = 2",
        )
        .unwrap();
        let config = load(Some(&path)).unwrap();
        assert_eq!((config.vm.vcpus, config.vm.memory_mib), (3, 100));
        std::fs::write(
            drop_ins.join("30-c.toml"),
            "[hypervisor.qemu]\nbogus_key = 3",
        )
        .unwrap();
        assert!(
            load(Some(&path))
                .unwrap_err()
                .to_string()
                .contains("30-c.toml")
        );
    }
}
