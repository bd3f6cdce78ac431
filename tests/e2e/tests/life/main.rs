//! Whatever dies, at whatever moment: the host is told the truth, nothing is left, and the same name can be used again.
//!
//! The seed is printed; `CLOISTER_SEED` repeats a run. `CLOISTER_LIFE_RUNS=200` is the long run, for a night or a
//! release; a few are made each time. `CLOISTER_LIFE_FULL=1` makes the crowds as large as a node's.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod node;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::containerd::NAMESPACE;
use support::image::BUSYBOX;
use support::need;
use support::pod::Pod;
use support::stage::START;

use self::node::{MEMORY, Node, VIRTIOFSD, VMM, Victim, settled, traces};

/// Deaths of one run, unless the environment says another number.
const RUNS: u64 = 8;
/// A pod lives about this long here: a start, two further processes, a stop.
const SPAN_MS: u64 = 4_500;
/// What the end of a guest that does not answer may take: twice what the shim gives it.
const BOUND: Duration = Duration::from_secs(40);
/// How much a shim may have grown after all of a crowd has gone.
const FLAT_KIB: u64 = 2 * 1024;
const TOOLS: [&str; 5] = [
    "containerd",
    "ctr",
    "qemu-system-x86_64",
    "virtiofsd",
    BUSYBOX,
];

const VICTIMS: [Victim; 6] = [
    Victim::Vmm,
    Victim::Shim,
    Victim::Containerd,
    Victim::Guest,
    Victim::Virtiofsd,
    Victim::Kernel,
];

#[test]
fn a_death_at_any_moment_leaves_the_truth_and_nothing_else() {
    if !need(&TOOLS) {
        return;
    }
    let runs = number("CLOISTER_LIFE_RUNS").unwrap_or(RUNS);
    let mut random = Random::seeded();
    let mut node = Node::start();
    let before = traces(&node);
    let mut struck = 0;
    for run in 0..runs {
        let victim = VICTIMS[usize::try_from(run).unwrap() % VICTIMS.len()];
        let moment = Duration::from_millis(random.below(SPAN_MS));
        println!("run {run}: {victim:?} after {moment:?}");
        struck += u64::from(die(&mut node, victim, moment));
        settled(
            &node,
            &before,
            &format!("run {run}: {victim:?} after {moment:?}"),
        );
    }
    println!("{struck} of {runs} struck somebody");
    assert!(struck * 2 >= runs, "the pods are over before anybody dies");
    // The name that every one of them had.
    node.pod("life", &["/bin/sleep", "3600"]);
    assert_eq!(node.exec("life", "again"), "alive\n");
    node.stage.containerd.remove("life");
    settled(&node, &before, "the last one");
}

