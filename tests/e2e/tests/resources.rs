//! What a pod costs, where it is counted, and how its VM follows its containers: one pod through the
//! container runtime interface, on a host whose cgroups are of version 1 or 2.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::cri::{
    ContainerConfig, Empty, LinuxContainerResources, PodSandboxConfig,
    UpdateContainerResourcesRequest,
};
use support::host::processes_of;
use support::image::{Entry, Recipe};
use support::kube::{self, Kube};
use support::need;
use support::pod::Settings;

const MIB: u64 = 1 << 20;
/// What a container touches and lets go of.
const TOUCHED: u64 = 100 * MIB;
/// A guest looks for free memory every two seconds, and works under emulation.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// The pod's cgroup as a kubelet makes it, in the hierarchies in which it is looked at.
struct Parent {
    path: String,
    memory: PathBuf,
    made: Vec<PathBuf>,
}

impl Parent {
    fn make() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let path = format!("/cloister-e2e-{}/pod1", std::process::id());
        let mounts: Vec<PathBuf> = match root.join("cgroup.controllers").exists() {
            true => vec![root.to_owned()],
            false => ["memory", "cpuacct"].map(|one| root.join(one)).into(),
        };
        let below = |mount: &PathBuf| mount.join(path.trim_start_matches('/'));
        let made: Vec<_> = mounts.iter().map(below).collect();
        for directory in &made {
            fs::create_dir_all(directory).unwrap();
        }
        Self {
            memory: made[0].clone(),
            path,
            made,
        }
    }

    /// Bytes that are counted here.
    fn usage(&self) -> u64 {
        let read = |file: &str| fs::read_to_string(self.memory.join(file)).ok();
        let text = read("memory.usage_in_bytes").or_else(|| read("memory.current"));
        text.unwrap().trim().parse().unwrap()
    }

    /// The cgroups that a pod has below, in every hierarchy of the host.
    fn of_pod(&self, pod: &str) -> Vec<PathBuf> {
        let place = Path::new(self.path.trim_start_matches('/')).join(pod);
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let all = hierarchies.map(|entry| entry.path());
        all.chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|hierarchy| hierarchy.join(&place))
            .filter(|path| path.is_dir())
            .collect()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for directory in &self.made {
            let _ = fs::remove_dir(directory);
            let _ = directory.parent().map(fs::remove_dir);
        }
    }
}

/// The pod, and what its containers are made of.
struct Place<'a> {
    kube: &'a Kube,
    parent: &'a Parent,
    pod: &'a str,
    config: &'a PodSandboxConfig,
    image: &'a str,
}

impl Place<'_> {
    /// A container that waits, with these limits.
    fn limited(&self, name: &str, memory: u64, quota: i64) -> ContainerConfig {
        let mut config = kube::container(name, self.image, &["/bin/sleep", "3600"]);
        config.linux.mut_or_insert_default().resources = Some(limits(memory, quota)).into();
        config
    }

    fn start(&self, config: &ContainerConfig) -> String {
        self.kube.start_in(self.pod, self.config, config).unwrap()
    }

    #[track_caller]
    fn says(&self, container: &str, line: &str) -> String {
        let said = self.kube.cri.exec(container, &["/bin/sh", "-c", line]);
        said.unwrap().ok().trim().to_owned()
    }

    /// A file of the container's cgroup in the guest.
    #[track_caller]
    fn limit(&self, container: &str, file: &str) -> String {
        let line = format!("cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/{file}");
        self.says(container, &line)
    }

    /// The guest's memory in MiB, and its processors.
    fn size(&self, container: &str) -> (u64, String) {
        let kib = self.says(container, "awk '/MemTotal/ {print $2}' /proc/meminfo");
        let cpus = self.says(container, "cat /sys/devices/system/cpu/online");
        (kib.parse::<u64>().unwrap() / 1024, cpus)
    }

    fn remove(&self, container: &str) {
        let cri = &self.kube.cri;
        cri.of_container("RemoveContainer", container).unwrap();
    }

    /// The processes of the pod on the host, by a word of their command lines.
    fn process(&self, word: &str) -> i32 {
        let all = processes_of(self.kube.state.path());
        let found = all.into_iter().find(|one| one.command.contains(word));
        found.unwrap_or_else(|| panic!("no {word} runs")).pid
    }
}

