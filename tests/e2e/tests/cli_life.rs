//! The life of runs by hand: clients, keepers and VMs that are killed, terminals that are left, and users who
//! are not root.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::by_hand::{ByHand, QUICK};
use support::need;
use support::product;
use support::run::{Running, with_input};
use support::stage::{START, TOOLS};

#[test]
fn a_client_that_is_killed_leaves_nothing_that_is_not_seen_and_ended() {
    if !need(&[&TOOLS[..], &["script"]].concat()) {
        return;
    }
    let host = ByHand::new().unwrap();
    let before = host.stage.containerd.leftovers();
    // The client: its run goes on, and is kept.
    let client = Running::start(
        &mut host
            .run(&["--name", "one"], &["/bin/sleep", "3600"])
            .unwrap(),
    )
    .unwrap();
    let client = host.until_started("one", client).unwrap();
    client.crash().unwrap();
    assert_eq!(host.row("one").unwrap()["phase"], "running");
    // The keeper too: its run is there, and nobody keeps it.
    kill(keeper_of(&host.root(), "one"));
    assert_eq!(host.row("one").unwrap()["phase"], "unkept");
    let said = host.say(&["exec", "one", "/bin/echo", "still"]).unwrap();
    assert_eq!(said.stdout, "still\n", "{}", said.report());
    let said = host.say(&["stop", "--time", "0", "one"]).unwrap();
    assert!(
        said.code == 0 && said.stdout.contains("nobody kept it"),
        "{}",
        said.report()
    );
    assert_eq!(host.row("one").unwrap()["phase"], "exited");
    host.say(&["rm", "one"]).unwrap().ok().unwrap();

    a_terminal_is_left_and_taken_up_again(&host);

    // The VM is killed under a keeper: that is an end like another.
    let said = with_input(
        START,
        &mut host
            .run(&["-d", "--name", "two"], &["/bin/sleep", "3600"])
            .unwrap(),
        b"",
    )
    .unwrap();
    assert_eq!(said.code, 0, "{}", said.report());
    let vm = host.row("two").unwrap()["vm_pid"].as_i64().unwrap();
    kill(i32::try_from(vm).unwrap());
    host.until("the end", || Ok(host.row("two")?["phase"] == "exited"))
        .unwrap();
    assert_eq!(host.row("two").unwrap()["exit_code"], 137);
    host.say(&["rm", "--force", "two", "none"])
        .unwrap()
        .ok()
        .unwrap();
    assert!(host.rows().unwrap().is_empty());
    host.stage.settled(&before).unwrap();
}

/// By the keys, and by `attach`.
fn a_terminal_is_left_and_taken_up_again(host: &ByHand) {
    let typed = |words: String, input: &[u8], when: &dyn Fn()| {
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command", &words, "/dev/null"])
            .env("CLOISTER_STATE_ROOT", host.root());
        let mut running = Running::start(&mut command).unwrap();
        if words.contains("--name") {
            running = host.until_started("tty", running).unwrap();
        }
        when();
        running.feed(input).finish(START).unwrap()
    };
    let cloister = product::bin("cloister").unwrap().display().to_string();
    let config = host.config.display();
    let run = format!(
        "{cloister} run -q -it --rm --name tty --config {config} {} /bin/sh",
        host.image
    );
    let soon = || std::thread::sleep(Duration::from_secs(2));
    let left = typed(run, b"echo a$((1+1))\r\x10\x11", &soon);
    assert_eq!(left.code, 0, "{}", left.report());
    assert_eq!(host.row("tty").unwrap()["phase"], "running");
    host.until("what was typed", || {
        Ok(host.say(&["logs", "tty"])?.stdout.contains("a2"))
    })
    .unwrap();
    let taken_up = typed(
        format!("{cloister} attach tty"),
        b"echo b$((1+1)); exit 4\r",
        &soon,
    );
    assert!(
        taken_up.code == 4 && taken_up.stdout.contains("b2"),
        "{}",
        taken_up.report()
    );
    host.until("its removal", || Ok(host.rows()?.is_empty()))
        .unwrap();
}

