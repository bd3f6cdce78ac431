//! Images on a scratch disk: the guest uses it where its owner says so, and the host sees noise.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::host::{self, contains};
use support::image::{Entry, Recipe};
use support::need;
use support::pod::{Pod, Settings};
use support::run::Finished;
use support::stage::{START, Stage, TOOLS};

const MARKER: &str = "this must not be read on the host's disk";
const MIB: usize = 1 << 20;
/// MiB of the disk in tests that look for it.
const DISK: u32 = 256;
const HOLD: [&str; 2] = ["/bin/sleep", "3600"];

/// busybox, and a file of `mib` MiB that repeats the marker.
fn large(mib: usize) -> Recipe {
    let mut recipe = Recipe::busybox(MARKER).unwrap();
    let line = format!("{MARKER}\n").into_bytes();
    let content: Vec<u8> = line.into_iter().cycle().take(mib * MIB).collect();
    let file = Entry::File("large".into(), 0o644, content);
    recipe.layers.push(vec![file]);
    recipe
}

fn exec(stage: &Stage, id: &str, script: &str) -> Finished {
    let name = format!("e{}", script.len());
    let words = [
        "task",
        "exec",
        "--exec-id",
        &name,
        id,
        "/bin/sh",
        "-c",
        script,
    ];
    stage.containerd.ctr_within(START, &words).unwrap()
}

/// The scratch disks that processes hold: files that have no name.
fn disks(stage: &Stage) -> Vec<File> {
    let scratch = stage.state.path().join("scratch");
    let names = std::fs::read_dir(&scratch).into_iter().flatten().count();
    assert_eq!(names, 0, "a scratch disk has a name");
    host::nameless(stage.state.path(), &scratch)
}

/// All of a disk.
fn bytes_of(disk: &File) -> Vec<u8> {
    let size = usize::try_from(disk.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; size];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn is_on_disk(stage: &Stage, id: &str) -> bool {
    let mounts = exec(stage, id, "cat /proc/self/mountinfo");
    assert_eq!(mounts.code, 0, "{}", mounts.report());
    let root = mounts
        .stdout
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"))
        .unwrap();
    // A program of an image may be setuid wherever it is kept.
    assert!(!root.contains("nosuid"), "{root}");
    // An overlay tells of the file system below it only its numbers: the disk's has an inode for 16 KiB, memory far more.
    let inodes = exec(stage, id, "stat -f -c %c /");
    let inodes: usize = inodes.stdout.trim().parse().unwrap();
    inodes <= DISK as usize * MIB / (16 << 10)
}

fn hold(stage: &Stage, pod: Pod<'_>) {
    let started = stage.run(&pod.flag(&["--detach", "--null-io"])).unwrap();
    assert_eq!(
        started.code,
        0,
        "{}\n{}",
        started.report(),
        stage.log_tail()
    );
}

#[test]
fn the_host_sees_noise_and_what_it_changes_is_an_error() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let image = stage.push(&large(24), "large").unwrap();
    let init_data = stage.init_data().with_store("scratch");
    let settings = Settings {
        scratch: DISK,
        ..stage.settings()
    };
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let before = stage.containerd.leftovers();
    let pod = Pod::new("noise", &config, &empty, &HOLD)
        .from_image(&image)
        .with_init_data(&init_data);
    hold(&stage, pod);
    assert!(is_on_disk(&stage, "noise"));

    // What the image has reaches the disk, and is not to be found there. From here on the file is the container's own.
    let first = "dd if=/large bs=4096 count=1 iflag=direct 2>/dev/null";
    let read = exec(&stage, "noise", &format!(": >> /large; sync; {first}"));
    assert!(read.stdout.starts_with(MARKER), "{}", read.report());
    let disk = disks(&stage).pop().expect("no process has a scratch disk");
    let taken = usize::try_from(disk.metadata().unwrap().blocks() * 512).unwrap();
    assert!(taken > 24 * MIB, "{taken} bytes are no image");
    let old = bytes_of(&disk);
    assert!(!contains(&old, MARKER.as_bytes()) && !contains(&old, b"lost+found"));

    // The guest writes over its file in place. Then the host brings back what stood there before.
    let over = "echo new | dd of=/large conv=notrunc 2>/dev/null; sync; ";
    let read = exec(&stage, "noise", &format!("{over}{first}"));
    assert!(read.stdout.starts_with("new\n"), "{}", read.report());
    let new = bytes_of(&disk);
    assert_ne!(old, new);
    disk.write_all_at(&old, 0).unwrap();
    let replayed = exec(&stage, "noise", &format!("{first} # replayed"));
    assert!(
        replayed.code != 0 && replayed.stdout.is_empty(),
        "{}",
        replayed.report()
    );

    // With its own bytes again it reads again; with one bit of each sector changed it does not.
    disk.write_all_at(&new, 0).unwrap();
    let read = exec(&stage, "noise", &format!("{first} # again"));
    assert!(read.stdout.starts_with("new\n"), "{}", read.report());
    let mut bent = new;
    bent.iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
    disk.write_all_at(&bent, 0).unwrap();
    let changed = exec(&stage, "noise", &format!("{first} # changed"));
    assert!(
        changed.code != 0 && changed.stdout.is_empty(),
        "{}",
        changed.report()
    );
    stage.containerd.remove("noise");
    stage.settled(&before).unwrap();
    assert!(disks(&stage).is_empty());
}

