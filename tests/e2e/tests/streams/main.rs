//! Standard input and output of processes in a real guest: whole, in order, ended where they end, and no
//! stream that nobody serves holds up anything but its own process.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod place;

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use support::containerd::NAMESPACE;
use support::image::BUSYBOX;
use support::need;
use support::run::Running;
use support::stage::START;

use place::Place;

/// What passes through one stream.
const MUCH: usize = 100_000_000;
/// What it may take under emulation, on a machine that does other things too.
const MUCH_TIME: Duration = Duration::from_secs(300);
/// What a process writes that is gone at once: less than its pipe holds.
const LITTLE: usize = 60_000;
/// What the shim may grow by while nobody reads what a process writes.
const FLAT_KIB: u64 = 2 * 1024;

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
    println!("nobody reads: shim {before} -> {after} KiB");
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
