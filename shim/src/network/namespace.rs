//! A network namespace that is not the host's, and work inside of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};

use super::NetworkError;
use super::record::{Identity, Record};

/// The network namespaces that nobody may enter for a pod: the shim's, which is the host's, and that of
/// the host's first process.
const OF_THE_HOST: [&str; 2] = ["/proc/self/ns/net", "/proc/1/ns/net"];

/// The namespace of a pod.
#[derive(Debug)]
pub(super) struct Namespace {
    path: PathBuf,
    identity: Identity,
    file: File,
}

impl Namespace {
    /// Opens the namespace at a path.
    ///
    /// # Errors
    /// [`NetworkError::Host`] where it is the host's; [`NetworkError::Namespace`] where there is none.
    pub(super) fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace {
            path: path.to_owned(),
            step: "open it; the container network interface makes it before the pod",
            source,
        };
        // What is no namespace must not make an open wait.
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(failed)?;
        let identity = identity(&file.metadata().map_err(failed)?);
        if OF_THE_HOST
            .iter()
            .filter_map(|path| fs::metadata(path).ok())
            .any(|host| identity == self::identity(&host))
        {
            return Err(NetworkError::Host);
        }
        Ok(Self {
            path: path.to_owned(),
            identity,
            file,
        })
    }

    /// The namespace of a record, if it is still there.
    pub(super) fn recorded(record: &Record) -> Option<Self> {
        let namespace = Self::open(&record.path).ok()?;
        (namespace.identity == record.identity).then_some(namespace)
    }

    /// A record of it, with no interface.
    pub(super) fn record(&self) -> Record {
        Record {
            path: self.path.clone(),
            identity: self.identity,
            links: Vec::new(),
        }
    }

    /// Does something in it, in a thread that is never anywhere else, and returns when it is done.
    ///
    /// # Errors
    /// That of the work, or why the namespace cannot be entered.
    pub(super) fn inside<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let Self { path, file, .. } = self;
        let failed = |step, source| NetworkError::Namespace { path, step, source };
        let thread = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work()));
        let thread = match thread {
            Ok(thread) => thread,
            Err(source) => return Err(failed("start a thread for it", source)),
        };
        match thread.join() {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(errno)) => Err(failed("enter it", errno.into())),
            Err(_) => Err(failed(
                "the thread in it ended early",
                io::ErrorKind::Other.into(),
            )),
        }
    }
}

/// Does something in a new namespace, in which nothing is, and returns when it is done.
///
/// # Errors
/// That of the work, or why there is no namespace.
pub(super) fn inside_new<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let failed = |step, source| NetworkError::New { step, source };
    let thread = std::thread::Builder::new()
        .name("network".to_owned())
        .spawn(move || unshare(CloneFlags::CLONE_NEWNET).map(|()| work()))
        .map_err(|source| failed("start a thread for it", source))?;
    match thread.join() {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(errno)) => Err(failed("make it", errno.into())),
        Err(_) => Err(failed(
            "the thread in it ended early",
            io::ErrorKind::Other.into(),
        )),
    }
}

fn identity(metadata: &fs::Metadata) -> Identity {
    Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespace_is_refused_by_whatever_path() {
        let thread = format!("/proc/{}/ns/net", std::process::id());
        for path in ["/proc/self/ns/net", thread.as_str()] {
            let refused = Namespace::open(Path::new(path)).unwrap_err();
            assert!(matches!(refused, NetworkError::Host), "{refused}");
        }
    }

    #[test]
    fn what_is_no_namespace_cannot_be_entered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let namespace = Namespace::open(file.path()).unwrap();
        let refused = namespace.inside(|| Ok(())).unwrap_err();
        assert!(
            matches!(
                refused,
                NetworkError::Namespace {
                    step: "enter it",
                    ..
                }
            ),
            "{refused}"
        );
        let absent = Namespace::open(Path::new("/nonexistent/ns")).unwrap_err();
        assert!(absent.to_string().contains("/nonexistent/ns"), "{absent}");
    }
}