fn limits(memory: u64, quota: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: i64::try_from(memory).unwrap(),
        cpu_quota: quota,
        cpu_period: 100_000,
        ..Default::default()
    }
}

fn recipe() -> Recipe {
    let mut recipe = Recipe::busybox("resources").unwrap();
    for applet in ["awk", "cut", "dd"] {
        recipe.layers[0].push(Entry::Link(format!("bin/{applet}"), "busybox".into()));
    }
    recipe
}

#[test]
fn a_pod_is_counted_where_its_parent_is_and_grows_with_its_containers() {
    if !need(&kube::TOOLS) {
        return;
    }
    let kube = Kube::start(&Settings::plain()).unwrap();
    let image = kube.import(&recipe(), "busybox").unwrap();
    let before = kube.containerd.leftovers();
    let parent = Parent::make();
    let mut config = kube.pod("one");
    config.linux.mut_or_insert_default().cgroup_parent = parent.path.clone();
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube: &kube,
        parent: &parent,
        pod: &pod,
        config: &config,
        image: &image,
    };
    all_that_a_pod_runs_is_in_its_cgroup(&place);
    the_pods_usage_is_told(&place);
    let main = a_container_gets_the_size_that_its_limits_ask_for(&place);
    limits_change_while_it_runs(&place, &main);
    a_crash_loop_counts_once(&place, &main);
    memory_that_is_free_goes_back_to_the_host(&place, &main);
    kube.remove_pod(&pod).unwrap();
    assert_eq!(parent.of_pod(&pod), Vec::<PathBuf>::new());
    kube.settled(&before).unwrap();

    a_killed_shim_leaves_no_cgroup(&kube, &parent, &config);
    kube.settled(&before).unwrap();
}

fn all_that_a_pod_runs_is_in_its_cgroup(place: &Place<'_>) {
    let cgroups = place.parent.of_pod(place.pod);
    assert!(!cgroups.is_empty());
    for cgroup in &cgroups {
        let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        let inside: BTreeSet<i32> = procs.lines().map(|pid| pid.parse().unwrap()).collect();
        for word in ["qemu-system", "virtiofsd", "containerd-shim-cloister"] {
            let pid = place.process(word);
            assert!(
                inside.contains(&pid),
                "{word} {pid} is not in {}: {inside:?}",
                cgroup.display()
            );
        }
    }
    // The kernel and the initramfs alone are more.
    assert!(place.parent.usage() > 64 * MIB, "{}", place.parent.usage());
}

fn the_pods_usage_is_told(place: &Place<'_>) {
    let stats = place.kube.cri.pod_stats(place.pod).unwrap();
    let linux = stats.linux.unwrap();
    assert!(linux.memory.working_set_bytes.value > 64 * MIB, "{linux}");
    assert!(linux.cpu.usage_core_nano_seconds.value > 100_000_000);
}

fn a_container_gets_the_size_that_its_limits_ask_for(place: &Place<'_>) -> String {
    let small = place.start(&place.limited("small", 0, 0));
    let (memory, cpus) = place.size(&small);
    assert!(memory < 512, "{memory} MiB");
    assert_eq!(cpus, "0");
    place.remove(&small);

    let main = place.start(&place.limited("main", 300 * MIB, 200_000));
    let (grown, cpus) = place.size(&main);
    // In blocks of 128 MiB.
    assert!(grown >= memory + 350, "{memory} MiB, {grown} MiB");
    let host = std::thread::available_parallelism().unwrap().get();
    let wanted = if host > 1 { "0-1" } else { "0" };
    assert_eq!(cpus, wanted);
    assert_eq!(place.limit(&main, "memory.max"), (300 * MIB).to_string());
    // The new memory is there to be used.
    place.says(&main, "dd if=/dev/zero of=/dev/null bs=200M count=1");
    main
}

