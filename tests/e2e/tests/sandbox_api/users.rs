//! A container with users of its own, as a pod with `hostUsers: false` has it: who its processes are, whose the files
//! of its root and its volume are, in the guest and on the host.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api as task;
use serde_json::{Value, json};
use ttrpc::context::Context;

use super::{Clients, Stage, any};

/// Where the container's root is in the VM.
const ROOT: u32 = 65_536;
const SOON: Duration = Duration::from_secs(30);
/// What holds for every process: its map, and that no file of the container is nobody's.
const MAPPED: &str =
    "grep -q '^ *0 *65536 *1000$' /proc/self/uid_map && [ $(stat -c %u:%g /bin/sh) = 0:0 ]";

pub(crate) async fn are_the_containers_own(stage: &Stage, clients: &Clients) {
    let volume = stage.state.dir("volume").unwrap();
    std::fs::write(volume.join("given"), "").unwrap();
    let first = format!(
        "{MAPPED} && [ $(stat -c %u:%g /volume/given) = 0:0 ] && echo x > /file && [ $(stat -c %u /file) = 0 ] && \
         grep -q 'CapEff:.*0000000000000003' /proc/self/status && [ $(stat -c %u /dev) = 0 ] && \
         echo x > /volume/made && echo x > /proc/self/fd/1; echo $? > /volume/said; sleep 1000"
    );
    let create = stage.bundle("users", &first, &json!({}));
    amend(Path::new(&create.bundle), &volume);
    let mut create = create;
    let root = create.rootfs[0].source.clone();
    for kind in ["uidmap", "gidmap"] {
        let option = format!("{kind}=0:{ROOT}:1000");
        create.rootfs[0].options.push(option);
    }
    clients.run(&create).await;
    let said = volume.join("said");
    let since = Instant::now();
    while !said.exists() {
        assert!(since.elapsed() < SOON, "the first process says nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(std::fs::read_to_string(&said).unwrap(), "0\n");
    for made in [Path::new(&root).join("file"), volume.join("made")] {
        let owner = std::fs::metadata(&made).unwrap().uid();
        assert_eq!(owner, 0, "{made:?} is root's on the host");
    }

    // A further process is in the namespace, and is who it is to be.
    let further = format!(
        "{MAPPED} && [ $(id -u):$(id -g) = 5:6 ] && grep -q 'CapEff:.*0000000000000000' /proc/self/status && \
         ! echo x > /bin/not && exit 9"
    );
    assert_eq!(exec(clients, "inside", &further, 5).await, 9);
    // 1000 is one more than there are.
    let refused = begin(clients, "nobody", "exit 0", 1000).await.unwrap_err();
    assert!(refused.to_string().contains("user 1000"), "{refused}");
    let kill = task::KillRequest {
        id: "users".to_owned(),
        signal: 9,
        ..Default::default()
    };
    clients.tasks.kill(Context::default(), &kill).await.unwrap();
    let wait = task::WaitRequest {
        id: "users".to_owned(),
        ..Default::default()
    };
    let ended = clients.tasks.wait(Context::default(), &wait).await;
    assert_eq!(ended.unwrap().exit_status, 137);
    let delete = task::DeleteRequest {
        id: "users".to_owned(),
        ..Default::default()
    };
    clients
        .tasks
        .delete(Context::default(), &delete)
        .await
        .unwrap();
}

/// Gives a bundle mappings, a volume with them, and two capabilities.
fn amend(bundle: &Path, volume: &Path) {
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mapping = json!([{"containerID": 0, "hostID": ROOT, "size": 1000}]);
    let linux = &mut spec["linux"];
    linux["uidMappings"] = mapping.clone();
    linux["gidMappings"] = mapping.clone();
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user", "path": "/proc/1/ns/user"}));
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({
        "type": "bind", "source": volume, "destination": "/volume", "options": ["rbind", "rw"],
        "uidMappings": mapping, "gidMappings": mapping,
    }));
    let both = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
    spec["process"]["capabilities"] =
        json!({"bounding": both, "effective": both, "permitted": both});
    std::fs::write(&path, spec.to_string()).unwrap();
}

async fn begin(clients: &Clients, name: &str, line: &str, uid: u32) -> ttrpc::Result<()> {
    let process = json!({
        "args": ["/bin/sh", "-c", line], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": uid, "gid": 6}, "capabilities": {"bounding": [], "effective": [], "permitted": []},
    });
    let add = task::ExecProcessRequest {
        id: "users".to_owned(),
        exec_id: name.to_owned(),
        spec: Some(any("process", process.to_string().into_bytes())).into(),
        ..Default::default()
    };
    clients.tasks.exec(Context::default(), &add).await?;
    let start = task::StartRequest {
        id: "users".to_owned(),
        exec_id: name.to_owned(),
        ..Default::default()
    };
    clients
        .tasks
        .start(Context::default(), &start)
        .await
        .map(drop)
}

async fn exec(clients: &Clients, name: &str, line: &str, uid: u32) -> u32 {
    begin(clients, name, line, uid).await.unwrap();
    let wait = task::WaitRequest {
        id: "users".to_owned(),
        exec_id: name.to_owned(),
        ..Default::default()
    };
    let ended = clients.tasks.wait(Context::default(), &wait).await;
    ended.unwrap().exit_status
}