#[test]
fn the_owner_decides_and_a_plain_vm_uses_what_it_has() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let image = stage.push(&large(1), "small").unwrap();
    // A plain VM speaks HTTP to a registry on loopback.
    let (_clear, address) = stage.registry.in_the_clear(&stage.state).unwrap();
    let clear_image = format!("{address}/small:latest");
    let allow = [stage.registry.address(), &address].map(str::to_owned);
    let empty = stage.empty();
    let before = stage.containerd.leftovers();
    let silent = stage.init_data();
    let (memory, disk) = (silent.with_store("memory"), silent.with_store("scratch"));
    for (id, tee, image, init_data, expected) in [
        ("tee-silent", "sample", &image, &silent, false),
        ("plain-silent", "none", &clear_image, &silent, true),
        ("plain-memory", "none", &clear_image, &memory, false),
    ] {
        let settings = Settings {
            tee,
            scratch: DISK,
            allow: allow.to_vec(),
            ..stage.settings()
        };
        let config = settings.write(&stage.state, "c.toml").unwrap();
        let pod = Pod::new(id, &config, &empty, &HOLD)
            .from_image(image)
            .with_init_data(init_data);
        hold(&stage, pod);
        assert_eq!(is_on_disk(&stage, id), expected, "{id}");
        stage.containerd.remove(id);
        stage.settled(&before).unwrap();
    }
    let config = stage.settings().write(&stage.state, "none.toml").unwrap();
    let pod = Pod::new("no-disk", &config, &empty, &HOLD)
        .from_image(&image)
        .with_init_data(&disk);
    let error = stage.refuse(&pod, "failed-precondition", START).unwrap();
    assert!(error.contains("scratch_disk"), "{error}");
}

#[test]
fn an_image_that_does_not_fit_is_refused_with_the_need_and_the_setting() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let image = stage.push(&large(96), "too-large").unwrap();
    let init_data = stage.init_data().with_store("scratch");
    let settings = Settings {
        scratch: 64,
        ..stage.settings()
    };
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let pod = Pod::new("full", &config, &empty, &HOLD)
        .from_image(&image)
        .with_init_data(&init_data);
    let error = stage.refuse(&pod, "guest-disk-full", START).unwrap();
    assert!(
        error.contains("it needs more than") && error.contains("(scratch_disk)"),
        "{error}"
    );
}

#[test]
fn an_image_larger_than_memory_runs_and_a_killed_shim_leaves_no_disk() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let image = stage.push(&large(320), "larger").unwrap();
    let init_data = stage.init_data().with_store("scratch");
    let settings = Settings {
        scratch: 1024,
        memory: 256,
        ..stage.settings()
    };
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let before = stage.containerd.leftovers();
    let pod = Pod::new("killed", &config, &empty, &HOLD)
        .from_image(&image)
        .with_init_data(&init_data);
    hold(&stage, pod);
    let read = exec(&stage, "killed", "cat /large | wc -c; head -n 1 /large");
    assert_eq!(
        read.stdout,
        format!("{}\n{MARKER}\n", 320 * MIB),
        "{}",
        read.report()
    );
    assert!(!disks(&stage).is_empty());
    for process in host::processes_of(stage.state.path()) {
        let program = process.command.split(' ').next().unwrap_or_default();
        if program.contains("containerd-shim-cloister") {
            kill(Pid::from_raw(process.pid), Signal::SIGKILL).unwrap();
        }
    }
    stage.containerd.remove("killed");
    stage.settled(&before).unwrap();
    assert!(disks(&stage).is_empty());
}
