//! A pull that takes long: its pod stays usable meanwhile, a deadline says how far it was, and what ends
//! it leaves nothing of it in the guest.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::containerd::NAMESPACE;
use support::image::{Entry, Recipe};
use support::line::SlowLine;
use support::need;
use support::pod::Pod;
use support::product;
use support::run::{Finished, Running, with_input};
use support::stage::{START, Stage, TOOLS};

/// What the large layer has, and what comes through the line in a second: a pull of two minutes.
const LAYER: usize = 24 << 20;
const SLOW: u64 = 200 << 10;
const QUICK: u64 = 1 << 30;
/// The layer would take seven hours. Were it less, the guest would take the line for dead.
const STALLED: u64 = 1 << 10;
/// What `ctr` waits for a container. The policy alone takes seconds of it under emulation.
const HURRY: Duration = Duration::from_secs(24);

#[test]
fn a_slow_pull_tells_how_far_it_is_and_ends_without_a_trace() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let line = SlowLine::open(stage.registry.address(), SLOW).unwrap();
    let small = stage
        .push(&Recipe::busybox("small").unwrap(), "small")
        .unwrap();
    let large = stage.push(&large("large"), "large").unwrap();
    let large = large.replace(stage.registry.address(), line.address());
    let init_data = stage.init_data();
    let mut settings = stage.settings();
    settings.allow.push(line.address().to_owned());
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let before = stage.containerd.leftovers();

    let sandbox = member("pod", "sandbox", &config, &empty).with_init_data(&init_data);
    let app = |id| member(id, "container", &config, &empty).from_image(&small);
    for container in [sandbox, app("app"), app("hung"), app("doomed")] {
        let run = stage.run(&container).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
    }
    let used = used(&stage);
    let late = member("late", "container", &config, &empty).from_image(&large);

    a_deadline_says_how_far_the_pull_was(&stage, &late, &large);
    assert_nothing_is_left(&stage, used);
    the_pod_answers_during_a_pull_and_a_kill_ends_it(&stage, &line, [&late, &app("new")], &large);
    assert_nothing_is_left(&stage, used);
    a_client_that_goes_away_ends_the_pull(&stage, &late);
    assert_nothing_is_left(&stage, used);

    // The name is free again, and the same image comes when there is time.
    line.set(QUICK);
    let run = stage.run(&late).unwrap();
    assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
    let size = exec(&stage, "late", &["/bin/stat", "-c", "%s", "/large"]);
    assert_eq!(size.stdout.trim(), LAYER.to_string(), "{}", size.report());
    for id in ["late", "app", "pod"] {
        stage.containerd.remove(id);
    }
    stage.settled(&before).unwrap();
}

fn member<'a>(id: &'a str, kind: &str, config: &'a Path, empty: &'a Path) -> Pod<'a> {
    let kind = format!("io.kubernetes.cri.container-type={kind}");
    let pod = "io.kubernetes.cri.sandbox-id=pod";
    Pod::new(id, config, empty, &["/bin/sleep", "3600"])
        .flag(&["--annotation", &kind, "--annotation", pod])
        .flag(&["--detach", "--null-io"])
}

fn a_deadline_says_how_far_the_pull_was(stage: &Stage, late: &Pod<'_>, image: &str) {
    let words = late.ctr().unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = stage.containerd.ctr_hurried(HURRY, &words).unwrap();
    assert_ne!(run.code, 0, "{}", run.report());
    println!("{}", run.stderr);
    for part in [
        &format!(
            "pull: deadline of {} s exceeded while pulling {image}: ",
            HURRY.as_secs()
        ),
        " of 3 layers unpacked, ",
        "MiB fetched at ",
        "/s, which leaves ",
        "runtimeRequestTimeout",
        "[deadline-exceeded]",
    ] {
        assert!(
            run.stderr.contains(part),
            "no {part:?} in {}\n{}",
            run.report(),
            stage.log_tail()
        );
    }
    stage.containerd.remove(late.id);
}

/// The first process drops what it does not handle, as the first of its PID namespace.
fn a_signal_for_all_reaches_further_processes(stage: &Stage) {
    let waits = [
        "task",
        "exec",
        "--exec-id",
        "u",
        "app",
        "/bin/sleep",
        "3600",
    ];
    let mut further = stage.containerd.ctr_running(&waits).unwrap();
    let all = ["task", "kill", "--all", "--signal", "SIGUSR1", "app"];
    let since = Instant::now();
    while !further.has_ended() {
        assert!(since.elapsed() < START, "{}", stage.log_tail());
        says(stage, &all);
        std::thread::sleep(Duration::from_millis(200));
    }
    let ended = further.finish(START).unwrap();
    assert_eq!(ended.code, 128 + 10, "{}", ended.report());
    let marker = exec(stage, "app", &["/bin/cat", "/marker"]);
    assert_eq!(marker.stdout, "small\n", "{}", marker.report());
}

