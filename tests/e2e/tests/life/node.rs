//! The node on which things die, and what a pod could leave on it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::containerd::NAMESPACE;
use support::host::{Leftovers, own_kib, processes_of};
use support::image::Recipe;
use support::pod::{Pod, Settings};
use support::stage::{START, Stage};

pub(crate) const SHIM: &str = "containerd-shim-cloister";
pub(crate) const VMM: &str = "qemu-system";
pub(crate) const VIRTIOFSD: &str = "virtiofsd";

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Victim {
    Vmm,
    /// The guest stands still: its agent, its kernel, all of it.
    Guest,
    Shim,
    Virtiofsd,
    Containerd,
    /// The guest's kernel panics, as it does when the agent dies.
    Kernel,
}

/// A cgroup that is out of memory is the end of the guest.
const PANICS: &str = "sysctl.vm.panic_on_oom=2";
/// The limit of the container, and what brings the guest there.
pub(crate) const MEMORY: &str = "67108864";
const EXCESS: &str = "bs=128M";

/// A node with a root file system for its pods.
pub(crate) struct Node {
    pub(crate) stage: Stage,
    pub(crate) config: PathBuf,
    pub(crate) root: PathBuf,
}

impl Node {
    pub(crate) fn start() -> Self {
        let stage = Stage::plain().unwrap();
        let settings = Settings {
            kernel_params: PANICS.to_owned(),
            ..Settings::plain()
        };
        let config = settings.write(&stage.state, "c.toml").unwrap();
        let root = stage.state.dir("rootfs").unwrap();
        Recipe::busybox("alive").unwrap().unpack(&root).unwrap();
        Self {
            stage,
            config,
            root,
        }
    }

    pub(crate) fn pod(&self, id: &str, args: &[&str]) {
        let pod = Pod::new(id, &self.config, &self.root, args).flag(&["--detach", "--null-io"]);
        let run = self.stage.run(&pod).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), self.stage.log_tail());
    }

    /// A container of the pod `pod`.
    pub(crate) fn member(&self, id: &str, kind: &str) {
        let kind = format!("io.kubernetes.cri.container-type={kind}");
        let pod = Pod::new(id, &self.config, &self.root, &["/bin/sleep", "3600"])
            .flag(&["--annotation", &kind])
            .flag(&["--annotation", "io.kubernetes.cri.sandbox-id=life-pod"])
            .flag(&["--detach", "--null-io"]);
        let run = self.stage.run(&pod).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), self.stage.log_tail());
    }

    pub(crate) fn exec(&self, id: &str, name: &str) -> String {
        let words = ["task", "exec", "--exec-id", name, id, "/bin/cat", "/marker"];
        let run = self.stage.containerd.ctr_within(START, &words).unwrap();
        run.ok().unwrap().stdout
    }

    pub(crate) fn state(&self, id: &str) -> String {
        let said = self.stage.containerd.ctr(&["task", "list"]).unwrap().stdout;
        let mut rows = said
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&id));
        row.and_then(|row| row.get(2).map(|state| (*state).to_owned()))
            .unwrap_or_default()
    }

    /// Processes of the node by their program's name.
    pub(crate) fn pids(&self, word: &str) -> Vec<i32> {
        let all = processes_of(self.stage.state.path());
        let named = |command: &str| {
            command
                .split(' ')
                .next()
                .is_some_and(|first| first.contains(word))
        };
        all.into_iter()
            .filter(|process| named(&process.command))
            .map(|process| process.pid)
            .collect()
    }

    /// Signals all of a name that there are, and answers how many.
    pub(crate) fn signal(&self, word: &str, signal: Signal) -> usize {
        let pids = self.pids(word);
        let hit = |pid: &&i32| kill(Pid::from_raw(**pid), signal).is_ok();
        pids.iter().filter(hit).count()
    }

    /// The same where there must be one.
    #[track_caller]
    pub(crate) fn must_signal(&self, word: &str, signal: Signal) {
        assert_ne!(self.signal(word, signal), 0, "there is no {word}");
    }

    /// Answers how many were struck.
    pub(crate) fn strike(&mut self, victim: Victim) -> usize {
        match victim {
            Victim::Vmm => self.signal(VMM, Signal::SIGKILL),
            Victim::Guest => self.signal(VMM, Signal::SIGSTOP),
            Victim::Shim => self.signal(SHIM, Signal::SIGKILL),
            Victim::Virtiofsd => self.signal(VIRTIOFSD, Signal::SIGKILL),
            Victim::Containerd => {
                self.stage.containerd.crash().unwrap();
                self.stage.containerd.revive().unwrap();
                1
            }
            Victim::Kernel => {
                let is_there = self.state("life") == "RUNNING";
                usize::from(is_there && self.exhausts())
            }
        }
    }

    /// Takes more memory than the container has; whether that was the end of the process.
    fn exhausts(&self) -> bool {
        let words = [
            &["task", "exec", "--exec-id", "excess", "life", "/bin/dd"][..],
            &["if=/dev/zero", "of=/dev/null", "count=1", EXCESS],
        ]
        .concat();
        let run = self.stage.containerd.ctr_within(START, &words);
        run.unwrap().code != 0
    }

    pub(crate) fn shim_kib(&self) -> u64 {
        own_kib(self.pids(SHIM)[0]).unwrap()
    }

    pub(crate) fn agent_pss_kib(&self, id: &str) -> u64 {
        let metrics = self.stage.metrics(id).unwrap();
        let mut lines = metrics.lines();
        let bytes = lines.find_map(|line| line.strip_prefix("cloister_agent_pss_bytes "));
        bytes.unwrap().parse::<u64>().unwrap() / 1024
    }
}

/// What a pod can leave behind, on a host that other things run on too: [`Leftovers`] of the test's own directory, and
/// cgroups of pods whose name begins with [`OURS`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    pub(crate) of_shims: Leftovers,
    pub(crate) cgroups: BTreeSet<String>,
}

/// What the pods of this test are called.
const OURS: &str = "life";

pub(crate) fn traces(node: &Node) -> Traces {
    let mut cgroups = BTreeSet::new();
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    for hierarchy in hierarchies
        .map(|one| one.path())
        .chain([PathBuf::from("/sys/fs/cgroup")])
    {
        let pods = fs::read_dir(hierarchy.join(NAMESPACE))
            .into_iter()
            .flatten()
            .flatten();
        cgroups.extend(
            pods.filter(|pod| pod.file_name().to_string_lossy().starts_with(OURS))
                .filter(|pod| pod.path().is_dir())
                .map(|pod| pod.path().display().to_string()),
        );
    }
    Traces {
        of_shims: node.stage.containerd.leftovers(),
        cgroups,
    }
}

#[track_caller]
pub(crate) fn settled(node: &Node, before: &Traces, what: &str) {
    let shims = node.stage.settled(&before.of_shims);
    shims.unwrap_or_else(|error| panic!("{what}: {error}\n{}", node.stage.log_tail()));
    // What was there before may be gone: a run that was killed has left it, and a pod of its name has taken it away.
    let now = traces(node).cgroups;
    let left: Vec<_> = now.difference(&before.cgroups).collect();
    assert!(left.is_empty(), "{what}: left behind: {left:?}");
}
