//! The guest that is booted: its files, and that they are those of their manifest.

use std::path::Path;

use guest_image::manifest::Manifest;

use super::Finding;
use shim::config::Config;

const NAME: &str = "guest";
const MANIFEST: &str = "guest manifest";

/// Its kernel and initramfs as configured, and the manifest beside them.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let fix = "`make guest` builds it; name kernel and initrd in [hypervisor.qemu]";
    let files = [
        Some(config.vm.kernel.as_path()),
        config.vm.initrd.as_deref(),
    ];
    for file in files.into_iter().flatten() {
        if let Err(error) = std::fs::File::open(file) {
            return vec![Finding::missing(
                NAME,
                format!("{}: {error}", file.display()),
                fix,
            )];
        }
    }
    let kernel = config.vm.kernel.display();
    vec![
        Finding::good(NAME, kernel.to_string()),
        manifest(&config.vm.kernel),
    ]
}

fn manifest(kernel: &Path) -> Finding {
    let directory = kernel.parent().unwrap_or(Path::new("/"));
    let read = match Manifest::read(directory) {
        Ok(manifest) => manifest,
        Err(error) => {
            let fix = "install the guest as it was built, with its manifest.json";
            return Finding::absent(MANIFEST, error.to_string(), fix);
        }
    };
    match read.verify(directory) {
        Ok(()) => Finding::good(MANIFEST, "the files have its digests"),
        Err(error) => Finding::missing(
            MANIFEST,
            error.to_string(),
            "install the guest again: these are not the files that were measured",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    #[test]
    fn a_guest_that_is_not_there_is_missing_and_one_without_a_manifest_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.vm.kernel = directory.path().join("vmlinux");
        config.vm.initrd = None;
        let found = look(&config);
        assert_eq!((found.len(), found[0].state), (1, State::Missing));
        assert!(found[0].fix.as_deref().unwrap().contains("make guest"));
        std::fs::write(&config.vm.kernel, b"x").unwrap();
        let found = look(&config);
        assert_eq!(
            (found[0].state, found[1].state),
            (State::Good, State::Absent)
        );
    }
}
