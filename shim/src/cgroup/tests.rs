//! The cgroups of a pod, in a directory of files that stands for the host's.

use std::fs;

use super::hierarchy::Hierarchy;
use super::*;

struct Stage {
    root: tempfile::TempDir,
    directory: StateDir,
}

impl Stage {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(&root.path().join("state"));
        directory.create().unwrap();
        Self { root, directory }
    }

    fn mount(&self, name: &str, controllers: &str) -> Hierarchy {
        let mount = self.root.path().join(name);
        fs::create_dir(&mount).unwrap();
        Hierarchy {
            mount,
            controllers: controllers.to_owned(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn enter(&self, host: &Host, path: &str) {
        enter_on(host, &at(path), Vec::new(), &self.directory).unwrap();
    }
}

fn at(path: &str) -> Wanted {
    Wanted {
        place: Place::parse(path).unwrap().unwrap(),
        settings: Settings::default(),
        shim_apart: false,
    }
}

fn cpu() -> oci::Cpu {
    oci::Cpu {
        shares: Some(1024),
        cpus: "0-1".to_owned(),
        ..oci::Cpu::default()
    }
}

#[test]
fn every_controller_of_the_first_version_gets_one_and_loses_it() {
    let stage = Stage::new();
    let host = Host(vec![
        stage.mount("memory", "memory"),
        stage.mount("cpu", "cpu,cpuacct"),
    ]);
    stage.enter(&host, "/default/c1");
    for path in ["memory/default/c1", "cpu/default/c1"] {
        assert!(stage.path(path).is_dir(), "{path}");
    }
    undo(&stage.directory);
    undo(&stage.directory);
    // Those above were made for it.
    for path in ["memory/default", "cpu/default"] {
        assert!(!stage.path(path).exists(), "{path}");
    }
    assert!(stage.path("memory").is_dir());
}

#[test]
fn what_was_there_and_what_others_use_stays() {
    let stage = Stage::new();
    let host = Host(vec![stage.mount("memory", "memory")]);
    fs::create_dir_all(stage.path("memory/kubepods/pod1")).unwrap();
    stage.enter(&host, "/kubepods/pod1/a");
    undo(&stage.directory);
    assert!(stage.path("memory/kubepods/pod1").is_dir());
    assert!(!stage.path("memory/kubepods/pod1/a").exists());

    stage.enter(&host, "/default/a");
    fs::create_dir(stage.path("memory/default/b")).unwrap();
    undo(&stage.directory);
    assert!(!stage.path("memory/default/a").exists());
    assert!(stage.path("memory/default/b").is_dir());
}

#[test]
fn one_that_a_dead_pod_left_is_taken_over() {
    let stage = Stage::new();
    let host = Host(vec![stage.mount("memory", "memory")]);
    fs::create_dir_all(stage.path("memory/pod/a")).unwrap();
    stage.enter(&host, "/pod/a");
    undo(&stage.directory);
    assert!(!stage.path("memory/pod/a").exists());
}

#[test]
fn the_second_version_passes_controllers_down_but_not_through_slices() {
    let stage = Stage::new();
    let host = Host(vec![stage.mount("unified", "")]);
    let control = stage.path("unified/cgroup.subtree_control");
    fs::write(stage.path("unified/cgroup.controllers"), "cpu memory\n").unwrap();
    fs::write(&control, "").unwrap();
    stage.enter(&host, "kubepods.slice:cri-containerd:c1");
    let unit = "unified/kubepods.slice/cri-containerd-c1.scope";
    assert!(stage.path(unit).is_dir());
    assert_eq!(fs::read_to_string(&control).unwrap(), "");
    undo(&stage.directory);
    assert!(!stage.path("unified/kubepods.slice").exists());

    stage.enter(&host, "/default/c1");
    assert_eq!(fs::read_to_string(&control).unwrap(), "+memory");
    undo(&stage.directory);
    assert!(!stage.path("unified/default").exists());
}

#[test]
fn processors_and_weight_are_set_in_the_words_of_the_version() {
    let stage = Stage::new();
    let place = Place::parse("/c1").unwrap().unwrap();
    let settings = Settings::of(Some(&cpu()), &Role::Single);
    let one = |mount: &str, controllers: &str, files: &[&str]| {
        let host = Host(vec![stage.mount(mount, controllers)]);
        fs::create_dir(stage.path(mount).join("c1")).unwrap();
        for file in files {
            fs::write(stage.path(mount).join("c1").join(file), "").unwrap();
        }
        host.set(&place, &settings).unwrap();
        let read = |file: &&str| fs::read_to_string(stage.path(mount).join("c1").join(file));
        let texts: Result<Vec<_>, _> = files.iter().map(read).collect();
        texts.unwrap()
    };
    assert_eq!(one("cpu", "cpu", &["cpu.shares"]), ["1024"]);
    assert_eq!(one("cpuset", "cpuset", &["cpuset.cpus"]), ["0-1"]);
    let unified = one("unified", "", &["cpu.weight", "cpuset.cpus"]);
    assert_eq!(unified, ["39", "0-1"]);
    // A pod's weight is its parent's.
    assert_eq!(Settings::of(Some(&cpu()), &Role::Sandbox).shares, None);
}

#[test]
fn a_group_of_processors_inherits_them() {
    let stage = Stage::new();
    let host = Host(vec![stage.mount("cpuset", "cpuset")]);
    for path in ["cpuset", "cpuset/a", "cpuset/a/b"] {
        let path = stage.path(path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cpuset.mems"), "0\n").unwrap();
        fs::write(path.join("cpuset.cpus"), "").unwrap();
    }
    fs::write(stage.path("cpuset/cpuset.cpus"), "0-3\n").unwrap();
    host.make(&Place::parse("/a/b").unwrap().unwrap(), 1)
        .unwrap();
    let cpus = fs::read_to_string(stage.path("cpuset/a/b/cpuset.cpus")).unwrap();
    assert_eq!(cpus, "0-3");
}

#[test]
fn a_cgroup_that_cannot_be_made_is_named_with_the_way_out() {
    let stage = Stage::new();
    let host = Host(vec![stage.mount("memory", "memory")]);
    fs::write(stage.path("memory/default"), "").unwrap();
    let error = enter_on(&host, &at("/default/a"), Vec::new(), &stage.directory).unwrap_err();
    let text = GuestError::from(error).to_string();
    assert!(
        text.contains("memory/default") && text.contains("sandbox_cgroup_only"),
        "{text}"
    );
}

#[test]
fn a_shim_that_cannot_go_where_containerd_wants_it_is_told_by_that_options_name() {
    let stage = Stage::new();
    let host = Host(vec![stage.mount("memory", "memory")]);
    fs::create_dir(stage.path("memory/shim")).unwrap();
    for path in ["", "/../shim", "/other", "/shim"] {
        let text = join_on(&host, path, 1).unwrap_err().to_string();
        assert!(text.starts_with("ShimCgroup"), "{text}");
        for other in ["cgroupsPath", "sandbox_cgroup_only"] {
            assert!(!text.contains(other), "{text}");
        }
    }
    let file = stage.path("memory/shim/cgroup.procs");
    fs::write(&file, "").unwrap();
    join_on(&host, "/shim", 7).unwrap();
    assert_eq!(fs::read_to_string(file).unwrap(), "7");
}

#[test]
fn what_cannot_be_removed_yet_stays_on_record() {
    let stage = Stage::new();
    // As one that is busy, it is no directory that can be removed.
    let busy = stage.path("busy");
    fs::write(&busy, "").unwrap();
    let record = Record {
        shim: 0,
        origins: Vec::new(),
        directories: vec![busy.clone()],
    };
    record.write(&stage.directory).unwrap();
    undo(&stage.directory);
    assert_eq!(Record::read(&stage.directory), Some(record));
    fs::remove_file(&busy).unwrap();
    undo(&stage.directory);
    assert_eq!(Record::read(&stage.directory), None);
}

#[test]
fn a_specification_without_a_path_asks_for_none() {
    let spec = |path: &str| Spec {
        linux: Some(oci::Linux {
            cgroups_path: path.to_owned(),
            ..oci::Linux::default()
        }),
        ..Spec::default()
    };
    let single = |spec: &Spec, shim_apart| wanted(spec, &Role::Single, shim_apart);
    assert_eq!(single(&Spec::default(), false).unwrap(), None);
    assert_eq!(single(&spec(""), false).unwrap(), None);
    let mut asked = at("/default/c1");
    assert_eq!(
        single(&spec("/default/c1"), false).unwrap(),
        Some(asked.clone())
    );
    asked.shim_apart = true;
    assert_eq!(single(&spec("/default/c1"), true).unwrap(), Some(asked));
    let error = single(&spec("/../c1"), false).unwrap_err();
    assert!(error.to_string().contains("linux.cgroupsPath"), "{error}");
}
