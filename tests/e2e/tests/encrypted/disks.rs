//! Volumes on disks of the host that the guest encrypts: one whose key ends with it, and one whose key is the owner's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use support::host::contains;
use support::product;
use support::run::{Finished, within};
use support::stage::{START, Stage};
use support::xts;

pub(crate) const TOOLS: [&str; 3] = ["mkfs.ext4", "e2fsck", "debugfs"];
const LIMIT: Duration = Duration::from_secs(60);
const KEY_ID: &str = "default/disk/key";
const NOTE: &str = "what the owner has put on the disk";
const WRITTEN: &str = "what the guest has put on its disks";
const MIB: usize = 1 << 20;

/// Two volumes, described by the product's own command; the descriptions are gone with this.
pub(crate) struct Volumes {
    state: PathBuf,
    key: [u8; 64],
    described: Vec<PathBuf>,
}

impl Volumes {
    pub(crate) fn new(stage: &Stage) -> Self {
        let state = stage.state.dir("disks").unwrap();
        let mut key = [0; 64];
        let mut random = File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut random, &mut key).unwrap();
        let file = stage.state.file("disk.key", key).unwrap();
        stage.broker().unwrap().put(KEY_ID, &file).unwrap();
        fs::remove_file(file).unwrap();
        // The owner's, with a file in it.
        let content = stage.state.dir("content").unwrap();
        fs::write(content.join("note"), NOTE).unwrap();
        let kept = state.join("kept.img");
        File::create(&kept)
            .unwrap()
            .set_len(16 * MIB as u64)
            .unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        said(
            mkfs.args(["-q", "-b", "4096", "-d"])
                .arg(&content)
                .arg(&kept),
        );
        let mut bytes = fs::read(&kept).unwrap();
        xts::encrypt(&key, &mut bytes);
        fs::write(&kept, bytes).unwrap();
        fs::remove_dir_all(content).unwrap();
        // And one of which nothing is asked but its room.
        let fast = File::create(state.join("fast.img")).unwrap();
        fast.set_len(64 * MIB as u64).unwrap();
        let mut volumes = Self {
            state,
            key,
            described: Vec::new(),
        };
        volumes.describe(
            "kept",
            &json!({"encryptionKey": format!("kbs:///{KEY_ID}")}),
        );
        volumes.describe("fast", &json!({"encryptionKey": "ephemeral"}));
        volumes
    }

    /// The same with one that a driver gives in the clear.
    pub(crate) fn without_a_key(mut self) -> Self {
        self.describe("fast", &json!({}));
        self
    }

    fn describe(&mut self, name: &str, metadata: &serde_json::Value) {
        let volume = self.state.join(name);
        fs::create_dir_all(&volume).unwrap();
        let description = json!({
            "volume-type": "block", "device": self.image(name), "fstype": "ext4", "metadata": metadata,
        });
        let mut add = direct_volume("add", &volume);
        said(add.args(["--mount-info", &description.to_string()]));
        self.described.push(volume);
    }

    fn image(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.img"))
    }

    /// What `ctr run` is told.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mount = |name: &str| {
            let volume = self.state.join(name);
            let source = volume.display();
            format!("type=bind,src={source},dst=/{name},options=rbind:rw")
        };
        let names = ["kept", "fast"]
            .iter()
            .flat_map(|name| ["--mount".to_owned(), mount(name)]);
        names.collect()
    }

    pub(crate) fn are_noise_on_the_host(&self, stage: &Stage, id: &str) {
        let exec = |line: &str| {
            let name = format!("e{}", line.len());
            let words = [
                "task",
                "exec",
                "--exec-id",
                &name,
                id,
                "/bin/sh",
                "-c",
                line,
            ];
            stage.containerd.ctr_within(START, &words).unwrap()
        };
        let read = exec("cat /kept/note; cat /proc/mounts");
        assert!(read.stdout.starts_with(NOTE), "{}", read.report());
        for point in [" /kept ext4 rw,", " /fast ext4 rw,"] {
            assert!(read.stdout.contains(point), "{}", read.report());
        }
        let line =
            format!("for at in kept fast; do echo {WRITTEN} >/$at/back || exit 1; done; sync");
        let written = exec(&line);
        assert_eq!(written.code, 0, "{}", written.report());
        for name in ["kept", "fast"] {
            let bytes = fs::read(self.image(name)).unwrap();
            for clear in [WRITTEN, NOTE, "lost+found"] {
                assert!(!contains(&bytes, clear.as_bytes()), "{name}: {clear}");
            }
            assert!(bytes.iter().any(|byte| *byte != 0), "{name} is empty");
        }
        // A storage driver asks how full it is, whoever encrypts it.
        let root = stage.containerd.shim_state();
        let mut stats = direct_volume("stats", &self.state.join("kept"));
        let told = said(stats.env("CLOISTER_STATE_ROOT", root)).stdout;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let total = told["usage"][0]["total"].as_u64().unwrap();
        assert!((8 * MIB as u64..16 * MIB as u64).contains(&total), "{told}");
    }

    /// The owner's disk has what the guest wrote, for whoever has the key; it is whole.
    pub(crate) fn are_what_the_guest_left(&self) {
        let mut bytes = fs::read(self.image("kept")).unwrap();
        xts::decrypt(&self.key, &mut bytes);
        let clear = self.state.join("clear.img");
        fs::write(&clear, bytes).unwrap();
        said(Command::new("e2fsck").args(["-f", "-n"]).arg(&clear));
        let mut cat = Command::new("debugfs");
        let back = said(cat.args(["-R", "cat /back"]).arg(&clear)).stdout;
        assert_eq!(back, format!("{WRITTEN}\n"));
        fs::remove_file(clear).unwrap();
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for volume in &self.described {
            let _ = within(LIMIT, &mut direct_volume("remove", volume));
        }
    }
}

fn direct_volume(verb: &str, volume: &Path) -> Command {
    let mut command = Command::new(product::bin("cloister").unwrap());
    command
        .args(["direct-volume", verb, "--volume-path"])
        .arg(volume);
    command
}

#[track_caller]
fn said(command: &mut Command) -> Finished {
    within(LIMIT, command).unwrap().ok().unwrap()
}
