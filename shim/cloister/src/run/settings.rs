//! The configuration of one run: the host's, and that the relay may reach the registry of the image.
//!
//! Whoever names an image on this host's command line wants it pulled: in a plain VM the relay then dials
//! its registry, besides what `[relay] allow` names. The run has a copy of the configuration for that, with a
//! drop-in of its own behind all others. A confidential guest's configuration stays as it is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image_rs::Reference;
use shim::config::{self, Config};

use super::store::Run;

/// Registries that send their clients on: to another host for tokens, or for blobs.
const FURTHER: [(&str, &[&str]); 3] = [
    (
        "docker.io",
        &[
            "registry-1.docker.io:443",
            "auth.docker.io:443",
            "production.cloudflare.docker.com:443",
        ],
    ),
    (
        "ghcr.io",
        &["ghcr.io:443", "pkg-containers.githubusercontent.com:443"],
    ),
    (
        "quay.io",
        &[
            "quay.io:443",
            "cdn.quay.io:443",
            "cdn01.quay.io:443",
            "cdn02.quay.io:443",
            "cdn03.quay.io:443",
        ],
    ),
];
const HTTPS: &str = "443";
/// The last of the drop-ins, by its name.
const DROP_IN: &str = "zz-cloister-run.toml";
const FILE: &str = "configuration.toml";
const DROP_INS: &str = "config.d";
/// The most drop-ins that are copied; the shim refuses more.
const MAX_DROP_INS: usize = 256;

/// What holds for a run, before it has a place.
#[derive(Debug)]
pub(crate) struct Settings {
    path: Option<PathBuf>,
    config: Config,
    /// What the relay is to dial besides.
    allow: Vec<String>,
}

impl Settings {
    /// Reads the configuration. What is wrong with it is told here, before anything is made.
    pub(crate) fn read(named: Option<&Path>, image: &str) -> Result<Self> {
        let variable = config::from_environment();
        let path = config::choose(named, variable.as_deref());
        let config = config::load(path.as_deref())?;
        let mut allow = Vec::new();
        if !config.tee.is_confidential() {
            allow = registry(image)?;
            let known =
                |target: &String| config.relay_allow.iter().any(|it| spelled(it) == *target);
            allow.retain(|target| !known(target));
        }
        Ok(Self {
            path,
            config,
            allow,
        })
    }

    pub(crate) fn is_confidential(&self) -> bool {
        self.config.tee.is_confidential()
    }

    /// The file that the shim is to read: the host's where it says enough.
    pub(crate) fn write(&self, run: &Run) -> Result<Option<PathBuf>> {
        if self.allow.is_empty() {
            return Ok(self.path.clone());
        }
        let directory = run.path().join("configuration");
        self.write_into(&directory)
            .with_context(|| format!("write the run's configuration into {}", directory.display()))
            .map(Some)
    }

    fn write_into(&self, directory: &Path) -> Result<PathBuf> {
        let drop_ins = directory.join(DROP_INS);
        std::fs::create_dir_all(&drop_ins)?;
        let file = directory.join(FILE);
        match &self.path {
            Some(path) => {
                std::fs::copy(path, &file)?;
                self.copy_drop_ins(path, &drop_ins)?;
            }
            None => std::fs::write(&file, "")?,
        }
        let own = self.config.relay_allow.iter().map(spelled);
        let allow: Vec<String> = own.chain(self.allow.iter().cloned()).collect();
        std::fs::write(
            drop_ins.join(DROP_IN),
            format!("[relay]\nallow = {allow:?}\n"),
        )?;
        Ok(file)
    }

    /// Those of the host's file, which are beside the file that a link leads to.
    fn copy_drop_ins(&self, path: &Path, to: &Path) -> Result<()> {
        let real = path.canonicalize()?;
        let Some(from) = real.parent().map(|parent| parent.join(DROP_INS)) else {
            return Ok(());
        };
        let Ok(entries) = std::fs::read_dir(from) else {
            return Ok(());
        };
        for entry in entries.take(MAX_DROP_INS) {
            let path = entry?.path();
            if let Some(name) = path
                .file_name()
                .filter(|_| path.extension().is_some_and(|it| it == "toml"))
            {
                std::fs::copy(&path, to.join(name))?;
            }
        }
        Ok(())
    }
}

/// Where the image's registry is, as the relay's list has it.
fn registry(image: &str) -> Result<Vec<String>> {
    let reference: Reference = image.parse().with_context(|| format!("image {image:?}"))?;
    let registry = reference.registry();
    if let Some((_, hosts)) = FURTHER.iter().find(|(name, _)| *name == registry) {
        return Ok(hosts.iter().map(|&host| host.to_owned()).collect());
    }
    let endpoint = reference.endpoint();
    let has_port = endpoint
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(vec![match has_port {
        true => endpoint.to_owned(),
        false => format!("{endpoint}:{HTTPS}"),
    }])
}

fn spelled(target: &agent_api::Target) -> String {
    match target.host().contains(':') {
        true => format!("[{}]:{}", target.host(), target.port()),
        false => format!("{}:{}", target.host(), target.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_an_image_is_allowed() {
        assert_eq!(registry("127.0.0.1:5000/a:1").unwrap(), ["127.0.0.1:5000"]);
        assert!(registry("r.example/a/b@sha256:").is_err());
        assert_eq!(registry("r.example/a/b").unwrap(), ["r.example:443"]);
        assert!(
            registry("busybox")
                .unwrap()
                .contains(&"registry-1.docker.io:443".to_owned())
        );
    }

    #[test]
    fn a_runs_configuration_is_the_hosts_with_one_thing_more() {
        let host = tempfile::tempdir().unwrap();
        let file = host.path().join("c.toml");
        std::fs::write(
            &file,
            "[hypervisor.qemu]\ndefault_memory = 333\n[relay]\nallow = [\"a.example:1\"]\n",
        )
        .unwrap();
        std::fs::create_dir(host.path().join("config.d")).unwrap();
        std::fs::write(
            host.path().join("config.d/10-x.toml"),
            "[hypervisor.qemu]\ndefault_vcpus = 3\n",
        )
        .unwrap();
        let settings = Settings::read(Some(&file), "r.example/b").unwrap();
        let written = settings.write_into(&host.path().join("run")).unwrap();
        let config = config::load(Some(&written)).unwrap();
        assert_eq!((config.vm.memory_mib, config.vm.vcpus), (333, 3));
        let allowed: Vec<_> = config.relay_allow.iter().map(spelled).collect();
        assert_eq!(allowed, ["a.example:1", "r.example:443"]);
    }

    #[test]
    fn a_confidential_guests_relay_and_a_sufficient_one_stay_as_they_are() {
        let host = tempfile::tempdir().unwrap();
        let file = host.path().join("c.toml");
        std::fs::write(&file, "[cloister]\ntee = \"sample\"\n").unwrap();
        let settings = Settings::read(Some(&file), "r.example/b").unwrap();
        assert!(settings.is_confidential() && settings.allow.is_empty());
        std::fs::write(&file, "[relay]\nallow = [\"r.example:443\"]\n").unwrap();
        assert!(
            Settings::read(Some(&file), "r.example/b")
                .unwrap()
                .allow
                .is_empty()
        );
    }
}