/// A user of this host whom nobody has given anything.
const USER: u32 = 61_234;

#[test]
fn a_user_who_is_not_root_runs_containers_too() {
    if !need(&[&TOOLS[..], &["setpriv"]].concat()) {
        return;
    }
    let host = ByHand::new().unwrap();
    let user = User::of(&host);
    what_the_guest_writes_to_a_volume_is_the_users(&user);
    the_check_says_what_the_host_can(&user);
    a_confidential_guest_is_refused(&user);
    nothing_is_left_of_it(&user);
}

/// What is the user's is theirs, and the way to it is open.
struct User<'a> {
    host: &'a ByHand,
    own: PathBuf,
    shared: PathBuf,
}

impl<'a> User<'a> {
    fn of(host: &'a ByHand) -> Self {
        let base = host.stage.state.path();
        let own = host.stage.state.dir("own").unwrap();
        let shared = host.stage.state.dir("shared").unwrap();
        std::fs::set_permissions(base, std::fs::Permissions::from_mode(0o711)).unwrap();
        for directory in [&own, &shared] {
            std::os::unix::fs::chown(directory, Some(USER), Some(USER)).unwrap();
        }
        Self { host, own, shared }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        let user = USER.to_string();
        command
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
            .arg(product::bin("cloister").unwrap())
            .args(words)
            .env("XDG_RUNTIME_DIR", &self.own)
            .env("HOME", &self.own)
            .env_remove("CLOISTER_STATE_ROOT")
            .current_dir(&self.own);
        command
    }
}

fn what_the_guest_writes_to_a_volume_is_the_users(user: &User<'_>) {
    let (host, shared) = (user.host, &user.shared);
    std::fs::write(shared.join("from-host"), "here\n").unwrap();
    let volume = format!("{}:/data", shared.display());
    let script = "cat /data/from-host && echo there >/data/from-guest; id -u; busybox ip -o -4 addr show eth0";
    let config = host.config.to_str().unwrap();
    let words = [
        "run",
        "--rm",
        "-q",
        "--config",
        config,
        "-v",
        &volume,
        &host.image,
        "/bin/sh",
        "-c",
        script,
    ];
    let said = with_input(START, &mut user.command(&words), b"").unwrap();
    assert!(
        said.stdout.starts_with("here\n0\n") && said.stdout.contains("10.0.2.15"),
        "{}",
        said.report()
    );
    let written = std::fs::metadata(shared.join("from-guest")).unwrap();
    assert_eq!(written.uid(), USER, "what the guest writes is the user's");
    let rows = with_input(QUICK, &mut user.command(&["ps", "--all", "--json"]), b"").unwrap();
    assert_eq!(rows.stdout.trim(), "[]", "{}", rows.report());
}

fn the_check_says_what_the_host_can(user: &User<'_>) {
    let tried = as_if_confidential(user.host);
    let tried = tried.to_str().unwrap();
    let words = [
        "check", "--tee", "--json", "--report", "tee.json", "--config", tried,
    ];
    let check = with_input(START, &mut user.command(&words), b"").unwrap();
    let report: Value = serde_json::from_str(&check.stdout).unwrap();
    let written = std::fs::read_to_string(user.own.join("tee.json")).unwrap();
    assert_eq!(written.trim(), check.stdout.trim());
    started_as_far_as_the_host_can(&report);
    let report = &report["host"];
    assert_eq!(report["can_run"], true, "{}", check.report());
    let findings = report["findings"].as_array().unwrap();
    for name in [
        "kvm",
        "vsock",
        "qemu",
        "user network",
        "guest",
        "guest manifest",
        "user namespaces",
        "shim",
        "snapshotter",
    ] {
        assert!(
            findings.iter().any(|it| it["name"] == name),
            "no {name} in {}",
            check.stdout
        );
    }
}

