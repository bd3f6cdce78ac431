//! The store: processes that share it, die in it, and fill it to its bound.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use image_rs::Digest;
use rustix::fs::{FlockOperation, flock};
use shim::mirror::{Store, StoreError};

use crate::host::{ROOMY, content};

/// What a child does, and where.
const ROLE: &str = "MIRROR_TEST_ROLE";
const PLACE: &str = "MIRROR_TEST_PLACE";
const SEED: &str = "MIRROR_TEST_SEED";
/// Writers at once, blobs of each, and their size; the bound takes a part of them.
const WRITERS: u64 = 8;
const BLOBS: u64 = 12;
const BLOB_BYTES: usize = 96 * 1024;
const BOUND: u64 = 20 * BLOB_BYTES as u64;

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut ingest = store.ingest(&digest).unwrap();
    ingest.write(bytes).unwrap();
    ingest.finish().unwrap();
    digest
}

fn has(store: &Store, digest: &Digest) -> bool {
    store.read(digest).unwrap().is_some()
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
}

/// What all blobs have, and those on their way, as of one moment; and what the lock says of the former.
fn sizes(directory: &Path) -> (u64, u64, Option<u64>) {
    let lock = File::open(directory.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let sum = |name: &str| {
        let lengths = files(&directory.join(name)).into_iter();
        lengths
            .map(|path| path.metadata().map_or(0, |meta| meta.len()))
            .sum()
    };
    let text = fs::read_to_string(directory.join("lock")).unwrap();
    let noted = text.trim().split_once(' ');
    let noted = noted.map(|(_, total)| total.parse().unwrap());
    (sum("blobs"), sum("fill"), noted)
}

/// This program again, to do only what a role says.
fn child(role: &str, directory: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::a_process_of_its_own", "--nocapture"])
        .env(ROLE, role)
        .env(PLACE, directory)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Not a test of its own: what the children of the others do.
#[test]
fn a_process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let directory = PathBuf::from(std::env::var_os(PLACE).unwrap());
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    match role.as_str() {
        "hang" => {
            let store = Store::open(&directory, ROOMY).unwrap();
            let bytes = content(seed, 300_000);
            let mut ingest = store.ingest(&Digest::of(&bytes)).unwrap();
            ingest.write(&bytes[..200_000]).unwrap();
            println!("\nhanging");
            loop {
                std::thread::park();
            }
        }
        "write" => {
            let store = Store::open(&directory, BOUND).unwrap();
            for number in 0..BLOBS {
                // Neighbours have some blobs in common, so that they meet.
                let bytes = content(seed / 2 * 1000 + number, BLOB_BYTES);
                write_one(&store, &bytes);
            }
        }
        other => panic!("no role {other}"),
    }
}

fn write_one(store: &Store, bytes: &[u8]) {
    let digest = Digest::of(bytes);
    let mut ingest = match store.ingest(&digest) {
        Ok(ingest) => ingest,
        Err(StoreError::Taken(_) | StoreError::Locked) => return,
        Err(error) => panic!("{error}"),
    };
    for piece in bytes.chunks(10_000) {
        match ingest.write(piece) {
            Ok(()) => {}
            // Others fill all of it at the moment, or a machine under load lets nobody through in time.
            Err(StoreError::Full { .. } | StoreError::Locked) => return,
            Err(error) => panic!("{error}"),
        }
    }
    match ingest.finish() {
        Ok(()) | Err(StoreError::Locked) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_blob_is_published_when_its_digest_holds() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path(), ROOMY).unwrap();
    let bytes = content(1, 100_000);
    let digest = put(&store, &bytes);
    let reading = store.read(&digest).unwrap().unwrap();
    assert_eq!(reading.length(), Some(100_000));
    assert!(matches!(store.ingest(&digest), Err(StoreError::Taken(_))));

    let other = Digest::of(b"something else");
    let mut ingest = store.ingest(&other).unwrap();
    ingest.write(&bytes).unwrap();
    let error = ingest.finish().unwrap_err();
    assert!(matches!(&error, StoreError::Digest { expected, found }
        if *expected == other && *found == digest));
    assert!(!has(&store, &other));
    let (blobs, coming, noted) = sizes(place.path());
    assert_eq!((blobs, coming, noted), (100_000, 0, Some(100_000)));
    // Nobody but its owner may look.
    let mode = place.path().join("fill").metadata().unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o700);
}

#[test]
fn what_was_used_last_stays_longest() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path(), 10_000).unwrap();
    let first = put(&store, &content(1, 3_000));
    let second = put(&store, &content(2, 3_000));
    let third = put(&store, &content(3, 3_000));
    assert!(has(&store, &first));
    let fourth = put(&store, &content(4, 3_000));
    let there = [&first, &second, &third, &fourth].map(|digest| has(&store, digest));
    assert_eq!(there, [true, false, true, true]);
    // A size that was made smaller holds from the next start on.
    let store = Store::open(place.path(), 4_000).unwrap();
    let there = [&first, &third, &fourth].map(|digest| has(&store, digest));
    assert_eq!(there, [false, false, true]);
}

