//! Standard input and output of processes in a real guest: whole, in order, ended where they end, and no
//! stream that nobody serves holds up anything but its own process.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use support::containerd::NAMESPACE;
use support::image::{BUSYBOX, Recipe};
use support::need;
use support::pod::{Pod, Settings};
use support::run::{Finished, Running};
use support::stage::{START, Stage};

/// What passes through one stream.
const MUCH: usize = 100_000_000;
/// What it may take under emulation, on a machine that does other things too.
const MUCH_TIME: Duration = Duration::from_secs(300);
/// What a process writes that is gone at once: less than its pipe holds.
const LITTLE: usize = 60_000;
/// What the shim may grow by while nobody reads what a process writes.
const FLAT_KIB: u64 = 4 * 1024;

/// A pod with a container that sleeps, whose root the host shares.
struct Place {
    stage: Stage,
    config: PathBuf,
    root: PathBuf,
}

impl Place {
    fn start() -> Self {
        let stage = Stage::plain().unwrap();
        let config = Settings::plain().write(&stage.state, "c.toml").unwrap();
        let root = stage.state.dir("rootfs").unwrap();
        Recipe::busybox("streams").unwrap().unpack(&root).unwrap();
        let place = Self {
            stage,
            config,
            root,
        };
        let sleep = ["/bin/busybox", "sleep", "3600"];
        place.run("pod", "sandbox", &sleep, &["--detach", "--null-io"]);
        place.run("main", "container", &sleep, &["--detach", "--null-io"]);
        place
    }

