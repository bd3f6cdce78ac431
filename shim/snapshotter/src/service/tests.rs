//! Who gets which mounts, and the messages of the service.

use super::*;
use crate::image::REFERENCE;
use crate::wire::containers::Runtime;

const GUEST: &str = "io.containerd.cloister.v2";
const HOST: &str = "io.containerd.runc.v2";

fn service(root: &std::path::Path) -> Service {
    let config = Config {
        root: root.to_owned(),
        // Nobody listens there.
        containerd: root.join("c.sock"),
        ..Config::default()
    };
    let store = Store::open(root, config.unpack.clone()).unwrap();
    Service::new(store, &config)
}

fn container(runtime: &str) -> Container {
    Container {
        image: "r/app:1".to_owned(),
        runtime: MessageField::some(Runtime {
            name: runtime.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn ask<A: Message>(
    service: &Service,
    method: &str,
    question: &impl Message,
) -> Result<Vec<A>, Status> {
    let question = question.write_to_bytes().unwrap();
    let answers = service
        .call(&format!("{SERVICE}{method}"), &question)
        .await?;
    Ok(answers
        .iter()
        .map(|one| A::parse_from_bytes(one).unwrap())
        .collect())
}

fn pull(key: &str, target: &str) -> PrepareRequest {
    let labels = [(crate::image::TARGET, target), (REFERENCE, "r/app:1")];
    PrepareRequest {
        key: key.to_owned(),
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..Default::default()
    }
}

#[test]
fn only_a_runtime_with_guests_gets_what_a_guest_is_to_pull() {
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let prepare =
        |key: &str, parent: &str, labels| service.store.prepare(Kind::Active, key, parent, labels);
    prepare("x", "", ordered(pull("x", "sha256:a").labels)).unwrap_err();
    let layer = service.store.list(&Filters::parse(&[]).unwrap())[0]
        .name
        .clone();
    prepare("guest", &layer, BTreeMap::new()).unwrap();
    prepare("host", "", BTreeMap::new()).unwrap();
    let mount = |key: &str, container: Option<Container>| {
        let place = service.store.place(key).unwrap();
        mount_for(container.as_ref(), &place, &service.runtimes)
    };
    let has_volume = |mount: Mount| mount.options.iter().any(|o| o.contains("katacontainers"));
    for (key, runtime, volume) in [
        ("guest", None, true),
        ("guest", Some(GUEST), true),
        ("host", None, false),
        ("host", Some(HOST), false),
        ("host", Some(GUEST), true),
    ] {
        let mount = mount(key, runtime.map(container)).unwrap();
        assert_eq!(has_volume(mount), volume, "{key} {runtime:?}");
    }
    let refused = mount("guest", Some(container(HOST))).unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    for named in ["r/app:1", HOST, "unpack"] {
        assert!(refused.reason.contains(named), "{refused}");
    }
}

#[tokio::test]
async fn containerds_questions_are_answered_in_its_messages() {
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let refused = ask::<MountsResponse>(&service, "Prepare", &pull("k", "sha256:a")).await;
    assert_eq!(refused.unwrap_err().code, Code::AlreadyExists);
    let listed: Vec<ListResponse> = ask(&service, "List", &ListRequest::new()).await.unwrap();
    let layer = &listed[0].info[0];
    assert_eq!(layer.kind, EnumOrUnknown::new(snapshots::Kind::COMMITTED));
    assert!(layer.created_at.seconds > 0 && layer.labels[REFERENCE] == "r/app:1");
    let view = PrepareRequest {
        key: "v".to_owned(),
        parent: layer.name.clone(),
        ..Default::default()
    };
    let viewed: Vec<MountsResponse> = ask(&service, "View", &view).await.unwrap();
    assert!(viewed[0].mounts[0].options.contains(&"ro".to_owned()));
    let key = |key: &str| KeyRequest {
        key: key.to_owned(),
        ..Default::default()
    };
    let stat: Vec<InfoResponse> = ask(&service, "Stat", &key("v")).await.unwrap();
    assert_eq!(stat[0].info.parent, layer.name);
    let used: Vec<UsageResponse> = ask(&service, "Usage", &key("v")).await.unwrap();
    assert_eq!(used[0].inodes, 1);
    let _: Vec<Empty> = ask(&service, "Remove", &key("v")).await.unwrap();
    let gone = ask::<InfoResponse>(&service, "Stat", &key("v")).await;
    assert_eq!(gone.unwrap_err().code, Code::NotFound);
    let unknown = ask::<Empty>(&service, "Restore", &key("v")).await;
    assert_eq!(unknown.unwrap_err().code, Code::Unimplemented);
    let nonsense = service.call(&format!("{SERVICE}Stat"), &[0xff]).await;
    assert_eq!(nonsense.unwrap_err().code, Code::InvalidArgument);
}

#[tokio::test]
async fn a_container_is_not_mounted_for_somebody_unknown_while_containerd_is_silent() {
    let root = tempfile::tempdir().unwrap();
    let service = service(root.path());
    let prepare = PrepareRequest {
        key: "k8s.io/1/c".to_owned(),
        ..Default::default()
    };
    let _: Vec<MountsResponse> = ask(&service, "Prepare", &prepare).await.unwrap();
    let question = KeyRequest {
        key: prepare.key,
        ..Default::default()
    };
    let refused = ask::<MountsResponse>(&service, "Mounts", &question).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.reason.contains("c.sock"), "{refused}");
}
