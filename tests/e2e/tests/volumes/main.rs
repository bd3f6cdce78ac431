//! Volumes as a kubelet makes them, in a confidential guest, which shares no files with the host, and in a plain
//! one: the real containerd through its CRI socket, a directory that is laid out as the kubelet lays out its
//! own, and one VM for each.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod disk;
mod kubelet;
mod noise;

use std::fs::{self, Permissions};
use std::mem::MaybeUninit;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kubelet::{Kubelet, mount, publish};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use support::State;
use support::cri::{ContainerConfig, PodSandboxConfig};
use support::image::{Entry, Recipe};
use support::init_data::{ALLOW_ALL, ANNOTATION, InitData};
use support::kube::{self, Kube};
use support::need;
use support::pod::Settings;
use support::registry::Registry;

const LIMIT: Duration = Duration::from_secs(60);
/// Says to this program, in the image, which directory to watch.
const WATCH: &str = "CLOISTER_TEST_WATCH";
/// The volumes' mount point that the owner's policy does not know.
const FOREIGN: &str = "/foreign";
const GROUP: u32 = 2000;

struct Place<'a> {
    kube: &'a Kube,
    kubelet: &'a Kubelet,
    pod: String,
    config: PodSandboxConfig,
    image: String,
}

impl Place<'_> {
    /// A container with what a kubelet gives to each.
    fn container(&self, name: &str, line: &str) -> ContainerConfig {
        let mut container = kube::container(name, &self.image, &["/bin/sh", "-c", line]);
        let hosts = self.kubelet.pod.join("etc-hosts");
        mount(&mut container, &hosts, "/etc/hosts", false);
        let log = self.kubelet.termination_log(name);
        mount(&mut container, &log, "/dev/termination-log", false);
        let account = self.kubelet.volume("projected", "kube-api-access-x");
        let to = "/var/run/secrets/kubernetes.io/serviceaccount";
        mount(&mut container, &account, to, true);
        container
    }

    fn start(&self, container: &ContainerConfig) -> String {
        self.kube
            .start_in(&self.pod, &self.config, container)
            .unwrap()
    }

    fn refused(&self, container: &ContainerConfig) -> String {
        let refused = self.kube.start_in(&self.pod, &self.config, container);
        format!("{:#}", refused.unwrap_err())
    }

    #[track_caller]
    fn says(&self, container: &str, line: &str) -> String {
        let said = self.kube.cri.exec(container, &["/bin/sh", "-c", line]);
        said.unwrap().ok()
    }

    fn remove(&self, container: &str) {
        let cri = &self.kube.cri;
        cri.of_container("RemoveContainer", container).unwrap();
    }
}

/// busybox, and this program, which is static.
fn recipe() -> Recipe {
    let mut recipe = Recipe::busybox("from the registry").unwrap();
    recipe.layers[0].push(Entry::Link("bin/mkdir".into(), "busybox".into()));
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    recipe.layers[1].push(Entry::File("bin/watcher".into(), 0o755, program));
    recipe
}

/// Allows all, but content only under the names that Kata's rules know, and one volume not at all.
fn policy() -> String {
    let rule = format!(
        "default CopyFileRequest := false\n\
         CopyFileRequest if {{\n\
         \tregex.match(\"^/run/kata-containers/shared/containers/[a-z0-9]{{64}}-[a-z0-9]{{16}}-\", input.path)\n\
         \tnot contains(input.path, \"-{}\")\n\
         \tinput.symlink_src == \"\"\n}}",
        &FOREIGN[1..]
    );
    ALLOW_ALL.replace("default CopyFileRequest := true", &rule)
}