    fn run(&self, id: &str, kind: &str, args: &[&str], flags: &[&str]) {
        let kind = format!("io.kubernetes.cri.container-type={kind}");
        let pod = Pod::new(id, &self.config, &self.root, args)
            .flag(&["--annotation", &kind])
            .flag(&["--annotation", "io.kubernetes.cri.sandbox-id=pod"])
            .flag(flags);
        let run = self.stage.run(&pod).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), self.stage.log_tail());
    }

    /// A further process, given its input.
    fn exec(&self, id: &str, name: &str, script: &str, input: &[u8]) -> Finished {
        self.begin(id, name, script)
            .feed(input)
            .finish(MUCH_TIME)
            .unwrap()
    }

    fn begin(&self, id: &str, name: &str, script: &str) -> Running {
        let words = [
            "task",
            "exec",
            "--exec-id",
            name,
            id,
            "/bin/busybox",
            "sh",
            "-c",
            script,
        ];
        self.stage.containerd.ctr_running(&words).unwrap()
    }

    #[track_caller]
    fn says(&self, id: &str, name: &str, script: &str, input: &[u8]) -> String {
        let said = self.exec(id, name, script, input);
        assert_eq!(said.code, 0, "{}\n{}", said.report(), self.stage.log_tail());
        said.stdout
    }

    #[track_caller]
    fn ctr(&self, words: &[&str]) -> Finished {
        let said = self.stage.containerd.ctr(words).unwrap();
        assert_eq!(said.code, 0, "{}\n{}", said.report(), self.stage.log_tail());
        said
    }

    /// The state of a container, as `ctr` lists it.
    fn state(&self, id: &str) -> String {
        let listed = self.ctr(&["task", "list"]).stdout;
        let line = listed
            .lines()
            .find(|line| line.split_whitespace().next() == Some(id));
        let state = line.and_then(|line| line.split_whitespace().last());
        state.unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn until(&self, id: &str, state: &str) {
        let since = Instant::now();
        while self.state(id) != state {
            assert!(since.elapsed() < START, "{id}: {}", self.stage.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the shim has in memory.
    fn shim_kib(&self) -> u64 {
        let all = support::host::processes_of(self.stage.state.path());
        let mut shims = all.iter().filter(|process| {
            process.command.contains("containerd-shim-cloister-v2")
                && process.command.contains(" pod")
        });
        let pid = shims.next().unwrap().pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.trim().parse().unwrap()
    }
}

#[test]
fn streams_are_whole_and_nobody_waits_for_anothers() {
    if !need(&[
        "containerd",
        "ctr",
        "qemu-system-x86_64",
        "virtiofsd",
        "script",
        BUSYBOX,
    ]) {
        return;
    }
    let mut place = Place::start();
    a_hundred_megabytes_pass_whole_and_in_order(&place);
    what_a_process_left_in_its_pipe_arrives(&place);
    the_end_of_input_arrives_and_a_code_comes_back(&place);
    a_terminal_has_a_size_and_takes_input(&place);
    input_that_nobody_reads_holds_up_nobody(&place);
    a_left_over_child_does_not_hold_up_the_end(&place);
    a_logger_and_a_file_take_the_outputs(&place);
    output_that_nobody_reads_stops_only_who_writes_it(&mut place);
    place.stage.containerd.remove("main");
    place.stage.containerd.remove("pod");
}

fn a_hundred_megabytes_pass_whole_and_in_order(place: &Place) {
    let much = noise(MUCH);
    let expected = digest(&much);
    let took = Instant::now();
    let echoed = place.says("main", "echo", "exec /bin/busybox cat", &much);
    println!("100 MB in and out in {:.1} s", took.elapsed().as_secs_f32());
    assert_eq!(echoed.len(), MUCH);
    assert_eq!(digest(echoed.as_bytes()), expected);
    // The guest's own word for what came in.
    let summed = place.says("main", "sum", "exec /bin/busybox sha256sum", &much);
    assert_eq!(summed.split_whitespace().next(), Some(expected.as_str()));
}

fn what_a_process_left_in_its_pipe_arrives(place: &Place) {
    for round in 0..3 {
        let script = format!(
            "/bin/busybox head -c {LITTLE} /dev/zero | /bin/busybox tr '\\0' x > /f; \
             /bin/busybox cat /f; exec /bin/busybox cat /f >&2"
        );
        let said = place.exec("main", &format!("left{round}"), &script, b"");
        assert_eq!(said.code, 0, "{}", said.report());
        assert_eq!((said.stdout.len(), said.stderr.len()), (LITTLE, LITTLE));
    }
}

fn the_end_of_input_arrives_and_a_code_comes_back(place: &Place) {
    let said = place.exec(
        "main",
        "end",
        "/bin/busybox wc -c; echo e >&2; exit 7",
        b"12345",
    );
    assert_eq!(
        (said.code, said.stdout.trim(), said.stderr.trim()),
        (7, "5", "e"),
        "{}",
        said.report()
    );
}

fn a_terminal_has_a_size_and_takes_input(place: &Place) {
    let exec = "task exec --tty --exec-id tty main /bin/busybox sh -c";
    // The size comes a moment after the start.
    let script = "read word; echo \"got $word\"; \
                  while [ \"$(stty size)\" = \"0 0\" ]; do sleep 0.1; done; stty size; tty; exit 5";
    let mut ctr = std::process::Command::new("script");
    let program = place.stage.containerd.command();
    let words: Vec<_> = program
        .get_args()
        .map(|word| word.to_string_lossy())
        .collect();
    let line = format!(
        "stty rows 33 cols 77; ctr {} {exec} '{script}'",
        words.join(" ")
    );
    ctr.args(["-qec", &line, "/dev/null"]);
    let running = Running::start(&mut ctr).unwrap();
    // It stays open, as a terminal does.
    let said = running.feed_and_hold(b"hello\n").finish(START).unwrap();
    for part in ["got hello", "33 77", "/dev/pts/"] {
        assert!(said.stdout.contains(part), "no {part:?}: {}", said.report());
    }
    assert_eq!(said.code, 5, "{}", said.report());
}

fn input_that_nobody_reads_holds_up_nobody(place: &Place) {
    let much = noise(4 << 20);
    let idle = place.begin("main", "deaf", "exec /bin/busybox sleep 3600");
    let feeding = std::thread::spawn(move || idle.feed(&much).finish(MUCH_TIME).unwrap());
    place.listed("main", "deaf");
    assert_eq!(place.says("main", "beside", "echo here", b""), "here\n");
    place.ctr(&[
        "task",
        "kill",
        "--signal",
        "SIGKILL",
        "--exec-id",
        "deaf",
        "main",
    ]);
    let ended = feeding.join().unwrap();
    assert_eq!(ended.code, 137, "{}", ended.report());
}

fn a_left_over_child_does_not_hold_up_the_end(place: &Place) {
    let script = "/bin/busybox sleep 3600 & echo left";
    assert_eq!(place.says("main", "parent", script, b""), "left\n");
}

fn a_logger_and_a_file_take_the_outputs(place: &Place) {
    let script = "#!/bin/sh\nexec 5>&-\ncat <&4 >\"$2/err\" &\ncat <&3 >\"$2/out\"\nwait\n\
                  echo \"$CONTAINER_NAMESPACE $CONTAINER_ID\" >\"$2/who.part\"\n\
                  mv \"$2/who.part\" \"$2/who\"\n";
    let logger = place.stage.state.file("logger", script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&logger, mode).unwrap();
    let directory = place.stage.state.dir("logged").unwrap();
    let uri = format!("binary://{}?to={}", logger.display(), directory.display());
    place.log_to(&uri, "logged");
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let since = Instant::now();
    while !directory.join("who").exists() {
        assert!(since.elapsed() < START, "{}", place.stage.log_tail());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((read("out"), read("err")), ("out\n".into(), "err\n".into()));
    assert_eq!(read("who"), format!("{NAMESPACE} logged\n"));

    place.log_to(
        &format!("file://{}", directory.join("both").display()),
        "filed",
    );
    let mut both: Vec<_> = read("both").lines().map(str::to_owned).collect();
    both.sort();
    assert_eq!(both, ["err", "out"]);
}

/// `ctr run --detach` leaves FIFOs that nobody reads, until somebody attaches.
fn output_that_nobody_reads_stops_only_who_writes_it(place: &mut Place) {
    let fifos = place.stage.state.dir("fifos").unwrap();
    let go = place.root.join("go");
    let script =
        "while ! [ -e /go ]; do /bin/busybox sleep 0.1; done; exec /bin/busybox seq 1 100000000";
    place.run(
        "full",
        "container",
        &["/bin/busybox", "sh", "-c", script],
        &["--detach", "--fifo-dir", fifos.to_str().unwrap()],
    );
    let before = place.shim_kib();
    std::fs::write(&go, "").unwrap();
    // It writes until all that is between is full, and then no more.
    place.stands_still("full");
    let after = place.shim_kib();
    assert!(
        after <= before + FLAT_KIB,
        "the shim had {before} KiB and has {after}"
    );
    assert_eq!(place.state("full"), "RUNNING");
    place.ctr(&["task", "metrics", "full"]);
    assert_eq!(place.says("full", "e", "echo in", b""), "in\n");
    assert_eq!(place.says("main", "e2", "echo beside", b""), "beside\n");

    // Somebody reads, goes away, containerd crashes and comes back, and somebody reads on: nothing is
    // missing between.
    let first = place.attached("full", 200_000);
    place.stage.containerd.crash().unwrap();
    place.stage.containerd.revive().unwrap();
    let second = place.attached("full", 200_000);
    let numbers = |text: &str| -> Vec<u64> {
        let whole = text.rsplit_once('\n').unwrap().0;
        whole.lines().filter_map(|line| line.parse().ok()).collect()
    };
    let (first, second) = (numbers(&first), numbers(&second));
    assert_eq!(first[0], 1);
    assert!(first.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert!(second[1..].windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert!(second[1] > first[first.len() - 1]);

    place.ctr(&["task", "kill", "--signal", "SIGKILL", "full"]);
    place.until("full", "STOPPED");
    place.ctr(&["task", "delete", "full"]);
    place.ctr(&["container", "delete", "full"]);
    std::fs::remove_file(&go).unwrap();
}

impl Place {
    /// Runs a process whose outputs go elsewhere.
    fn log_to(&self, uri: &str, name: &str) {
        let script = "echo out; echo err >&2";
        let to = ["task", "exec", "--log-uri", uri, "--exec-id", name, "main"];
        let words: Vec<_> = to
            .into_iter()
            .chain(["/bin/busybox", "sh", "-c", script])
            .collect();
        self.ctr(&words);
    }

    /// Waits until a further process runs.
    fn listed(&self, id: &str, exec: &str) {
        let since = Instant::now();
        let probe = ["task", "kill", "--signal", "SIGCONT", "--exec-id", exec, id];
        while self.stage.containerd.ctr(&probe).unwrap().code != 0 {
            assert!(since.elapsed() < START, "{}", self.stage.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a container uses no processor any more, though it would.
    fn stands_still(&self, id: &str) {
        let since = Instant::now();
        let used = || {
            let said = self
                .ctr(&["task", "metrics", "--format", "json", id])
                .stdout;
            let metrics: serde_json::Value = serde_json::from_str(&said).unwrap();
            find(&metrics, "usage_usec")
                .or_else(|| find(&metrics, "total"))
                .unwrap()
        };
        let mut last = used();
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = used();
            if now == last && now > 0 {
                return;
            }
            assert!(since.elapsed() < START, "{}", self.stage.log_tail());
            last = now;
        }
    }

    /// What a container writes while somebody is attached, until there are so many bytes.
    fn attached(&self, id: &str, bytes: usize) -> String {
        let command = format!("task attach {id}");
        let mut ctr = self.stage.containerd.command();
        ctr.args(command.split(' '));
        Running::start(&mut ctr)
            .unwrap()
            .until_said(bytes, START)
            .unwrap()
    }
}

/// The first number of this name in a JSON value.
fn find(value: &serde_json::Value, name: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(map) => map
            .get(name)
            .and_then(serde_json::Value::as_u64)
            .or_else(|| map.values().find_map(|inner| find(inner, name))),
        serde_json::Value::Array(list) => list.iter().find_map(|inner| find(inner, name)),
        _ => None,
    }
}

/// Text that nothing repeats in, so that what is missing or moved shows in its digest.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = Vec::with_capacity(count + 16);
    while text.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.extend_from_slice(format!("{state:016x}").as_bytes());
    }
    text.truncate(count);
    text
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
