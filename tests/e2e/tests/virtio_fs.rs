//! A plain VM whose container's root comes from the host, and two containers of one pod in one VM.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use support::image::{BUSYBOX, Recipe};
use support::pod::{Pod, Settings};
use support::stage::Stage;
use support::{host, need};

/// How often a container is made again. Without a pause, the second time was one too many.
const AGAIN: usize = 6;

#[test]
fn a_root_file_system_of_the_host_runs_in_a_plain_vm() {
    if !need(&[
        "containerd",
        "ctr",
        "qemu-system-x86_64",
        "virtiofsd",
        BUSYBOX,
    ]) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let config = Settings::plain().write(&stage.state, "c.toml").unwrap();
    let root = stage.state.dir("rootfs").unwrap();
    Recipe::busybox("from the host")
        .unwrap()
        .unpack(&root)
        .unwrap();
    let before = stage.containerd.leftovers();

    // Code, output and both directions of the file system.
    let pod = Pod::new(
        "fs",
        &config,
        &root,
        &["/bin/sh", "-c", "cat /marker; echo back > /written; exit 3"],
    )
    .flag(&["--rm"]);
    let run = stage.run(&pod).unwrap();
    assert_eq!(
        run.stdout,
        "from the host\n",
        "{}\n{}",
        run.report(),
        stage.log_tail()
    );
    assert_eq!(run.code, 3);
    assert_eq!(
        std::fs::read_to_string(root.join("written")).unwrap(),
        "back\n"
    );
    stage.settled(&before).unwrap();

    two_containers_of_one_pod_share_a_vm(&stage, &config, &root);
    stage.settled(&before).unwrap();
}

fn two_containers_of_one_pod_share_a_vm(stage: &Stage, config: &Path, root: &Path) {
    let typed = |kind: &str| {
        vec![
            "--annotation".to_owned(),
            format!("io.kubernetes.cri.container-type={kind}"),
            "--annotation".to_owned(),
            "io.kubernetes.cri.sandbox-id=pod".to_owned(),
        ]
    };
    let mut sandbox = Pod::new("pod", config, root, &["/bin/sleep", "3600"]);
    sandbox.flags = typed("sandbox");
    let run = stage
        .run(&sandbox.flag(&["--detach", "--null-io"]))
        .unwrap();
    assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());

    for (id, words) in [("first", "first"), ("second", "second")] {
        let mut container = Pod::new(id, config, root, &["/bin/echo", words]);
        container.flags = typed("container");
        let run = stage.run(&container.flag(&["--rm"])).unwrap();
        assert_eq!(
            run.stdout,
            format!("{words}\n"),
            "{}\n{}",
            run.report(),
            stage.log_tail()
        );
    }
    let machines = host::processes_of(stage.state.path())
        .into_iter()
        .filter(|p| p.command.contains("qemu-system"))
        .count();
    assert_eq!(machines, 1, "one pod has one VM");
    an_id_can_be_used_again_at_once(stage, config, &typed("container"));
    stage.containerd.remove("pod");
}

/// The guest remembers for a second what was behind a shared name. Here something else is behind it each time.
fn an_id_can_be_used_again_at_once(stage: &Stage, config: &Path, flags: &[String]) {
    for round in 0..AGAIN {
        let marker = format!("round {round}");
        let root = stage.state.dir(&format!("root-{round}")).unwrap();
        Recipe::busybox(&marker).unwrap().unpack(&root).unwrap();
        let file = format!("file-{round}");
        let file = stage.state.file(&file, format!(", {marker}\n")).unwrap();
        let mount = format!(
            "type=bind,src={},dst=/file,options=rbind:ro",
            file.display()
        );
        let mut container = Pod::new("again", config, &root, &["/bin/cat", "/marker", "/file"]);
        container.flags = flags.to_vec();
        let container = container.flag(&["--rm", "--mount", &mount]);
        let run = stage.run(&container).unwrap();
        let wanted = format!("{marker}\n, {marker}\n");
        assert_eq!(run.stdout, wanted, "{}\n{}", run.report(), stage.log_tail());
    }
}
