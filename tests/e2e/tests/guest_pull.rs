//! A long-lived container from an image that the guest pulled: everything that a user does to a
//! running container, in one VM.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::process::Command;
use std::time::{Duration, Instant};

use support::image::Recipe;
use support::need;
use support::pod::Pod;
use support::run::{Finished, with_input, within};
use support::stage::{START, Stage, TOOLS};

const SHORT: Duration = Duration::from_secs(30);
const ID: &str = "pulled";

#[test]
fn a_guest_pulled_container_can_be_used_like_any_other() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let image = stage
        .push(&Recipe::busybox("in the clear").unwrap(), "plain")
        .unwrap();
    let init_data = stage.init_data();
    let config = stage.settings().write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let before = stage.containerd.leftovers();
    let pod = Pod::new(ID, &config, &empty, &["/bin/sleep", "3600"])
        .from_image(&image)
        .with_init_data(&init_data)
        .flag(&["--detach", "--null-io"]);
    let started = stage.run(&pod).unwrap();
    assert_eq!(
        started.code,
        0,
        "{}\n{}",
        started.report(),
        stage.log_tail()
    );

    output_environment_and_exit_codes(&stage);
    standard_input_ends(&stage);
    a_terminal_is_a_terminal(&stage);
    what_runs_can_be_listed_and_measured(&stage);
    large_output_is_whole(&stage);
    a_full_disk_is_an_error_and_the_guest_lives(&stage);
    signals_arrive(&stage);

    stage.containerd.remove(ID);
    stage.settled(&before).unwrap();
}

fn exec(stage: &Stage, name: &str, words: &[&str]) -> Finished {
    let mut all = vec!["task", "exec", "--exec-id", name, ID];
    all.extend(words);
    stage.containerd.ctr_within(SHORT, &all).unwrap()
}

fn output_environment_and_exit_codes(stage: &Stage) {
    let marker = exec(stage, "e1", &["/bin/cat", "/marker"]);
    assert_eq!(marker.stdout, "in the clear\n", "{}", marker.report());
    let both = exec(
        stage,
        "e2",
        &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"],
    );
    assert_eq!(
        (both.stdout.as_str(), both.stderr.as_str(), both.code),
        ("out\n", "err\n", 7)
    );
    let missing = exec(stage, "e3", &["/bin/no-such-program"]);
    assert_ne!(missing.code, 0);
    // The cause is told, and told once.
    let told = missing.stderr.matches("/bin/no-such-program").count();
    assert_eq!(told, 1, "{}", missing.report());
    // The image's environment reaches a process of the container.
    let environment = exec(stage, "e4", &["/bin/cat", "/proc/1/environ"]);
    assert!(
        environment.stdout.contains("FROM_IMAGE=yes"),
        "{}",
        environment.report()
    );
}

fn standard_input_ends(stage: &Stage) {
    let mut ctr = stage.containerd.command();
    ctr.args(["task", "exec", "--exec-id", "in", ID, "/bin/cat"]);
    let echoed = with_input(SHORT, &mut ctr, b"one\ntwo\n").unwrap();
    assert_eq!(
        (echoed.stdout.as_str(), echoed.code),
        ("one\ntwo\n", 0),
        "{}",
        echoed.report()
    );
}

fn a_terminal_is_a_terminal(stage: &Stage) {
    let socket = stage.containerd.socket().display().to_string();
    // `ctr` wants a terminal of its own for --tty; script(1) lends it one.
    let line = format!(
        "ctr --address {socket} --namespace {} task exec --tty --exec-id tty {ID} /bin/tty",
        support::containerd::NAMESPACE
    );
    let said = within(
        SHORT,
        Command::new("script").args(["-qec", &line, "/dev/null"]),
    )
    .unwrap();
    assert!(said.stdout.contains("/dev/pts/"), "{}", said.report());
}

fn what_runs_can_be_listed_and_measured(stage: &Stage) {
    let list = stage.containerd.ctr(&["task", "list"]).unwrap();
    assert!(
        list.stdout
            .lines()
            .any(|l| l.contains(ID) && l.contains("RUNNING")),
        "{}",
        list.report()
    );
    let pids = stage.containerd.ctr(&["task", "ps", ID]).unwrap();
    assert!(
        pids.code == 0 && pids.stdout.lines().count() >= 2,
        "{}",
        pids.report()
    );
    let metrics = stage.containerd.ctr(&["task", "metrics", ID]).unwrap();
    assert!(
        metrics.code == 0 && metrics.stdout.contains("memory"),
        "{}",
        metrics.report()
    );
    let guest = stage.metrics(ID).unwrap();
    for name in ["kata_agent_total_rss ", "cloister_agent_pss_bytes "] {
        assert!(guest.contains(&format!("\n{name}")), "no {name}in {guest}");
    }
}

fn large_output_is_whole(stage: &Stage) {
    let bytes = 4 * 1024 * 1024;
    let script = format!(
        "dd if=/dev/zero bs=65536 count={} 2>/dev/null | wc -c; ",
        bytes / 65536
    );
    let counted = exec(stage, "wc", &["/bin/sh", "-c", &script]);
    assert_eq!(
        counted.stdout.trim(),
        bytes.to_string(),
        "{}",
        counted.report()
    );
    let script = format!(
        "dd if=/dev/zero bs=65536 count={} 2>/dev/null",
        bytes / 65536
    );
    let whole = exec(stage, "big", &["/bin/sh", "-c", &script]);
    assert_eq!((whole.stdout.len(), whole.code), (bytes, 0));
}

fn a_full_disk_is_an_error_and_the_guest_lives(stage: &Stage) {
    let fill = exec(
        stage,
        "fill",
        &["/bin/dd", "if=/dev/zero", "of=/fill", "bs=1048576"],
    );
    assert!(
        fill.code != 0 && fill.stderr.contains("No space left on device"),
        "{}",
        fill.report()
    );
    let freed = exec(
        stage,
        "free",
        &["/bin/sh", "-c", ": > /fill && cat /marker"],
    );
    assert_eq!(freed.stdout, "in the clear\n", "{}", freed.report());
}

fn signals_arrive(stage: &Stage) {
    let waiting = stage
        .containerd
        .ctr_running(&["task", "exec", "--exec-id", "sig", ID, "/bin/sleep", "600"])
        .unwrap();
    let since = Instant::now();
    // The exec is there when a signal to it succeeds.
    while stage
        .containerd
        .ctr(&["task", "kill", "--exec-id", "sig", "-s", "SIGKILL", ID])
        .unwrap()
        .code
        != 0
    {
        assert!(since.elapsed() < SHORT, "the exec never came up");
        std::thread::sleep(Duration::from_millis(100));
    }
    let ended = waiting.finish(START).unwrap();
    assert_eq!(ended.code, 137, "{}", ended.report());
}
