//! The rules of the tree, as containerd's own suite for snapshotters asks them, and what deaths leave.

use super::*;

const LAYER: &str = "sha256:layer";

fn open(root: &Path) -> Store {
    Store::open(root, vec!["*/pause:*".to_owned()]).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(owned).collect()
}

/// The labels of a pull.
fn pull(target: &str, image: &str) -> BTreeMap<String, String> {
    labels(&[(image::TARGET, target), (image::REFERENCE, image)])
}

fn active(store: &Store, key: &str, parent: &str) {
    store
        .prepare(Kind::Active, key, parent, BTreeMap::new())
        .unwrap();
}

fn commit(store: &Store, name: &str, key: &str) {
    store.commit(name, key, BTreeMap::new(), "").unwrap();
}

fn code<T: std::fmt::Debug>(refused: Result<T, Status>) -> Code {
    refused.unwrap_err().code
}

fn names(store: &Store) -> Vec<String> {
    let all = store.list(&Filters::parse(&[]).unwrap());
    all.into_iter().map(|one| one.name).collect()
}

fn directories(root: &Path) -> usize {
    fs::read_dir(root.join("snapshots")).unwrap().count()
}

#[test]
fn only_what_is_committed_has_children_and_keeps_them() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    active(&store, "a", "");
    let on = |parent| store.prepare(Kind::Active, "b", parent, BTreeMap::new());
    assert_eq!(code(on("a")), Code::InvalidArgument);
    assert_eq!(code(on("none")), Code::NotFound);
    assert_eq!(
        code(store.prepare(Kind::View, "a", "", BTreeMap::new())),
        Code::AlreadyExists
    );
    commit(&store, "one", "a");
    assert_eq!(code(store.stat("a")), Code::NotFound);
    let one = store.stat("one").unwrap();
    assert_eq!((one.kind, one.created), (Kind::Committed, one.updated));
    active(&store, "b", "one");
    assert_eq!(code(store.remove("one")), Code::FailedPrecondition);
    assert_eq!(
        code(store.commit("one", "b", BTreeMap::new(), "")),
        Code::AlreadyExists
    );
    assert_eq!(
        code(store.commit("two", "b", BTreeMap::new(), "other")),
        Code::InvalidArgument
    );
    assert_eq!(
        code(store.commit("two", "one", BTreeMap::new(), "")),
        Code::FailedPrecondition
    );
    assert_eq!(code(store.place("one")), Code::FailedPrecondition);
    store.remove("b").unwrap();
    store.remove("one").unwrap();
    assert_eq!(code(store.remove("one")), Code::NotFound);
    assert_eq!((names(&store).len(), directories(root.path())), (0, 0));
}

#[test]
fn a_view_is_never_committed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store.prepare(Kind::View, "v", "", BTreeMap::new()).unwrap();
    assert!(!store.place("v").unwrap().layers.writable);
    assert_eq!(
        code(store.commit("c", "v", BTreeMap::new(), "")),
        Code::FailedPrecondition
    );
}

#[test]
fn labels_change_and_nothing_else_does() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store
        .prepare(Kind::Active, "a", "", labels(&[("k", "1"), ("l", "1")]))
        .unwrap();
    let paths = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let update = |pairs: &[(&str, &str)], words: &[&str]| {
        store
            .update("a", &labels(pairs), &paths(words))
            .map(|one| one.labels)
    };
    let changed = update(&[("k", "2"), ("l", "2")], &["labels.k"]).unwrap();
    assert_eq!(changed, labels(&[("k", "2"), ("l", "1")]));
    let less = update(&[], &["labels.k"]).unwrap();
    assert_eq!(less, labels(&[("l", "1")]));
    assert_eq!(code(update(&[], &["parent"])), Code::InvalidArgument);
    assert_eq!(update(&[("m", "1")], &[]).unwrap(), labels(&[("m", "1")]));
    assert_eq!(code(store.update("b", &labels(&[]), &[])), Code::NotFound);
    drop(store);
    assert_eq!(
        open(root.path()).stat("a").unwrap().labels,
        labels(&[("m", "1")])
    );
}

#[test]
fn a_pull_finds_every_layer_there_and_nothing_on_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let mut parent = String::new();
    for target in [LAYER, "sha256:second"] {
        let asked = |image| store.prepare(Kind::Active, "x", &parent, pull(target, image));
        assert_eq!(code(asked("r/app:1")), Code::AlreadyExists);
        // Another image with the same layers has the same snapshots.
        assert_eq!(code(asked("r/other:1")), Code::AlreadyExists);
        let filter = format!(r#"labels."containerd.io/snapshot.ref"=={target},parent=="{parent}""#);
        let found = store.list(&Filters::parse(&[filter]).unwrap());
        let [one] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(
            (one.kind, one.labels[image::REFERENCE].as_str()),
            (Kind::Committed, "r/app:1")
        );
        assert_eq!(store.usage(&one.name).unwrap(), Usage::default());
        parent.clone_from(&one.name);
    }
    assert_eq!((names(&store).len(), directories(root.path())), (2, 0));
    active(&store, "c", &parent);
    let place = store.place("c").unwrap();
    assert!(place.is_guests && place.parent.unwrap().name == parent);
}

