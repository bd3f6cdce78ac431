//! What slots take, and what they do not.

use super::*;
use std::os::unix::fs::{MetadataExt, symlink};

pub(super) fn slots(base: &Path) -> Slots {
    Slots {
        base: Some(base.to_owned()),
        ..Slots::default()
    }
}

pub(super) fn file(base: &Path, path: &str, data: &[u8]) -> ContentFile {
    let owner = fs::metadata(base).unwrap();
    ContentFile {
        path: path.to_owned(),
        mode: 0o640,
        uid: owner.uid(),
        gid: owner.gid(),
        data: data.to_vec(),
        ..Default::default()
    }
}

pub(super) fn request(kind: Kind, files: Vec<ContentFile>) -> PutContentRequest {
    PutContentRequest {
        container_id: "c".into(),
        name: "cfg".into(),
        kind: kind.into(),
        files,
        ..Default::default()
    }
}

pub(super) fn put(
    slots: &Slots,
    request: &PutContentRequest,
) -> Result<PutContentResponse, GuestError> {
    let place = slots.place(request)?;
    slots.put_in(request, &place, Vec::new()).0
}

pub(super) fn seen(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".."))
        .collect();
    names.sort();
    names
}

#[test]
fn a_set_is_seen_when_it_is_whole_and_replaces_the_one_before() {
    let base = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    let mut first = request(
        Kind::DIRECTORY,
        vec![file(base.path(), "a", b"1"), file(base.path(), "d/b", b"2")],
    );
    let answer = put(&slots, &first).unwrap();
    let path = Path::new(&answer.path);
    assert_eq!(seen(path), ["a", "d"]);
    assert_eq!(fs::read(path.join("d/b")).unwrap(), b"2");
    assert_eq!(fs::metadata(path.join("a")).unwrap().mode() & 0o777, 0o640);
    first.slot = answer.slot;
    first.files = vec![file(base.path(), "a", b"3")];
    first.more = true;
    put(&slots, &first).unwrap();
    assert_eq!(fs::read(path.join("a")).unwrap(), b"1");
    first.files = vec![file(base.path(), "c", b"4")];
    first.more = false;
    put(&slots, &first).unwrap();
    assert_eq!(seen(path), ["a", "c"]);
    assert_eq!(fs::read(path.join("a")).unwrap(), b"3");
    assert_eq!(
        fs::read_link(path.join("..data")).unwrap(),
        Path::new("..set-2")
    );
    assert!(!path.join("..set-1").exists());
}

