//! The configuration file: few keys, each with a default, and none that is ignored.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// Where it is looked for.
pub(crate) const DEFAULT: &str = "/etc/cloister/snapshotter.toml";
/// Cap on its size, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Characters of a mount's options that mean something to overlayfs.
const SPECIAL: [char; 4] = [':', ',', '\\', '"'];

/// What holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where snapshots are.
    pub(crate) root: PathBuf,
    /// Where containerd finds the snapshotter.
    pub(crate) socket: PathBuf,
    /// containerd's own socket, to learn what runs a container.
    pub(crate) containerd: PathBuf,
    /// Runtimes whose guests pull images.
    pub(crate) runtimes: Vec<String>,
    /// Images that containerd fetches and unpacks as with any other snapshotter.
    pub(crate) unpack: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("{path:?}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file is no such configuration.
    #[error("{path:?}: {reason}")]
    Form { path: PathBuf, reason: String },
}

impl Default for Config {
    fn default() -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            root: "/var/lib/cloister/snapshotter".into(),
            socket: "/run/cloister/snapshotter.sock".into(),
            containerd: "/run/containerd/containerd.sock".into(),
            runtimes: owned(&[
                "io.containerd.cloister*",
                "io.containerd.kata*",
                "*/containerd-shim-cloister-*",
                "*/containerd-shim-kata-*",
            ]),
            unpack: owned(&["*/pause:*", "*/pause@*"]),
        }
    }
}

impl Config {
    /// Reads the named file, or the usual one if there is one, or takes the defaults.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = match named {
            Some(path) => path,
            None if Path::new(DEFAULT).exists() => Path::new(DEFAULT),
            None => return Ok(Self::default()),
        };
        let failed = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        let text = match size {
            0..=FILE_BYTES_MAX => std::fs::read_to_string(path).map_err(failed)?,
            _ => return Err(failed(std::io::Error::other("the file is too large"))),
        };
        Self::parse(&text).map_err(|reason| ConfigError::Form {
            path: path.to_owned(),
            reason,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for (key, path) in [
            ("root", &config.root),
            ("socket", &config.socket),
            ("containerd", &config.containerd),
        ] {
            let text = path.to_str().unwrap_or_default();
            if !path.is_absolute() || text.contains(SPECIAL) {
                return Err(format!(
                    "{key} = {path:?}: use an absolute path without any of {SPECIAL:?}"
                ));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ignored() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        let config = Config::parse("root = \"/a\"\nunpack = []").unwrap();
        assert_eq!((config.root, config.unpack), ("/a".into(), Vec::new()));
        for (text, named) in [
            ("rot = \"/a\"", "root"),
            ("root = 1", "root"),
            ("root = \"a\"", "absolute"),
            ("root = \"/a:b\"", "absolute"),
        ] {
            let refused = Config::parse(text).unwrap_err();
            assert!(refused.contains(named), "{refused}");
        }
    }
}
