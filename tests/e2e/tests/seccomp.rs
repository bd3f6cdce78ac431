//! Seccomp profiles inside of a real VM: what the container's process and a further one may call, with
//! `no_new_privs` and without, as root and as somebody else.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use serde_json::{Value, json};
use support::image::{BUSYBOX, Recipe};
use support::pod::{Pod, Settings};
use support::run::Finished;
use support::stage::Stage;
use support::{host, need};

/// `ENOSYS`, which no kernel says of `chmod`.
const ENOSYS: u32 = 38;
/// `CLONE_NEWUTS`.
const NEW_UTS: u32 = 0x0400_0000;
/// What a process sees of its filter and of its capabilities.
const STATUS: &str = "grep -E '^(Seccomp|NoNewPrivs|Cap(Prm|Eff|Bnd)):' /proc/self/status";
/// containerd's default set.
const USUAL: &str = "00000000a80425fb";
const NONE: &str = "0000000000000000";
/// What a static busybox calls to be a shell, and nothing that the runtime calls before it.
const SHELL: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "clock_nanosleep",
    "clone",
    "clone3",
    "close",
    "dup",
    "dup2",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "fcntl",
    "fork",
    "fstat",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getuid",
    "ioctl",
    "lseek",
    "lstat",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "pipe",
    "pipe2",
    "poll",
    "prlimit64",
    "read",
    "readlink",
    "readv",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigsuspend",
    "set_robust_list",
    "set_tid_address",
    "stat",
    "tgkill",
    "uname",
    "vfork",
    "wait4",
    "write",
    "writev",
    "fchmodat2",
    "from_the_future",
];

/// What every part of the test works with.
struct Place<'a> {
    stage: &'a Stage,
    config: &'a Path,
    root: &'a Path,
}

#[test]
fn profiles_hold_for_containers_and_for_further_processes() {
    let tools = [
        "containerd",
        "ctr",
        "qemu-system-x86_64",
        "virtiofsd",
        BUSYBOX,
    ];
    if !need(&tools) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let config = Settings::plain().write(&stage.state, "c.toml").unwrap();
    let root = stage.state.dir("rootfs").unwrap();
    Recipe::busybox("a file").unwrap().unpack(&root).unwrap();
    let place = Place {
        stage: &stage,
        config: &config,
        root: &root,
    };
    let before = stage.containerd.leftovers();
    place.start("pod", "sandbox", &[]);

    a_profile_that_allows_denies_what_it_names(&place);
    a_profile_that_denies_needs_to_allow_only_what_the_program_calls(&place);
    the_default_profile_of_containerd_holds(&place);
    without_a_profile_there_is_no_filter(&place);
    what_nobody_could_serve_is_refused(&place);

    assert_eq!(
        host::processes_of(stage.state.path())
            .into_iter()
            .filter(|process| process.command.contains("qemu-system"))
            .count(),
        1,
        "one pod has one VM"
    );
    stage.containerd.remove("pod");
    stage.settled(&before).unwrap();
}

fn a_profile_that_allows_denies_what_it_names(place: &Place<'_>) {
    let profile = place.profile(
        "denies.json",
        &json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["clone3", "chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO",
                 "errnoRet": ENOSYS},
                {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS,
                 "args": [{"index": 0, "value": NEW_UTS, "valueTwo": NEW_UTS,
                           "op": "SCMP_CMP_MASKED_EQ"}]},
            ],
        }),
    );
    let script = format!(
        "busybox mkdir /made; busybox chmod 600 /marker; busybox unshare -u true; \
         busybox unshare -i true; {STATUS}"
    );
    let denied = |said: &Finished, new_privs: u8, caps: &str| {
        let text = said.said();
        for part in [
            "'/made': Operation not permitted",
            "/marker: Function not implemented",
            "unshare(0x4000000): Function not implemented",
            "unshare(0x8000000): Operation not permitted",
            &format!("NoNewPrivs:\t{new_privs}"),
            "Seccomp:\t2",
            &format!("CapEff:\t{caps}"),
            &format!("CapPrm:\t{caps}"),
            &format!("CapBnd:\t{USUAL}"),
        ] {
            assert!(text.contains(part), "{part}\n{}", place.report(said));
        }
    };
    for (id, new_privs, flags) in [("kept", 1, &[][..]), ("gained", 0, &["--allow-new-privs"])] {
        let flags = [&["--seccomp", "--seccomp-profile", &profile], flags].concat();
        place.start(id, "container", &flags);
        denied(&place.exec(id, "0", &script), new_privs, USUAL);
        denied(&place.exec(id, "1000", &script), new_privs, NONE);
        place.stage.containerd.remove(id);
        denied(
            &place.run(&format!("{id}-2"), &flags, &script),
            new_privs,
            USUAL,
        );
    }
    assert!(!place.root.join("made").exists());
}