#[test]
fn an_image_that_is_listed_is_unpacked_unless_its_layers_are_with_guests() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    store
        .prepare(Kind::Active, "x", "", pull(LAYER, "r/pause:3"))
        .unwrap();
    assert!(!store.place("x").unwrap().is_guests);
    let _ = store.prepare(Kind::Active, "y", "", pull(LAYER, "r/app:1"));
    let shared = names(&store)[0].clone();
    let refused = store.prepare(Kind::Active, "z", &shared, pull("sha256:b", "r/pause:3"));
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.reason.contains("r/app:1"), "{refused}");
}

#[test]
fn what_is_unpacked_over_a_layer_of_guests_is_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let _ = store.prepare(Kind::Active, "x", "", pull(LAYER, "r/app:1"));
    let below = names(&store)[0].clone();
    active(&store, "extract", &below);
    let files = store.place("extract").unwrap().layers.own.files();
    fs::write(files.join("f"), "much").unwrap();
    commit(&store, "upper", "extract");
    assert_eq!(store.usage("upper").unwrap(), Usage::default());
    assert_eq!(directories(root.path()), 0);
}

#[test]
fn a_death_at_any_moment_leaves_what_was_answered() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    active(&store, "a", "");
    fs::write(
        store.place("a").unwrap().layers.own.files().join("f"),
        [1; 5000],
    )
    .unwrap();
    commit(&store, "one", "a");
    active(&store, "b", "one");
    let _ = store.prepare(Kind::Active, "x", "one", pull(LAYER, "r/app:1"));
    let known = || open(root.path()).list(&Filters::parse(&[]).unwrap());
    let before = store.list(&Filters::parse(&[]).unwrap());
    drop(store);
    // A directory was made and its record not written; one record was half written; one was erased and its
    // directory not removed.
    fs::create_dir_all(root.path().join("snapshots/77/fs/deep")).unwrap();
    fs::write(root.path().join("records/78.new"), "{\"ver").unwrap();
    assert_eq!(known(), before);
    assert!(!root.path().join("snapshots/77").exists());
    assert!(!root.path().join("records/78.new").exists());
    let store = open(root.path());
    assert!(store.usage("one").unwrap().bytes >= 5000);
    fs::remove_file(
        root.path()
            .join(format!("records/{}", store.stat("b").unwrap().id)),
    )
    .unwrap();
    drop(store);
    let store = open(root.path());
    assert_eq!(code(store.stat("b")), Code::NotFound);
    assert_eq!(directories(root.path()), 1);
}

#[test]
fn one_program_has_the_store() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    assert_eq!(
        code(Store::open(root.path(), Vec::new())),
        Code::Unavailable
    );
    drop(store);
    fs::write(root.path().join("records/5"), "{}").unwrap();
    let refused = Store::open(root.path(), Vec::new()).unwrap_err();
    assert!(refused.reason.contains("records/5"), "{refused}");
}

#[test]
fn sizes_have_caps() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let prepare = |key: &str, labels| code(store.prepare(Kind::Active, key, "", labels));
    assert_eq!(prepare("", BTreeMap::new()), Code::InvalidArgument);
    assert_eq!(
        prepare(&"a".repeat(2000), BTreeMap::new()),
        Code::InvalidArgument
    );
    let long = labels(&[("k", &"v".repeat(5000))]);
    assert_eq!(prepare("a", long), Code::InvalidArgument);
    let many = (0..300).map(|n| (n.to_string(), "v".to_owned())).collect();
    assert_eq!(prepare("a", many), Code::InvalidArgument);
    let target = format!("sha256:{}", "a".repeat(2000));
    assert_eq!(prepare("a", pull(&target, "r/a:1")), Code::InvalidArgument);
    let controls = "\u{1}".repeat(4000);
    let many = (0..256).map(|n| (n.to_string(), controls.clone()));
    assert_eq!(prepare("a", many.collect()), Code::InvalidArgument);
    assert!(names(&store).is_empty());
    let mut parent = String::new();
    for n in 0..=500 {
        let asked = store.prepare(
            Kind::Active,
            "x",
            &parent,
            pull(&format!("sha256:{n}"), "r/a:1"),
        );
        let found = store.list(&Filters::parse(&[format!("parent==\"{parent}\"")]).unwrap());
        if n == 500 {
            assert_eq!(code(asked), Code::AlreadyExists);
        }
        parent.clone_from(&found[0].name);
    }
    assert_eq!(
        code(store.prepare(Kind::Active, "deep", &parent, BTreeMap::new())),
        Code::ResourceExhausted
    );
}