fn limits_change_while_it_runs(place: &Place<'_>, main: &str) {
    let (before, _) = place.size(main);
    let change = |memory: u64, quota: i64| {
        let request = UpdateContainerResourcesRequest {
            container_id: main.to_owned(),
            linux: Some(limits(memory, quota)).into(),
            ..Default::default()
        };
        let method = "UpdateContainerResources";
        let _: Empty = place.kube.cri.call(method, &request).unwrap();
    };
    change(600 * MIB, 50_000);
    let read = |file: &str| place.limit(main, file);
    assert_eq!(read("memory.max"), (600 * MIB).to_string());
    assert_eq!(read("cpu.max"), "50000 100000");
    let (after, _) = place.size(main);
    assert!(after >= before + 200, "{before} MiB, {after} MiB");
    change(200 * MIB, 200_000);
    assert_eq!(read("memory.max"), (200 * MIB).to_string());
    assert_eq!(read("cpu.max"), "200000 100000");
    // A VM does not shrink, and a limit is one however large the VM is.
    assert_eq!(place.size(main).0, after);
    let said = place.kube.cri.exec(
        main,
        &[
            "/bin/dd",
            "if=/dev/zero",
            "of=/dev/null",
            "bs=300M",
            "count=1",
        ],
    );
    assert_ne!(said.unwrap().code, 0);
}

fn a_crash_loop_counts_once(place: &Place<'_>, main: &str) {
    let run = |attempt: u32| {
        let mut config = place.limited("crashing", 700 * MIB, 0);
        config.command = vec!["/bin/false".to_owned()];
        config.metadata.mut_or_insert_default().attempt = attempt;
        let container = place.start(&config);
        place.kube.cri.ended(&container).unwrap();
        container
    };
    // It stays, as a kubelet keeps the last one that failed.
    let mut last = run(0);
    let (once, _) = place.size(main);
    for attempt in 1..4 {
        let next = run(attempt);
        place.remove(&last);
        last = next;
    }
    assert_eq!(place.size(main).0, once);
    place.remove(&last);
}

fn memory_that_is_free_goes_back_to_the_host(place: &Place<'_>, main: &str) {
    let free = || {
        let kib = place.says(main, "awk '/MemAvailable/ {print $2}' /proc/meminfo");
        kib.parse::<u64>().unwrap() * 1024
    };
    let before = free();
    // It reads all of it into its memory, and cannot write it to anybody.
    let mut config = place.limited("touching", 0, 0);
    let line = "dd if=/dev/zero bs=100M count=1 | sleep 3600";
    config.command = ["/bin/sh", "-c", line].map(str::to_owned).into();
    let touching = place.start(&config);
    let since = Instant::now();
    while free() + TOUCHED * 3 / 4 > before {
        assert!(since.elapsed() < PATIENCE, "the memory is not taken");
        std::thread::sleep(POLL);
    }
    let peak = place.parent.usage();
    place.remove(&touching);
    let since = Instant::now();
    while place.parent.usage() + TOUCHED / 2 > peak {
        let now = place.parent.usage();
        assert!(since.elapsed() < PATIENCE, "{peak} bytes, then {now}");
        std::thread::sleep(POLL);
    }
    let after = place.parent.usage();
    println!(
        "{} MiB at the peak, {} MiB afterwards",
        peak / MIB,
        after / MIB
    );
}

fn a_killed_shim_leaves_no_cgroup(kube: &Kube, parent: &Parent, config: &PodSandboxConfig) {
    let pod = kube.run_pod(config).unwrap();
    let image = String::new();
    let place = Place {
        kube,
        parent,
        pod: &pod,
        config,
        image: &image,
    };
    assert!(!parent.of_pod(&pod).is_empty());
    let shim = Pid::from_raw(place.process("containerd-shim-cloister"));
    kill(shim, Signal::SIGKILL).unwrap();
    let since = Instant::now();
    while !parent.of_pod(&pod).is_empty() {
        assert!(since.elapsed() < PATIENCE, "{:?}", parent.of_pod(&pod));
        std::thread::sleep(POLL);
    }
    kube.remove_pod(&pod).unwrap();
}