/// A pod that starts, runs two further processes and stops, and the death of one of its parts meanwhile; whether
/// there was one.
fn die(node: &mut Node, victim: Victim, moment: Duration) -> bool {
    let args = ["/bin/sleep", "3600"];
    let pod = Pod::new("life", &node.config, &node.root, &args)
        .flag(&["--detach", "--null-io"])
        .flag(&["--memory-limit", MEMORY]);
    let socket = node.stage.containerd.socket().display().to_string();
    let words = pod.ctr().unwrap().join(" ");
    let ctr = format!("ctr --address {socket} --namespace {NAMESPACE}");
    // `ctr` waits for a process for as long as nobody ends it.
    let exec = format!("timeout 20 {ctr} task exec --exec-id");
    let script = format!(
        "{ctr} {words} && {exec} a life /bin/cat /marker && {exec} b life /bin/cat /marker; \
         {ctr} task kill --signal SIGKILL life; true"
    );
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &script]);
    node.stage.containerd.note_pod("life");
    let running = support::run::Running::start(&mut shell).unwrap();
    std::thread::sleep(moment);
    let began = Instant::now();
    let mut struck = node.strike(victim) > 0;
    // What is not there yet is waited for; after the pod's end nothing comes.
    while !struck && began.elapsed() < Duration::from_millis(SPAN_MS).saturating_sub(moment) {
        std::thread::sleep(Duration::from_millis(50));
        struck = node.strike(victim) > 0;
    }
    // Whoever waits is answered.
    let since = Instant::now();
    running.finish(START).unwrap();
    if victim == Victim::Guest && struck {
        // It was killed last, which a guest that stands still does not outlive.
        let killed = Instant::now();
        while !node.pids(VMM).is_empty() {
            assert!(killed.elapsed() < BOUND, "{}", node.stage.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    // In this order: a VM may end between the two.
    let alive = !node.pids(VMM).is_empty();
    let state = node.state("life");
    println!(
        "  struck: {struck}; answered after {:?}; {state:?}, a VM: {alive}",
        since.elapsed()
    );
    if !alive {
        assert_ne!(
            state,
            "RUNNING",
            "nothing of it runs\n{}",
            node.stage.log_tail()
        );
    }
    let since = Instant::now();
    node.stage.containerd.remove("life");
    assert!(
        since.elapsed() < BOUND,
        "the removal took {:?}",
        since.elapsed()
    );
    assert_eq!(node.state("life"), "");
    struck
}

#[test]
fn a_guest_that_stands_still_holds_no_pod() {
    if !need(&TOOLS) {
        return;
    }
    let node = Node::start();
    let before = traces(&node);
    node.member("life-pod", "sandbox");
    node.member("life-main", "container");
    node.must_signal(VMM, Signal::SIGSTOP);
    let since = Instant::now();
    // As kubelets do, politely first: with the signal that the image names.
    let said = node
        .stage
        .containerd
        .ctr_within(BOUND, &["task", "kill", "--signal", "SIGQUIT", "life-main"]);
    assert_eq!(said.unwrap().code, 0, "{}", node.stage.log_tail());
    let took = since.elapsed();
    println!("a guest that stands still is ended in {took:?}");
    let log = node.stage.containerd.log();
    assert!(
        log.contains("the guest is stuck"),
        "{}",
        node.stage.log_tail()
    );
    assert!(took < BOUND, "{took:?}");
    assert!(node.pids(VMM).is_empty());
    for id in ["life-main", "life-pod"] {
        assert_ne!(node.state(id), "RUNNING", "{id}");
        // What has ended already is ended again without harm.
        node.stage.containerd.remove(id);
        node.stage.containerd.remove(id);
    }
    settled(&node, &before, "a guest that stands still");
}

#[test]
fn what_cannot_be_killed_and_what_nobody_reads_hold_no_pod() {
    if !need(&TOOLS) {
        return;
    }
    let node = Node::start();
    let before = traces(&node);
    node.pod("life-full", &["/bin/sleep", "3600"]);
    // Its output goes nowhere: `ctr` is stopped and its FIFO stays.
    let words = [
        "task",
        "exec",
        "--exec-id",
        "life-full",
        "life-full",
        "/bin/dd",
        "if=/dev/zero",
        "bs=64k",
        "count=64",
    ];
    let client = node.stage.containerd.ctr_running(&words).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let pid = Pid::from_raw(i32::try_from(client.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    assert_eq!(node.exec("life-full", "beside"), "alive\n");
    // The file system of its root answers no more: whoever reads from it waits in the kernel.
    node.must_signal(VIRTIOFSD, Signal::SIGSTOP);
    let words = [
        "task",
        "exec",
        "--detach",
        "--exec-id",
        "stuck",
        "life-full",
        "/bin/ls",
        "/etc/nowhere",
    ];
    let _ = node.stage.containerd.ctr(&words);
    let since = Instant::now();
    node.stage.containerd.remove("life-full");
    while !node.pids(VMM).is_empty() {
        assert!(
            since.elapsed() < BOUND * 2,
            "the VM lives on\n{}",
            node.stage.log_tail()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("what cannot be killed is gone in {:?}", since.elapsed());
    let log = node.stage.containerd.log();
    assert!(
        log.contains("a process cannot be killed"),
        "{}",
        node.stage.log_tail()
    );
    kill(pid, Signal::SIGCONT).unwrap();
    let _ = client.crash();
    node.stage.containerd.remove("life-full");
    settled(&node, &before, "what cannot be killed");
}

#[test]
fn crowds_leave_a_shim_as_it_was() {
    if !need(&TOOLS) {
        return;
    }
    let full = number("CLOISTER_LIFE_FULL").is_some();
    let (execs, containers, pods) = if full { (1000, 100, 50) } else { (25, 6, 2) };
    let node = Node::start();
    let before = traces(&node);
    node.member("life-pod", "sandbox");
    node.member("life-main", "container");
    for warm in 0..10 {
        node.exec("life-main", &format!("warm{warm}"));
    }
    let (shim, agent) = (node.shim_kib(), node.agent_pss_kib("life-pod"));
    for number in 0..execs {
        assert_eq!(node.exec("life-main", &format!("e{number}")), "alive\n");
    }
    flat(&node, shim, agent, &format!("{execs} further processes"));
    for number in 0..containers {
        node.member(&format!("life-c{number}"), "container");
    }
    println!("with {containers} containers: shim {} KiB", node.shim_kib());
    for number in 0..containers {
        node.stage.containerd.remove(&format!("life-c{number}"));
    }
    flat(&node, shim, agent, &format!("{containers} containers"));
    for id in ["life-main", "life-pod"] {
        node.stage.containerd.remove(id);
    }
    settled(&node, &before, "the crowd");
    for number in 0..pods {
        let id = format!("life-p{number}");
        node.pod(&id, &["/bin/sleep", "3600"]);
        node.stage.containerd.remove(&id);
        settled(&node, &before, &format!("pod {number} of {pods}"));
    }
}

#[track_caller]
fn flat(node: &Node, shim: u64, agent: u64, what: &str) {
    let (shim_now, agent_now) = (node.shim_kib(), node.agent_pss_kib("life-pod"));
    println!("after {what}: shim {shim} -> {shim_now} KiB, agent {agent} -> {agent_now} KiB");
    assert!(shim_now <= shim + FLAT_KIB, "the shim grew");
    assert!(agent_now <= agent + FLAT_KIB, "the agent grew");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap())
}

/// SplitMix64: enough to pick moments, and the same from the same seed.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let seed = number("CLOISTER_SEED").unwrap_or(now);
        println!("CLOISTER_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}