fn a_confidential_guest_is_refused(user: &User<'_>) {
    let host = user.host;
    let tee = host.stage.state.path().join("snp.toml");
    let text = std::fs::read_to_string(&host.config).unwrap();
    let text = text.replace("tee = \"none\"", "tee = \"snp\"");
    let text = text.replace("shared_fs = \"virtio-fs\"", "shared_fs = \"none\"");
    let vmlinux = product::guest("vmlinux").unwrap();
    let vmlinuz = product::guest("vmlinuz").unwrap();
    let [vmlinux, vmlinuz] = [vmlinux, vmlinuz].map(|path| path.display().to_string());
    let firmware = format!("[hypervisor.qemu]\nfirmware = {:?}\n", snp_firmware());
    let text = text.replace("[hypervisor.qemu]\n", &firmware);
    std::fs::write(&tee, text.replace(&vmlinux, &vmlinuz)).unwrap();
    let words = [
        "run",
        "--rm",
        "--config",
        tee.to_str().unwrap(),
        &host.image,
        "/bin/true",
    ];
    let refused = with_input(QUICK, &mut user.command(&words), b"").unwrap();
    let told = "no confidential guest is launched, and nothing in its place: SEV-SNP: ";
    assert!(
        refused.code != 0 && refused.stderr.contains(told),
        "{}",
        refused.report()
    );
}

/// And nothing of it was root's.
fn nothing_is_left_of_it(user: &User<'_>) {
    let left: Vec<_> = std::fs::read_dir(user.own.join("cloister"))
        .unwrap()
        .flatten()
        .collect();
    let names: Vec<_> = left
        .iter()
        .map(|it| it.file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|name| name.starts_with('@')), "{names:?}");
}

/// A configuration whose guests talk to their devices as confidential ones have to: by copies in memory that
/// they share, which is all that QEMU and the vsock device are given.
fn as_if_confidential(host: &ByHand) -> PathBuf {
    let base = host.stage.state.path();
    let qemu = base.join("qemu-platform-dma");
    let script = "#!/bin/sh\nexec qemu-system-x86_64 \"$@\" -global virtio-device.iommu_platform=on \
                  -global virtio-pci.disable-legacy=on\n";
    std::fs::write(&qemu, script).unwrap();
    std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = std::fs::read_to_string(&host.config).unwrap();
    let table = format!(
        "[hypervisor.qemu]\npath = {:?}\n",
        qemu.display().to_string()
    );
    let text = text.replace("[hypervisor.qemu]\n", &table);
    let text = text.replace("kernel_params = \"", "kernel_params = \"swiotlb=force ");
    assert!(text.contains("swiotlb=force"), "{text}");
    let config = base.join("platform-dma.toml");
    std::fs::write(&config, text).unwrap();
    config
}

/// The plain guest starts; what a host without the hardware cannot try is said to be untried, and why.
fn started_as_far_as_the_host_can(report: &Value) {
    let proof = |id: &str| {
        let mut proofs = report["proofs"].as_array().unwrap().iter();
        proofs.find(|it| it["id"] == id).unwrap().clone()
    };
    let start = proof("guest.start");
    assert_eq!(start["outcome"], "holds", "{start}");
    assert!(
        start["found"].as_str().unwrap().contains("READY after"),
        "{start}"
    );
    for id in [
        "kvm.start",
        "snp.start",
        "snp.digest",
        "snp.refusal",
        "tdx.start",
    ] {
        let proof = proof(id);
        assert_ne!(proof["outcome"], "fails", "{proof}");
        assert_ne!(proof["found"], "", "{proof}");
    }
}

/// Firmware that starts SEV-SNP guests.
fn snp_firmware() -> PathBuf {
    product::top().join(".cache/qemu/testing/root/usr/share/ovmf/OVMF.amdsev.fd")
}

fn keeper_of(root: &Path, name: &str) -> i32 {
    let record = root.join("@run/default").join(name).join("run.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    i32::try_from(record["keeper"]["pid"].as_i64().unwrap()).unwrap()
}

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_millis(500));
}
