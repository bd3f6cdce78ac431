//! How containerd runs the shim: `start` puts up a server for a pod, or names the one that is
//! there; `delete` cleans up after a server that is dead; without a verb it is the server.
//!
//! The `containerd-shim` crate's own entry point is not used: its server speaks version 3 of the
//! task service alone, which containerd 1.x does not, it needs an address for events, which CRI-O
//! does not give, and it reaps children that others here wait for.
//! <https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md>

mod asked;
#[cfg(test)]
mod crio;
mod delete;
mod serve;
mod start;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use containerd_shim::Flags;
use thiserror::Error;

use crate::{hooks, idmap, rootfs};

/// The name that containerd knows this runtime by.
pub const RUNTIME: &str = "io.containerd.cloister.v2";
/// The annotation that tells containerd which mounts it leaves to the shim (2.2, `docs/mounts.md`).
const ALLOW_MOUNTS: &str = "containerd.io/runtime-allow-mounts";
/// Where containerd 1.x lets shims have their sockets.
const SOCKET_DIRECTORY: &str = "/run/containerd/s";

/// The environment variable that names another directory for them: a user other than root has no part in
/// containerd's.
pub const SOCKETS_VARIABLE: &str = "CLOISTER_SHIM_SOCKETS";
/// What of a hash is in the name of a socket there: a user's directory has a longer path than containerd's.
const SHORT_NAME: usize = 32;

/// Why a verb failed.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The command line is not containerd's.
    #[error("command line: {0}")]
    Flags(#[source] containerd_shim::Error),
    /// A flag that the verb needs is missing or odd.
    #[error("flag -{flag}: {cause}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// The verb is none of containerd's.
    #[error("unknown verb {0:?}: use start or delete, or none to serve")]
    Verb(String),
    /// The bundle's specification cannot be read.
    #[error("bundle: {0}")]
    Spec(#[source] std::io::Error),
    /// The runtime's options cannot be read.
    #[error("{0}")]
    Options(String),
    /// The annotations make no sense.
    #[error(transparent)]
    Group(#[from] crate::spec::group::GroupError),
    /// A container's pod has no shim.
    #[error("sandbox {sandbox} is not running: no shim answers at {address}")]
    NoSandbox {
        /// The pod.
        sandbox: String,
        /// Where its shim should be.
        address: String,
    },
    /// The id has a shim already.
    #[error("sandbox {0} is running already")]
    Running(String),
    /// The server did not come up.
    #[error("start of the server: {0}")]
    Server(String),
    /// A step on the host failed.
    #[error("{step}: {source}")]
    Step {
        /// The step.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(std::io::Error) -> BootstrapError {
    move |source| BootstrapError::Step { step, source }
}

/// Does what containerd's command line asks for.
///
/// # Errors
/// [`BootstrapError`]; containerd shows its text.
pub fn run(arguments: &[std::ffi::OsString]) -> Result<(), BootstrapError> {
    let flags = containerd_shim::parse(arguments).map_err(BootstrapError::Flags)?;
    if flags.version {
        println!("{RUNTIME} {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return info();
    }
    if flags.action == hooks::HOLD {
        return hooks::hold().map_err(step("hold a namespace"));
    }
    if flags.action == idmap::USERS {
        return idmap::hold().map_err(step("hold a user namespace"));
    }
    check(&flags)?;
    match flags.action.as_str() {
        "start" => start::start(&flags),
        "delete" => delete::delete(&flags),
        "" => serve::serve(&flags),
        other => Err(BootstrapError::Verb(other.to_owned())),
    }
}

/// Answers containerd's question before any pod: the name, what of a root file system is left to us, and nothing to
/// check specifications by.
fn info() -> Result<(), BootstrapError> {
    use containerd_shim_protos::protobuf::Message;
    let info = containerd_shim_protos::types::introspection::RuntimeInfo {
        name: RUNTIME.to_owned(),
        annotations: HashMap::from([(ALLOW_MOUNTS.to_owned(), rootfs::ALLOWED.to_owned())]),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().unwrap_or_default();
    std::io::Write::write_all(&mut std::io::stdout(), &bytes).map_err(step("write the answer"))
}

fn check(flags: &Flags) -> Result<(), BootstrapError> {
    for (flag, value) in [("id", &flags.id), ("namespace", &flags.namespace)] {
        if !crate::state_dir::is_plain_name(value) {
            return Err(BootstrapError::Flag {
                flag,
                cause: format!("{value:?} is not a name"),
            });
        }
    }
    Ok(())
}

/// The bundle: named, or where containerd runs us.
fn bundle(flags: &Flags) -> Result<PathBuf, BootstrapError> {
    if flags.bundle.is_empty() {
        return std::env::current_dir().map_err(step("find the bundle"));
    }
    Ok(PathBuf::from(&flags.bundle))
}

/// The path of a sandbox's socket: short, and the same for all who know containerd, namespace and
/// id. It is the address that containerd's own shims use, in the directory that containerd names or in theirs.
fn socket_path(
    containerd: &str,
    namespace: &str,
    sandbox: &str,
    directory: Option<&Path>,
) -> PathBuf {
    use sha2::Digest;
    let name = format!("{containerd}/{namespace}/{sandbox}");
    let mut name = hex::encode(sha2::Sha256::digest(name));
    let Some(directory) = std::env::var_os(SOCKETS_VARIABLE) else {
        return directory
            .unwrap_or_else(|| Path::new(SOCKET_DIRECTORY))
            .join(name);
    };
    name.truncate(SHORT_NAME);
    PathBuf::from(directory).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_containerds_shims_have_it() {
        let path = socket_path("/run/containerd/containerd.sock", "default", "123", None);
        let expected =
            "/run/containerd/s/0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0";
        assert_eq!(path, PathBuf::from(expected));
        let named = socket_path("c", "n", "s", Some(Path::new("/run/other")));
        assert!(named.starts_with("/run/other"));
    }

    #[test]
    fn odd_names_are_refused() {
        let flags = |id: &str| Flags {
            id: id.into(),
            namespace: "ns".into(),
            ..Flags::default()
        };
        assert!(check(&flags("a")).is_ok());
        assert!(check(&flags("../a")).is_err());
        assert!(check(&Flags::default()).is_err());
    }
}