#[test]
fn the_guest_names_the_place_and_takes_it_back_with_the_container() {
    let base = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    let hosts = request(Kind::FILE, vec![file(base.path(), "", b"127.0.0.1 a\n")]);
    let one = put(&slots, &hosts).unwrap();
    let two = put(&slots, &hosts).unwrap();
    assert_ne!(one.path, two.path);
    let name = one.slot.strip_prefix("c-").unwrap();
    let (digits, name) = name.split_once('-').unwrap();
    assert!(digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(name, "cfg");
    let other = PutContentRequest {
        container_id: "d".into(),
        ..hosts
    };
    put(&slots, &other).unwrap();
    slots.release("c");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
}

#[test]
fn paths_kinds_and_slots_that_do_not_fit_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    for path in [
        "", "/a", "../a", "..data", "a/../b", "a//b", "a/", "./a", "a\nb",
    ] {
        let bad = request(Kind::DIRECTORY, vec![file(base.path(), path, b"")]);
        assert!(put(&slots, &bad).is_err(), "{path:?}");
    }
    for name in ["", "a/b", "..", "a\n", "/a"] {
        let mut bad = request(Kind::DIRECTORY, Vec::new());
        bad.name = name.into();
        assert!(put(&slots, &bad).is_err(), "{name:?}");
    }
    let bad = [
        request(Kind::UNKNOWN, Vec::new()),
        request(Kind::FILE, Vec::new()),
        request(Kind::FILE, vec![file(base.path(), "a", b"")]),
        request(Kind::TERMINATION_LOG, vec![file(base.path(), "", b"")]),
    ];
    for bad in bad {
        assert!(put(&slots, &bad).is_err());
    }
    let mut twice = request(Kind::DIRECTORY, Vec::new());
    twice.files = vec![file(base.path(), "a", b""), file(base.path(), "a", b"")];
    assert!(put(&slots, &twice).is_err());
    let mut owned = request(Kind::DIRECTORY, vec![file(base.path(), "a", b"")]);
    owned.files[0].uid = 1 << 31;
    assert!(put(&slots, &owned).is_err());
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    let mut theirs = request(Kind::DIRECTORY, Vec::new());
    theirs.slot = put(&slots, &theirs).unwrap().slot;
    let mut other = theirs.clone();
    other.kind = Kind::FILE.into();
    other.files = vec![file(base.path(), "", b"")];
    assert!(put(&slots, &other).is_err());
    theirs.container_id = "d".into();
    assert_eq!(put(&slots, &theirs).unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn there_is_a_limit_to_a_file_a_set_and_a_pod() {
    let base = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    let large = vec![0; limit::MAX_CONTENT_FILE];
    let mut one = request(Kind::DIRECTORY, vec![file(base.path(), "a", &large)]);
    one.files[0].data.push(0);
    assert_eq!(
        put(&slots, &one).unwrap_err().code,
        ErrorCode::ResourceExhausted
    );
    one.files[0].data.pop();
    one.more = true;
    one.slot = put(&slots, &one).unwrap().slot;
    for path in ["b", "c", "d"] {
        path.clone_into(&mut one.files[0].path);
        put(&slots, &one).unwrap();
    }
    one.files = vec![file(base.path(), "e", b"1")];
    assert_eq!(
        put(&slots, &one).unwrap_err().code,
        ErrorCode::ResourceExhausted
    );
}

#[test]
fn a_pod_has_room_for_so_much_and_for_so_many_sets_at_once() {
    let base = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    let mut one = request(Kind::DIRECTORY, vec![file(base.path(), "a/b", b"1")]);
    one.more = true;
    one.slot = put(&slots, &one).unwrap().slot;
    let held = |slots: &Slots| slots.table().values().map(Slot::held).sum::<usize>();
    assert_eq!(held(&slots), 4096 + 2 * 1024, "a page, and two names");
    one.files.clear();
    one.more = false;
    put(&slots, &one).unwrap();
    assert_eq!(held(&slots), 4096 + 2 * 1024, "what is seen");
    let mut table = slots.table();
    table.get_mut(&one.slot).unwrap().held = limit::MAX_CONTENT_POD;
    drop(table);
    one.files = vec![file(base.path(), "c", b"")];
    let full = put(&slots, &one).unwrap_err();
    assert_eq!(full.code, ErrorCode::ResourceExhausted);
    slots.release("c");
    let mut begun = request(Kind::DIRECTORY, Vec::new());
    begun.more = true;
    let first = put(&slots, &begun).unwrap().slot;
    for _ in 1..limit::MAX_CONTENT_STAGES {
        put(&slots, &begun).unwrap();
    }
    let many = put(&slots, &begun).unwrap_err();
    assert_eq!(many.code, ErrorCode::ResourceExhausted);
    begun.slot = first;
    begun.more = false;
    put(&slots, &begun).unwrap();
    begun.slot.clear();
    put(&slots, &begun).unwrap();
}

#[test]
fn a_set_that_cannot_be_shown_whole_leaves_what_is_seen_of_it() {
    let base = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    let mut one = request(Kind::DIRECTORY, vec![file(base.path(), "a", b"1")]);
    let answer = put(&slots, &one).unwrap();
    let path = Path::new(&answer.path);
    fs::create_dir(path.join("b")).unwrap();
    one.slot = answer.slot;
    one.files = vec![file(base.path(), "a", b"2"), file(base.path(), "b", b"3")];
    assert!(put(&slots, &one).is_err());
    assert_eq!(fs::read(path.join("a")).unwrap(), b"2");
}

#[test]
fn what_stands_in_the_place_of_a_slot_by_now_is_left_alone() {
    let base = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("x"), "theirs").unwrap();
    let slots = slots(base.path());
    let mut one = request(Kind::DIRECTORY, vec![file(base.path(), "a", b"1")]);
    one.more = true;
    let answer = put(&slots, &one).unwrap();
    fs::rename(&answer.path, base.path().join("away")).unwrap();
    symlink(outside.path(), &answer.path).unwrap();
    one.slot = answer.slot;
    one.files.clear();
    one.more = false;
    put(&slots, &one).unwrap();
    assert_eq!(fs::read(base.path().join("away/a")).unwrap(), b"1");
    assert_eq!(fs::read(outside.path().join("x")).unwrap(), b"theirs");
}

#[test]
fn a_link_that_a_container_planted_leads_nowhere() {
    let base = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    let mut first = request(Kind::DIRECTORY, vec![file(base.path(), "a", b"1")]);
    let answer = put(&slots, &first).unwrap();
    let path = Path::new(&answer.path);
    symlink(outside.path(), path.join("..set-2")).unwrap();
    symlink(outside.path().join("x"), path.join("b")).unwrap();
    first.slot = answer.slot;
    first.files = vec![file(base.path(), "b", b"2")];
    assert!(put(&slots, &first).is_err());
    put(&slots, &first).unwrap();
    assert_eq!(fs::read(path.join("b")).unwrap(), b"2");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_termination_message_is_read_from_its_end() {
    let base = tempfile::tempdir().unwrap();
    let slots = slots(base.path());
    assert!(slots.message("c").is_err());
    let log = request(Kind::TERMINATION_LOG, Vec::new());
    // The file is root's, as the kubelet's is.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let path = put(&slots, &log).unwrap().path;
    assert_eq!(slots.message("c").unwrap(), "");
    let mut text = "x".repeat(limit::MAX_TERMINATION_MESSAGE);
    text.push_str("the end");
    fs::write(path, &text).unwrap();
    let told = slots.message("c").unwrap();
    assert_eq!(told.len(), limit::MAX_TERMINATION_MESSAGE);
    assert!(told.ends_with("the end"));
}
