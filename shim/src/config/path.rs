//! Which configuration file is read.

use std::path::{Path, PathBuf};

/// The environment variable that names the configuration file.
pub const PATH_VARIABLE: &str = "CLOISTER_CONFIG";
/// Kata's own variable, which counts where [`PATH_VARIABLE`] is not set.
pub const KATA_PATH_VARIABLE: &str = "KATA_CONF_FILE";
/// The files of which the first that exists is read where nothing names another: Cloister's, and
/// those where Kata's are, in the order in which Kata looks.
pub const DEFAULT_PATHS: &[&str] = &[
    "/etc/cloister/configuration.toml",
    "/usr/share/defaults/cloister/configuration.toml",
    "/etc/kata-containers/runtime-rs/configuration.toml",
    "/etc/kata-containers/configuration.toml",
    "/usr/share/defaults/kata-containers/runtime-rs/configuration.toml",
    "/usr/share/defaults/kata-containers/configuration.toml",
    "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration.toml",
    "/opt/kata/share/defaults/kata-containers/configuration.toml",
];

/// Which file to read: `named` by the runtime's options, else by the environment, else the first of
/// [`DEFAULT_PATHS`] that exists. `None` means the built-in defaults.
#[must_use]
pub fn choose(named: Option<&Path>, variable: Option<&Path>) -> Option<PathBuf> {
    let exists = |path: &&str| Path::new(path).exists();
    let default = || {
        DEFAULT_PATHS
            .iter()
            .find(|path| exists(path))
            .map(PathBuf::from)
    };
    named.or(variable).map(Path::to_owned).or_else(default)
}

/// The file that the environment names.
#[must_use]
pub fn from_environment() -> Option<PathBuf> {
    let named = |variable: &&str| std::env::var_os(variable).filter(|path| !path.is_empty());
    [PATH_VARIABLE, KATA_PATH_VARIABLE]
        .iter()
        .find_map(named)
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_file_comes_before_the_variable() {
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        assert_eq!(choose(Some(a), Some(b)), Some(a.to_owned()));
        assert_eq!(choose(None, Some(b)), Some(b.to_owned()));
    }
}