#[test]
fn volumes_of_kubernetes_go_into_a_guest_that_shares_no_files() {
    let tools = [&kube::TOOLS[..], &["docker-registry", "skopeo", "mount"]].concat();
    if !need(&tools) {
        return;
    }
    let own = State::new().unwrap();
    let registry = Registry::start(&own).unwrap();
    let layout = recipe().write(&own.path().join("layout")).unwrap();
    let image = registry.push(&layout, "box:latest", &[]).unwrap();
    let settings = Settings {
        kubelet: Some(own.path().join("kubelet")),
        scratch: 128,
        ..Settings::confidential(&[registry.address()])
    };
    let kube = Kube::start(&settings).unwrap();
    let _inside = registry.also_in(&own, &kube.node.path()).unwrap();
    kube.import_as(&recipe(), "box", &image).unwrap();
    let kubelet = Kubelet::new(&own);
    let account = kubelet.volume("projected", "kube-api-access-x");
    publish(
        &account,
        "1",
        &[("token", "the token"), ("ca.crt", "a root")],
    );
    let before = kube.containerd.leftovers();
    let mut config = kube.pod("vol");
    let init_data = InitData::new(None, Some(&registry), &policy()).with_store("scratch");
    config
        .annotations
        .insert(ANNOTATION.to_owned(), init_data.annotation().unwrap());
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube: &kube,
        kubelet: &kubelet,
        pod,
        config,
        image,
    };

    a_pod_as_kubernetes_makes_it_has_its_files(&place, Sharing::Nothing);
    a_config_map_changes_as_one_and_programs_are_told(&place);
    an_empty_dir_is_the_pods_and_has_its_limit(&place, Sharing::Nothing);
    parts_of_volumes_are_there(&place);
    last_words_come_back(&place, Sharing::Nothing);
    what_cannot_go_in_is_refused_by_name(&place);

    kube.remove_pod(&place.pod).unwrap();
    kube.settled(&before).unwrap();
}

#[test]
fn volumes_of_a_plain_guest_are_shared_and_config_maps_are_watched() {
    let tools = [&kube::TOOLS[..], &["mount"]].concat();
    if !need(&tools) {
        return;
    }
    let own = State::new().unwrap();
    let settings = Settings {
        kubelet: Some(own.path().join("kubelet")),
        ..Settings::plain()
    };
    let kube = Kube::start(&settings).unwrap();
    let image = kube.import(&recipe(), "box").unwrap();
    let kubelet = Kubelet::new(&own);
    let account = kubelet.volume("projected", "kube-api-access-x");
    publish(
        &account,
        "1",
        &[("token", "the token"), ("ca.crt", "a root")],
    );
    let before = kube.containerd.leftovers();
    let config = kube.pod("vol");
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube: &kube,
        kubelet: &kubelet,
        pod,
        config,
        image,
    };
    a_pod_as_kubernetes_makes_it_has_its_files(&place, Sharing::Files);
    a_config_map_changes_as_one_and_programs_are_told(&place);
    an_empty_dir_is_the_pods_and_has_its_limit(&place, Sharing::Files);
    last_words_come_back(&place, Sharing::Files);
    parts_of_volumes_are_there(&place);
    files_of_the_host_are_there(&place);
    kube.remove_pod(&place.pod).unwrap();
    kube.settled(&before).unwrap();
}

/// What the guest shares with the host.
#[derive(Clone, Copy, PartialEq)]
enum Sharing {
    Nothing,
    Files,
}

fn parts_of_volumes_are_there(place: &Place<'_>) {
    let work = place.kubelet.part("empty-dir", "work", "d");
    let key = place.kubelet.part("configmap", "cfg", "..data/key");
    let mut container = place.container("parts", "exec sleep 3600");
    mount(&mut container, &work.0, "/part", false);
    mount(&mut container, &key.0, "/etc/one", true);
    let id = place.start(&container);
    assert_eq!(place.says(&id, "cat /part/note /etc/one"), "shared\nfive");
    place.remove(&id);
}

