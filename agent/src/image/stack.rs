//! A root file system of layers that the host gave as disks: the request says which are above which.
//!
//! ```text
//!   lowerdir=A:B   mount points of this request, the highest first
//!   upperdir=C/upper  workdir=C/work   on another; without them what is written stays in the image store
//! ```

use std::path::{Path, PathBuf};

use agent_api::{GuestError, agent};

use super::{Images, PHASE, overlay, place};
use crate::fault::{OrFail, invalid};

/// The driver of such a request; Kata's name.
pub const STACK: &str = "overlayfs";

/// Which mount points are what.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    lowers: Vec<PathBuf>,
    writable: Option<PathBuf>,
}

impl Images {
    /// Mounts a stack of what is mounted at `points`; answers where.
    ///
    /// # Errors
    ///
    /// The request names something else, or the step that failed.
    pub async fn stack(
        &self,
        container: &str,
        storage: &agent::Storage,
        points: &[PathBuf],
    ) -> Result<PathBuf, GuestError> {
        let asked = Asked::parse(&storage.options, points)?;
        if asked.writable.is_none() {
            self.ready().await?;
        }
        let directory = place(container);
        let mount = move || overlay::stack(&directory, &asked.lowers, asked.writable.as_deref());
        tokio::task::spawn_blocking(mount)
            .await
            .or_internal(PHASE, "mount layers")?
    }
}

impl Asked {
    fn parse(options: &[String], points: &[PathBuf]) -> Result<Self, GuestError> {
        let mounted = |path: &Path| match points.iter().find(|point| *point == path) {
            Some(point) => Ok(point.clone()),
            None => {
                let text = format!("{} is no layer of this request", path.display());
                Err(invalid(PHASE, text))
            }
        };
        let above = |path: &str, name: &str| match path.strip_suffix(name) {
            Some(point) => mounted(Path::new(point)),
            None => Err(invalid(
                PHASE,
                format!("{path} is not on a layer: use …{name}"),
            )),
        };
        let mut asked = Self::default();
        let mut work = None;
        for option in options {
            match option.split_once('=') {
                Some(("lowerdir", list)) => {
                    let list = list.split(':').map(|path| mounted(Path::new(path)));
                    asked.lowers = list.collect::<Result<_, _>>()?;
                }
                Some(("upperdir", path)) => asked.writable = Some(above(path, "/upper")?),
                Some(("workdir", path)) => work = Some(above(path, "/work")?),
                _ => {
                    let text = "options of layers: use lowerdir, upperdir, workdir";
                    return Err(invalid(PHASE, text));
                }
            }
        }
        if asked.lowers.is_empty() || work != asked.writable {
            let text =
                "layers: use a lowerdir, and an upperdir and a workdir of one layer or neither";
            return Err(invalid(PHASE, text));
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(options: &[&str]) -> Result<Asked, GuestError> {
        let options: Vec<_> = options.iter().map(|one| (*one).to_owned()).collect();
        let points = ["/p/a", "/p/b", "/p/c"].map(PathBuf::from);
        Asked::parse(&options, &points)
    }

    #[test]
    fn a_stack_is_of_what_the_request_has_mounted_and_of_nothing_else() {
        let own = asked(&["lowerdir=/p/a:/p/b"]).unwrap();
        assert_eq!(own.lowers, ["/p/a", "/p/b"].map(PathBuf::from));
        assert_eq!(own.writable, None);
        let written = ["lowerdir=/p/a", "upperdir=/p/c/upper", "workdir=/p/c/work"];
        let written = asked(&written).unwrap();
        assert_eq!(written.writable, Some(PathBuf::from("/p/c")));
        for bad in [
            &["lowerdir=/p/a:/etc"][..],
            &["lowerdir=/p/a/../b"],
            &["lowerdir=/p/a", "upperdir=/p/c/upper"],
            &["lowerdir=/p/a", "upperdir=/p/c/upper", "workdir=/p/b/work"],
            &["lowerdir=/p/a", "upperdir=/run", "workdir=/p/b/work"],
            &["lowerdir=/p/a", "volatile"],
            &[],
        ] {
            assert!(asked(bad).is_err(), "{bad:?}");
        }
    }
}