fn a_profile_that_denies_needs_to_allow_only_what_the_program_calls(place: &Place<'_>) {
    let profile = place.profile(
        "allows.json",
        &json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": SHELL, "action": "SCMP_ACT_ALLOW"}],
        }),
    );
    let script = format!("cat /marker; busybox mkdir /made; {STATUS}");
    for (id, flags) in [
        ("strict", &[][..]),
        ("strict-gained", &["--allow-new-privs"]),
    ] {
        let flags = [&["--seccomp", "--seccomp-profile", &profile], flags].concat();
        place.start(id, "container", &flags);
        let exec = place.exec(id, "1000", &script);
        place.stage.containerd.remove(id);
        for said in [exec, place.run(&format!("{id}-2"), &flags, &script)] {
            let text = said.said();
            assert!(text.contains("a file\n"), "{}", place.report(&said));
            assert!(
                text.contains("'/made': Permission denied"),
                "{}",
                place.report(&said)
            );
            assert!(text.contains("Seccomp:\t2"), "{}", place.report(&said));
        }
    }
}

fn the_default_profile_of_containerd_holds(place: &Place<'_>) {
    let script = format!("busybox unshare -n true; busybox mkdir /made && echo made; {STATUS}");
    let said = place.run("usual", &["--seccomp"], &script);
    let text = said.said();
    assert!(
        text.contains("Operation not permitted"),
        "{}",
        place.report(&said)
    );
    assert!(
        text.contains("made\n") && text.contains("Seccomp:\t2"),
        "{}",
        place.report(&said)
    );
}

fn without_a_profile_there_is_no_filter(place: &Place<'_>) {
    let said = place.run("plain", &[], STATUS);
    assert!(
        said.said().contains("Seccomp:\t0"),
        "{}",
        place.report(&said)
    );
}

fn what_nobody_could_serve_is_refused(place: &Place<'_>) {
    for (name, profile, reason) in [
        (
            "notify.json",
            json!({"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}),
            "nobody in the guest answers notifications",
        ),
        (
            "listener.json",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener.sock"}),
            "listenerPath",
        ),
        (
            "unknown.json",
            json!({"defaultAction": "SCMP_ACT_MAYBE"}),
            "SCMP_ACT_MAYBE",
        ),
    ] {
        let id = name.replace(".json", "");
        let profile = place.profile(name, &profile);
        let said = place.run(&id, &["--seccomp", "--seccomp-profile", &profile], "true");
        assert!(
            said.code != 0 && said.said().contains(reason),
            "{}",
            place.report(&said)
        );
        place.stage.containerd.remove(&id);
    }
}

impl Place<'_> {
    fn profile(&self, name: &str, profile: &Value) -> String {
        let file = self.stage.state.file(name, profile.to_string()).unwrap();
        file.display().to_string()
    }

    /// Starts a container of the pod that stays.
    fn start(&self, id: &str, kind: &str, flags: &[&str]) {
        let mut pod = Pod::new(id, self.config, self.root, &["/bin/sleep", "3600"]);
        pod.flags = typed(kind);
        let run = self
            .stage
            .run(&pod.flag(flags).flag(&["--detach", "--null-io"]))
            .unwrap();
        assert_eq!(run.code, 0, "{}", self.report(&run));
    }

    /// Runs a container of the pod to its end.
    fn run(&self, id: &str, flags: &[&str], script: &str) -> Finished {
        let mut pod = Pod::new(id, self.config, self.root, &["/bin/sh", "-c", script]);
        pod.flags = typed("container");
        self.stage.run(&pod.flag(flags).flag(&["--rm"])).unwrap()
    }

    fn exec(&self, id: &str, user: &str, script: &str) -> Finished {
        let exec = [
            "task",
            "exec",
            "--exec-id",
            "e",
            "--user",
            user,
            id,
            "/bin/sh",
            "-c",
            script,
        ];
        self.stage.containerd.ctr(&exec).unwrap()
    }

    fn report(&self, said: &Finished) -> String {
        format!("{}\n{}", said.report(), self.stage.log_tail())
    }
}

fn typed(kind: &str) -> Vec<String> {
    [
        "--annotation".to_owned(),
        format!("io.kubernetes.cri.container-type={kind}"),
        "--annotation".to_owned(),
        "io.kubernetes.cri.sandbox-id=pod".to_owned(),
    ]
    .to_vec()
}