/// Nothing comes from the registry any more, another container hangs, and one of its processes and one
/// beside it wait for ever: all the others answer, a new one starts, and the pull still hangs at the end.
fn the_pod_answers_during_a_pull_and_a_kill_ends_it(
    stage: &Stage,
    line: &SlowLine,
    [late, new]: [&Pod<'_>; 2],
    image: &str,
) {
    let running = begin(stage, late);
    line.set(STALLED);
    let progress = stage.progress("pod").unwrap();
    assert!(
        progress.contains("late: ") && progress.contains(image),
        "{progress}"
    );
    let hung = ["task", "exec", "--exec-id", "h", "hung", "/bin/cat"];
    let hung = stage.containerd.ctr_running(&hung).unwrap();
    let since = Instant::now();
    let probe = [
        "task",
        "kill",
        "--signal",
        "SIGCONT",
        "--exec-id",
        "h",
        "hung",
    ];
    while stage.containerd.ctr(&probe).unwrap().code != 0 {
        assert!(since.elapsed() < START, "{}", stage.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }
    says(stage, &["task", "pause", "hung"]);
    let refused = stage
        .containerd
        .ctr(&["task", "exec", "--exec-id", "p", "hung", "/bin/true"]);
    let refused = refused.unwrap();
    assert!(refused.said().contains("is paused"), "{}", refused.report());
    let waiting = stage
        .containerd
        .ctr_running(&["task", "attach", "app"])
        .unwrap();

    // The state, the processes and the numbers of other containers, and of the pod.
    let listed = says(stage, &["task", "list"]).stdout;
    for (id, state) in [("app", "RUNNING"), ("hung", "PAUSED")] {
        let mut lines = listed.lines().filter(|line| line.starts_with(id));
        assert!(lines.any(|line| line.ends_with(state)), "{listed}");
    }
    says(stage, &["task", "ps", "app"]);
    says(stage, &["task", "metrics", "app"]);
    says(stage, &["task", "metrics", "hung"]);
    // One that is paused goes on where it was.
    says(stage, &["task", "pause", "app"]);
    says(stage, &["task", "resume", "app"]);
    let listed = says(stage, &["task", "list"]).stdout;
    let mut app = listed.lines().filter(|line| line.starts_with("app"));
    assert!(app.any(|line| line.ends_with("RUNNING")), "{listed}");
    let marker = exec(stage, "app", &["/bin/cat", "/marker"]);
    assert_eq!(marker.stdout, "small\n", "{}", marker.report());
    a_signal_for_all_reaches_further_processes(stage);
    // One is killed and deleted, and one is made.
    says(stage, &["task", "kill", "--signal", "SIGKILL", "doomed"]);
    says(stage, &["task", "delete", "--force", "doomed"]);
    says(stage, &["container", "delete", "doomed"]);
    let run = stage.run(new).unwrap();
    assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
    stage.containerd.remove(new.id);
    // Also the one that hangs.
    says(stage, &["task", "kill", "--signal", "SIGKILL", "hung"]);
    let ended = hung.finish(START).unwrap();
    assert_eq!(ended.code, 137, "{}", ended.report());
    stage.containerd.remove("hung");
    waiting.crash().unwrap();
    assert!(stage.progress("pod").unwrap().contains("late: "));

    // As with runc there is no task of it yet: who creates it has to go.
    let kill = ["task", "kill", "--signal", "SIGKILL", late.id];
    let killed = stage.containerd.ctr(&kill).unwrap();
    assert!(
        killed.code != 0 && killed.said().contains("is being created"),
        "{}\n{}",
        killed.report(),
        stage.log_tail()
    );
    ends_the_pull(stage, running);
    stage.containerd.remove(late.id);
    line.set(SLOW);
}

#[track_caller]
fn says(stage: &Stage, words: &[&str]) -> Finished {
    let said = stage.containerd.ctr(words).unwrap();
    assert_eq!(said.code, 0, "{}\n{}", said.report(), stage.log_tail());
    said
}

fn a_client_that_goes_away_ends_the_pull(stage: &Stage, late: &Pod<'_>) {
    let client = begin(stage, late);
    ends_the_pull(stage, client);
    stage.containerd.remove(late.id);
}

/// The end of whoever waits for it.
fn ends_the_pull(stage: &Stage, client: Running) {
    client.crash().unwrap();
    let since = Instant::now();
    while stage.progress("pod").unwrap().contains("late: ") {
        assert!(since.elapsed() < START, "{}", stage.log_tail());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asks for a container, and comes back when layers of its image come.
fn begin(stage: &Stage, pod: &Pod<'_>) -> Running {
    let words = pod.ctr().unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let running = stage.containerd.ctr_running(&words).unwrap();
    let since = Instant::now();
    while !stage.progress("pod").unwrap().contains("of 3 layers") {
        assert!(since.elapsed() < START, "{}", stage.log_tail());
        std::thread::sleep(Duration::from_millis(200));
    }
    running
}

fn exec(stage: &Stage, id: &str, words: &[&str]) -> Finished {
    let mut all = vec!["task", "exec", "--exec-id", "e", id];
    all.extend(words);
    stage.containerd.ctr_within(START, &all).unwrap()
}

/// KiB that are taken of the file system into which the guest unpacks.
fn used(stage: &Stage) -> u64 {
    let said = exec(stage, "app", &["/bin/df", "-k", "/"]);
    let used = said.stdout.lines().last().and_then(|line| {
        let mut words = line.split_ascii_whitespace();
        words.nth(2)?.parse().ok()
    });
    used.unwrap_or_else(|| panic!("{}", said.report()))
}

fn assert_nothing_is_left(stage: &Stage, before: u64) {
    let now = used(stage);
    // Of the agent's own files a few KiB come and go.
    assert!(now <= before + 256, "{before} KiB were taken, {now} are");
}

/// An image with a large layer.
fn large(marker: &str) -> Recipe {
    let mut recipe = Recipe::busybox(marker).unwrap();
    recipe
        .layers
        .push(vec![Entry::File("large".into(), 0o644, noise(LAYER))]);
    recipe
}

/// Bytes that no compression makes fewer.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

#[test]
fn cloister_run_shows_the_pull_and_takes_everything_away() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let image = stage
        .push(&Recipe::busybox("run").unwrap(), "small")
        .unwrap();
    let line = SlowLine::open(stage.registry.address(), SLOW / 10).unwrap();
    // Another one, since the node's mirror has what was pulled before.
    let slow = stage.push(&large("slow"), "slow").unwrap();
    let slow = slow.replace(stage.registry.address(), line.address());
    let init_data = stage
        .state
        .file("init-data.toml", stage.init_data().toml)
        .unwrap();
    let mut settings = stage.settings();
    settings.allow.push(line.address().to_owned());
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let before = stage.containerd.leftovers();
    let command = |more: &[&str]| {
        let mut command = Command::new(product::bin("cloister").unwrap());
        command
            .env("CLOISTER_STATE_ROOT", stage.containerd.shim_state())
            .args(["run", "--rm", "--namespace", NAMESPACE, "--config"])
            .arg(&config)
            .arg("--init-data")
            .arg(&init_data)
            .args(more);
        command
    };
    let run = |more: &[&str], input: &[u8]| with_input(START, &mut command(more), input).unwrap();
    // The image's own program.
    let plain = run(&[&image], b"");
    assert_eq!(
        (plain.code, plain.stdout.as_str()),
        (0, "run\n"),
        "{}",
        plain.report()
    );
    for part in [": booting the VM\n", &format!(": pulling {image}")] {
        assert!(plain.stderr.contains(part), "{}", plain.report());
    }
    // Arguments, both outputs, the exit code, and input to its end.
    let script = "wc -c; echo err >&2; exit 7";
    let other = run(
        &["--quiet", "--interactive", &image, "/bin/sh", "-c", script],
        b"12345",
    );
    assert_eq!(
        (other.code, other.stdout.trim(), other.stderr.as_str()),
        (7, "5", "err\n"),
        "{}",
        other.report()
    );
    let missing = run(&[&image.replace("small", "none")], b"");
    assert!(
        missing.code == 125 && missing.stderr.contains("[image-not-found]"),
        "{}",
        missing.report()
    );
    // What a terminal sends during the pull ends it.
    let running = Running::start(&mut command(&["--name", "slow", &slow])).unwrap();
    let since = Instant::now();
    while !stage
        .progress("slow")
        .is_ok_and(|said| said.contains("of 3 layers"))
    {
        assert!(since.elapsed() < START, "the pull never began");
        std::thread::sleep(Duration::from_millis(200));
    }
    running.interrupt().unwrap();
    let ended = running.finish(START).unwrap();
    assert_eq!(ended.code, 130, "{}", ended.report());
    stage.settled(&before).unwrap();
}
