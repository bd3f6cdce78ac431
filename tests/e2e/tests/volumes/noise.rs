//! What the host sees of an emptyDir of the guest's own.

use std::os::unix::fs::FileExt;

use support::host::{contains, nameless};

use super::Place;

/// An emptyDir that is not in memory lies where images do: on the scratch disk, encrypted.
pub(crate) fn its_files_are_noise_on_the_hosts_disk(place: &Place<'_>, container: &str) {
    const SECRET: &str = "this must not be read on the host's disk";
    let line = format!("echo \"{SECRET}\" >/work/d/secret; sync; cat /work/d/secret");
    assert_eq!(place.says(container, &line), format!("{SECRET}\n"));
    let state = place.kube.state.path();
    let disks = nameless(state, &state.join("scratch"));
    let disk = disks.first().expect("no process has a scratch disk");
    let size = usize::try_from(disk.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; size];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().any(|byte| *byte != 0), "nothing is on it");
    for clear in [SECRET, "lost+found"] {
        assert!(!contains(&bytes, clear.as_bytes()), "{clear}");
    }
}