fn files_of_the_host_are_there(place: &Place<'_>) {
    let host = place.kubelet.pod.join("of-the-host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "on the host").unwrap();
    let mut container = place.container("host", "exec sleep 3600");
    mount(&mut container, &host, "/data", false);
    let id = place.start(&container);
    assert_eq!(place.says(&id, "cat /data/file"), "on the host");
    place.says(&id, "echo from the guest >/data/back");
    assert_eq!(
        fs::read_to_string(host.join("back")).unwrap(),
        "from the guest\n"
    );
    place.remove(&id);
}

fn a_pod_as_kubernetes_makes_it_has_its_files(place: &Place<'_>, sharing: Sharing) {
    let main = place.start(&place.container("main", "exec sleep 3600"));
    assert!(place.says(&main, "cat /etc/hosts").contains("10.1.2.3 web"));
    let resolver = place.says(&main, "cat /etc/resolv.conf");
    assert!(resolver.contains("nameserver 10.96.0.10"), "{resolver}");
    assert_eq!(place.says(&main, "cat /etc/hostname"), "vol\n");
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(
        place.says(&main, &format!("cat {account}/token")),
        "the token"
    );
    let mode = place.says(&main, &format!("stat -L -c %a {account}/ca.crt"));
    assert_eq!(mode, "640\n");
    let write = format!("echo x 2>/dev/null >{account}/token || echo refused");
    assert_eq!(place.says(&main, &write), "refused\n");
    // Where files are not shared it has a copy of its own.
    place.says(&main, "echo 10.9.9.9 mine >>/etc/hosts");
    let other = place.start(&place.container("other", "exec sleep 3600"));

    let seen = place.says(&other, "cat /etc/hosts").contains("mine");
    assert_eq!(seen, sharing == Sharing::Files);
    place.remove(&other);
    place.remove(&main);
}

fn a_config_map_changes_as_one_and_programs_are_told(place: &Place<'_>) {
    let volume = place.kubelet.volume("configmap", "cfg");
    publish(
        &volume,
        "1",
        &[("key", "one"), ("stale", "x"), ("in/deep", "two")],
    );
    let line =
        format!("export {WATCH}=/etc/cfg; exec /bin/watcher --exact the_watcher --nocapture");
    let mut watcher = place.container("watcher", &line);
    mount(&mut watcher, &volume, "/etc/cfg", true);
    let id = place.start(&watcher);
    assert_eq!(
        place.says(&id, "cat /etc/cfg/key /etc/cfg/in/deep"),
        "onetwo"
    );
    let waits = |text: &str| {
        let since = Instant::now();
        while !place.kube.log_of("watcher.log").contains(text) {
            let log = place.kube.log_of("watcher.log");
            assert!(since.elapsed() < LIMIT, "no {text:?} in {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    waits("watching");
    publish(&volume, "2", &[("key", "three"), ("in/deep", "four")]);
    waits("..data: three");
    let seen = place.says(&id, "cat /etc/cfg/in/deep; ls /etc/cfg");
    assert_eq!(seen, "fourin\nkey\n");
    // A second change, after the first.
    publish(&volume, "3", &[("key", "five")]);
    waits("..data: five");
    place.remove(&id);
}

fn an_empty_dir_is_the_pods_and_has_its_limit(place: &Place<'_>, sharing: Sharing) {
    let disk = place.kubelet.volume("empty-dir", "work");
    chown(&disk, None, Some(GROUP)).unwrap();
    fs::set_permissions(&disk, Permissions::from_mode(0o2777)).unwrap();
    let memory = place.kubelet.memory("fast", 1 << 20);
    let container = |name: &str| {
        let mut container = place.container(name, "exec sleep 3600");
        mount(&mut container, &disk, "/work", false);
        mount(&mut container, &memory.0, "/fast", false);
        container
    };
    let main = place.start(&container("writer"));
    let side = place.start(&container("reader"));
    place.says(
        &main,
        "mkdir /work/d; echo shared >/work/d/note; echo fast >/fast/note",
    );
    assert_eq!(
        place.says(&side, "cat /work/d/note /fast/note"),
        "shared\nfast\n"
    );
    if sharing == Sharing::Nothing {
        noise::its_files_are_noise_on_the_hosts_disk(place, &main);
    }
    let group = place.says(&side, "stat -c '%g %a' /work");
    assert_eq!(group, format!("{GROUP} 2777\n"));
    for volume in [&disk, &memory.0] {
        let is_empty = fs::read_dir(volume).unwrap().next().is_none();
        assert_eq!(is_empty, sharing == Sharing::Nothing, "what is on the host");
    }
    // The sizeLimit holds, whichever kernel enforces it.
    let fill = "dd if=/dev/zero of=/fast/x bs=65536 count=32 2>/dev/null || echo full";
    assert_eq!(place.says(&main, fill), "full\n");
    place.says(
        &main,
        "dd if=/dev/zero of=/work/x bs=65536 count=32 2>/dev/null",
    );
    // It outlives its containers.
    place.remove(&main);
    place.remove(&side);
    let again = place.start(&container("writer"));
    assert_eq!(
        place.says(&again, "cat /work/d/note /fast/note"),
        "shared\nfast\n"
    );
    place.remove(&again);
}

fn last_words_come_back(place: &Place<'_>, sharing: Sharing) {
    let line = "echo the disk is full >/dev/termination-log; exit 3";
    let container = place.container("ending", line);
    let log = PathBuf::from(&container.mounts[1].host_path);
    let id = place.start(&container);
    assert_eq!(place.kube.cri.ended(&id).unwrap().exit_code, 3);
    assert_eq!(fs::read_to_string(&log).unwrap(), "the disk is full\n");
    place.remove(&id);
    let line = "i=0; while [ $i -lt 900 ]; do echo 0123456789 >>/dev/termination-log; \
                i=$((i+1)); done; echo end >>/dev/termination-log";
    let id = place.start(&place.container("long", line));
    place.kube.cri.ended(&id).unwrap();
    let text = fs::read_to_string(place.kubelet.pod.join("containers/long/5f3a")).unwrap();
    assert!(text.ends_with("end\n"), "{text}");
    assert_eq!(text.len() == 4096, sharing == Sharing::Nothing);

    place.remove(&id);
}

fn what_cannot_go_in_is_refused_by_name(place: &Place<'_>) {
    let mut host = place.container("host", "true");
    mount(&mut host, Path::new("/srv"), "/data", false);
    let error = place.refused(&host);
    assert!(
        error.contains("/data") && error.contains("confidential"),
        "{error}"
    );
    let large = place.kubelet.volume("configmap", "large");
    publish(&large, "1", &[("blob", &"x".repeat((1 << 20) + 1))]);
    let mut container = place.container("large", "true");
    mount(&mut container, &large, "/etc/large", true);
    let error = place.refused(&container);
    assert!(
        error.contains("/etc/large") && error.contains("blob"),
        "{error}"
    );
    let foreign = place.kubelet.volume("secret", "foreign");
    publish(&foreign, "1", &[("key", "x")]);
    let mut container = place.container("foreign", "true");
    mount(&mut container, &foreign, FOREIGN, true);
    let error = place.refused(&container);
    assert!(
        error.contains("CopyFileRequest is blocked by policy"),
        "{error}"
    );
}

/// What runs in the guest: tells which names of a directory are renamed into place, and what `key` says then.
#[test]
fn the_watcher() {
    let Ok(directory) = std::env::var(WATCH) else {
        return;
    };
    let watch = inotify::init(CreateFlags::empty()).unwrap();
    inotify::add_watch(&watch, directory.as_str(), WatchFlags::MOVED_TO).unwrap();
    println!("watching");
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    while let Ok(event) = events.next() {
        let name = event.file_name().unwrap_or_default().to_string_lossy();
        let key = fs::read_to_string(Path::new(&directory).join("key")).unwrap();
        println!("{name}: {key}");
    }
}