#[test]
fn a_blob_that_never_fits_pushes_nothing_out() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path(), 10_000).unwrap();
    let small = put(&store, &content(1, 3_000));
    let large = content(2, 11_000);
    let mut ingest = store.ingest(&Digest::of(&large)).unwrap();
    let error = ingest.write(&large).unwrap_err();
    assert!(matches!(error, StoreError::Full { cap: 10_000 }), "{error}");
    drop(ingest);
    assert!(has(&store, &small));
    assert_eq!(sizes(place.path()), (3_000, 0, Some(3_000)));
}

#[test]
fn what_was_removed_by_hand_takes_no_room() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path(), 10_000).unwrap();
    for number in 0..3 {
        put(&store, &content(number, 3_000));
    }
    fs::remove_dir_all(place.path().join("blobs")).unwrap();
    let later = [3, 4, 5].map(|number| put(&store, &content(number, 3_000)));
    assert_eq!(later.map(|digest| has(&store, &digest)), [true; 3]);
    assert_eq!(sizes(place.path()), (9_000, 0, Some(9_000)));
}

#[test]
fn on_a_disk_that_runs_full_the_mirror_gives_way() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a small tmpfs needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "none"])
        .arg(place.path())
        .status();
    assert!(mount.unwrap().success());
    let mib = 1024 * 1024;
    {
        let store = Store::open(&place.path().join("mirror"), 8 * mib as u64).unwrap();
        let blobs = [1, 2, 3, 4].map(|seed| put(&store, &content(seed, mib)));
        let there = blobs.map(|digest| has(&store, &digest));
        assert_eq!(there, [false, true, true, true]);
        // Others fill the disk.
        fs::write(place.path().join("other"), content(5, mib / 2)).unwrap();
        put(&store, &content(6, mib));
        let large = content(7, 4 * mib);
        let mut ingest = store.ingest(&Digest::of(&large)).unwrap();
        let error = ingest.write(&large).unwrap_err();
        assert!(matches!(error, StoreError::Disk), "{error}");
        drop(ingest);
        assert_eq!(sizes(&place.path().join("mirror")), (0, 0, Some(0)));
    }
    let unmounted = Command::new("umount").arg(place.path()).status();
    assert!(unmounted.unwrap().success());
}

#[test]
fn a_writer_that_is_killed_blocks_nobody_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path(), ROOMY).unwrap();
    let bytes = content(7, 300_000);
    let digest = Digest::of(&bytes);
    let mut writer = child("hang", place.path(), 7);
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    for line in lines {
        if line.unwrap() == "hanging" {
            break;
        }
    }
    // As long as it lives, the blob is its.
    assert!(matches!(store.ingest(&digest), Err(StoreError::Taken(_))));
    assert_eq!(store.read(&digest).unwrap().unwrap().length(), None);
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(put(&store, &bytes), digest);
    assert_eq!(sizes(place.path()), (300_000, 0, Some(300_000)));

    let mut writer = child("hang", place.path(), 8);
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "hanging"));
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(files(&place.path().join("fill")).len(), 1);
    Store::open(place.path(), ROOMY).unwrap();
    assert_eq!(files(&place.path().join("fill")), Vec::<PathBuf>::new());
}

#[test]
fn a_death_in_the_middle_of_a_change_is_counted_anew() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path(), 10_000).unwrap();
    for number in 0..3 {
        put(&store, &content(number, 3_000));
    }
    // As `change` leaves it, with a file that was removed and not yet subtracted.
    let gone = files(&place.path().join("blobs")).pop().unwrap();
    fs::remove_file(gone).unwrap();
    for text in ["", "another-boot 9000\n", "nonsense", "x y z\n"] {
        fs::write(place.path().join("lock"), text).unwrap();
        Store::open(place.path(), 10_000).unwrap();
        let (blobs, _, noted) = sizes(place.path());
        assert_eq!((blobs, noted), (6_000, Some(6_000)), "{text:?}");
    }
}

#[test]
fn eight_processes_fill_one_store_and_its_bound_holds_all_the_time() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path(), BOUND).unwrap();
    let mut children: Vec<Child> = (0..WRITERS)
        .map(|seed| child("write", place.path(), seed))
        .collect();
    // One of them dies on the way.
    let (mut most, mut is_killed) = (0, false);
    loop {
        let (blobs, coming, noted) = sizes(place.path());
        // Who looks at once again keeps the lock from those who write.
        std::thread::sleep(std::time::Duration::from_millis(5));
        most = most.max(blobs + coming);
        assert!(blobs + coming <= BOUND, "{blobs} and {coming} bytes");
        assert!(
            noted.is_none_or(|noted| noted == blobs),
            "{noted:?} {blobs}"
        );
        if blobs > BOUND / 2 && !is_killed {
            children[0].kill().unwrap();
            is_killed = true;
        }
        let running = children.iter_mut().map(|child| child.try_wait().unwrap());
        if running.collect::<Vec<_>>().iter().all(Option::is_some) {
            break;
        }
    }
    for (number, child) in children.iter_mut().enumerate() {
        let ended = child.wait().unwrap();
        assert!(ended.success() || number == 0, "{ended}");
    }
    assert!(most > BOUND / 2, "only {most} bytes");
    drop(store);
    Store::open(place.path(), BOUND).unwrap();
    assert_eq!(files(&place.path().join("fill")), Vec::<PathBuf>::new());
    for path in files(&place.path().join("blobs")) {
        let hex = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(Digest::of(&fs::read(&path).unwrap()).hex(), hex);
    }
}
