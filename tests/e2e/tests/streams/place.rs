//! A pod whose processes are given input and asked for output, through `ctr` as anybody would.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::host::{own_kib, processes_of};
use support::image::Recipe;
use support::pod::{Pod, Settings};
use support::run::{Finished, Running};
use support::stage::{START, Stage};

use super::MUCH_TIME;

/// A pod with a container that sleeps, whose root the host shares.
pub(crate) struct Place {
    pub(crate) stage: Stage,
    config: PathBuf,
    pub(crate) root: PathBuf,
}

impl Place {
    pub(crate) fn start() -> Self {
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

    pub(crate) fn run(&self, id: &str, kind: &str, args: &[&str], flags: &[&str]) {
        let kind = format!("io.kubernetes.cri.container-type={kind}");
        let pod = Pod::new(id, &self.config, &self.root, args)
            .flag(&["--annotation", &kind])
            .flag(&["--annotation", "io.kubernetes.cri.sandbox-id=pod"])
            .flag(flags);
        let run = self.stage.run(&pod).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), self.stage.log_tail());
    }

    /// A further process, given its input.
    pub(crate) fn exec(&self, id: &str, name: &str, script: &str, input: &[u8]) -> Finished {
        self.begin(id, name, script)
            .feed(input)
            .finish(MUCH_TIME)
            .unwrap()
    }

    pub(crate) fn begin(&self, id: &str, name: &str, script: &str) -> Running {
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
    pub(crate) fn says(&self, id: &str, name: &str, script: &str, input: &[u8]) -> String {
        let said = self.exec(id, name, script, input);
        assert_eq!(said.code, 0, "{}\n{}", said.report(), self.stage.log_tail());
        said.stdout
    }

    #[track_caller]
    pub(crate) fn ctr(&self, words: &[&str]) -> Finished {
        let said = self.stage.containerd.ctr(words).unwrap();
        assert_eq!(said.code, 0, "{}\n{}", said.report(), self.stage.log_tail());
        said
    }

    /// The state of a container, as `ctr` lists it.
    pub(crate) fn state(&self, id: &str) -> String {
        let listed = self.ctr(&["task", "list"]).stdout;
        let line = listed
            .lines()
            .find(|line| line.split_whitespace().next() == Some(id));
        let state = line.and_then(|line| line.split_whitespace().last());
        state.unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub(crate) fn until(&self, id: &str, state: &str) {
        let since = Instant::now();
        while self.state(id) != state {
            assert!(since.elapsed() < START, "{id}: {}", self.stage.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the shim has in memory.
    pub(crate) fn shim_kib(&self) -> u64 {
        let all = processes_of(self.stage.state.path());
        let mut shims = all.iter().filter(|process| {
            process.command.contains("containerd-shim-cloister-v2")
                && process.command.contains(" pod")
        });
        own_kib(shims.next().unwrap().pid).unwrap()
    }

    /// Runs a process whose outputs go elsewhere.
    pub(crate) fn log_to(&self, uri: &str, name: &str) {
        let script = "echo out; echo err >&2";
        let to = ["task", "exec", "--log-uri", uri, "--exec-id", name, "main"];
        let words: Vec<_> = to
            .into_iter()
            .chain(["/bin/busybox", "sh", "-c", script])
            .collect();
        self.ctr(&words);
    }

    /// Waits until a further process runs.
    pub(crate) fn listed(&self, id: &str, exec: &str) {
        let since = Instant::now();
        let probe = ["task", "kill", "--signal", "SIGCONT", "--exec-id", exec, id];
        while self.stage.containerd.ctr(&probe).unwrap().code != 0 {
            assert!(since.elapsed() < START, "{}", self.stage.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a container uses no processor any more, though it would.
    pub(crate) fn stands_still(&self, id: &str) {
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
    pub(crate) fn attached(&self, id: &str, bytes: usize) -> String {
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
