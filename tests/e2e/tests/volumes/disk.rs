//! emptyDirs on disks of their own, which are files in the kubelet's directories.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::State;
use support::host::contains;
use support::init_data::{ALLOW_ALL, ANNOTATION, InitData};
use support::kube::{self, Kube};
use support::need;
use support::pod::Settings;
use support::registry::Registry;

use super::kubelet::{Kubelet, mount};
use super::{GROUP, LIMIT, Place, recipe};

const SECRET: &str = "this must not be read on the host's disk";
/// What the kubelet counts of an empty one at most, and what is written to it.
const EMPTY_MIB: u64 = 48;
const WRITTEN_MIB: u64 = 64;

/// Whether the guest encrypts it.
#[derive(Clone, Copy, PartialEq)]
enum Disk {
    Clear,
    Encrypted,
}

#[test]
fn an_empty_dir_of_a_plain_guest_can_be_a_disk() {
    let tools = [&kube::TOOLS[..], &["mount"]].concat();
    if !need(&tools) {
        return;
    }
    let own = State::new().unwrap();
    let settings = Settings {
        kubelet: Some(own.path().join("kubelet")),
        empty_dirs: "block-plain",
        ..Settings::plain()
    };
    let kube = Kube::start(&settings).unwrap();
    let image = kube.import(&recipe(), "box").unwrap();
    let kubelet = Kubelet::new(&own);
    let before = kube.containerd.leftovers();
    let config = kube.pod("vol");
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube: &kube,
        kubelet: &kubelet,
        pod,
        config,
        image,
    };
    an_empty_dir_has_a_disk_that_the_kubelet_measures(&place, Disk::Clear);
    kube.remove_pod(&place.pod).unwrap();
    kube.settled(&before).unwrap();
}

#[test]
fn an_empty_dir_of_a_confidential_guest_can_be_a_disk_that_it_encrypts() {
    let tools = [&kube::TOOLS[..], &["docker-registry", "skopeo", "mount"]].concat();
    if !need(&tools) {
        return;
    }
    let own = State::new().unwrap();
    let registry = Registry::start(&own).unwrap();
    let layout = recipe().write(&own.path().join("layout")).unwrap();
    let image = registry.push(&layout, "box:latest", &[]).unwrap();
    let settings = Settings {
        kubelet: Some(own.path().join("kubelet")),
        empty_dirs: "block-encrypted",
        ..Settings::confidential(&[registry.address()])
    };
    let kube = Kube::start(&settings).unwrap();
    let _inside = registry.also_in(&own, &kube.node.path()).unwrap();
    kube.import_as(&recipe(), "box", &image).unwrap();
    let kubelet = Kubelet::new(&own);
    let before = kube.containerd.leftovers();
    let mut config = kube.pod("vol");
    let init_data = InitData::new(None, Some(&registry), ALLOW_ALL);
    config
        .annotations
        .insert(ANNOTATION.to_owned(), init_data.annotation().unwrap());
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube: &kube,
        kubelet: &kubelet,
        pod,
        config,
        image,
    };
    an_empty_dir_has_a_disk_that_the_kubelet_measures(&place, Disk::Encrypted);
    kube.remove_pod(&place.pod).unwrap();
    kube.settled(&before).unwrap();
}

fn an_empty_dir_has_a_disk_that_the_kubelet_measures(place: &Place<'_>, disk: Disk) {
    let volume = place.kubelet.volume("empty-dir", "work");
    chown(&volume, None, Some(GROUP)).unwrap();
    fs::set_permissions(&volume, Permissions::from_mode(0o2777)).unwrap();
    let open = place.kubelet.volume("empty-dir", "open");
    let container = |name: &str| {
        let mut container = place.container(name, "exec sleep 3600");
        mount(&mut container, &volume, "/work", false);
        mount(&mut container, &open, "/open", false);
        container
    };
    let main = place.start(&container("writer"));
    let side = place.start(&container("reader"));
    let seen = place.says(
        &main,
        "stat -c '%g %a' /work /open; ls -A /work; ls -A /open",
    );
    assert_eq!(seen, format!("{GROUP} 2777\n0 777\n"));
    let image = volume.join("disk.img");
    let empty = mib(&image);
    assert!(empty <= EMPTY_MIB, "an empty one has {empty} MiB");

    place.says(&main, "mkdir /work/d; echo shared >/work/d/note");
    assert_eq!(place.says(&side, "cat /work/d/note"), "shared\n");
    let line = format!("echo \"{SECRET}\" >/open/secret; sync; cat /open/secret");
    assert_eq!(place.says(&main, &line), format!("{SECRET}\n"));
    let bytes = stored(&open.join("disk.img"));
    assert_eq!(contains(&bytes, SECRET.as_bytes()), disk == Disk::Clear);

    let line =
        format!("dd if=/dev/zero of=/work/x bs=1048576 count={WRITTEN_MIB} 2>/dev/null; sync");
    place.says(&main, &line);
    let full = mib(&image);
    let counted = full.saturating_sub(empty);
    assert!(
        (WRITTEN_MIB - 1..=WRITTEN_MIB + 8).contains(&counted),
        "{counted} MiB are counted"
    );
    place.says(&main, "rm /work/x; sync");
    if disk == Disk::Clear {
        // The host has its room back.
        let since = Instant::now();
        while mib(&image) > empty + WRITTEN_MIB / 2 {
            assert!(
                since.elapsed() < LIMIT,
                "{} MiB are still counted",
                mib(&image)
            );
            place.says(&main, "sync");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    // It outlives its containers, and a part of it can be mounted.
    place.remove(&main);
    place.remove(&side);
    let part = place.kubelet.part("empty-dir", "work", "d");
    let mut again = container("writer");
    mount(&mut again, &part.0, "/part", false);
    let again = place.start(&again);
    let seen = place.says(&again, "cat /work/d/note /part/note /open/secret");
    assert_eq!(seen, format!("shared\nshared\n{SECRET}\n"));
    place.remove(&again);
}

/// MiB that a file takes.
fn mib(path: &Path) -> u64 {
    (fs::metadata(path).unwrap().blocks() * 512).div_ceil(1 << 20)
}

/// The part of a sparse file in which there is anything: its file system is small.
fn stored(path: &PathBuf) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(path).unwrap();
    let size = fs::metadata(path).unwrap().len().min(512 << 20);
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().any(|byte| *byte != 0), "nothing is on it");
    bytes
}
