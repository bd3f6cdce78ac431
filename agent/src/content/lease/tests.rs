//! What a host, a container and a broker that does not answer can do to a lease, and what they cannot.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use agent_api::GuestError;
use agent_api::content::PutContentRequest;
use agent_api::content::put_content_request::Kind;
use tokio::time::sleep;

use super::super::tests::{file, put, request, seen, slots};
use super::*;

const LEASE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// What a lender says to the next question for a file.
#[derive(Clone, Copy)]
enum Say {
    Give(&'static [u8]),
    No,
    Nothing,
}

#[derive(Default)]
struct Script(Mutex<HashMap<String, Say>>);

impl Script {
    fn say(&self, path: &str, say: Say) {
        self.0.lock().unwrap().insert(path.to_owned(), say);
    }
}

impl Lender for Script {
    async fn give(&self, _: &str, path: &str) -> Result<Given, HubError> {
        let say = self.0.lock().unwrap().get(path).copied();
        match say {
            Some(Say::Give(secret)) => Ok(Given {
                secret: secret.to_vec().into(),
                term: Some(Term::new(Instant::now(), LEASE)),
            }),
            Some(Say::No) => Err(HubError::NoBroker),
            Some(Say::Nothing) | None => std::future::pending().await,
        }
    }
}

/// A pod with one volume, of which some files are lent.
struct Stage {
    base: tempfile::TempDir,
    slots: Arc<Slots>,
    lender: Arc<Script>,
}

impl Stage {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        Self {
            slots: Arc::new(slots(base.path())),
            lender: Arc::default(),
            base,
        }
    }

    fn loan(&self, path: &str, secret: &[u8]) -> Loan {
        Loan {
            file: file(self.base.path(), path, b""),
            sealed: "sealed.a.b.c".to_owned(),
            secret: secret.to_vec().into(),
            term: Term::new(Instant::now(), LEASE),
        }
    }

    fn put(&self, request: &PutContentRequest, loans: Vec<Loan>) -> Result<Volume, GuestError> {
        let place = self.slots.place(request)?;
        let (answer, lending) = self.slots.put_in(request, &place, loans);
        lending.keep(&self.slots, &self.lender);
        let path = PathBuf::from(answer?.path);
        let slot = place.slot().to_owned();
        Ok(Volume { slot, path })
    }

    fn request(&self, plain: &[&str]) -> PutContentRequest {
        let files = plain.iter();
        let files = files.map(|path| file(self.base.path(), path, b"plain"));
        request(Kind::DIRECTORY, files.collect())
    }

    /// A volume with a plain file, and files that are lent, whose secret is `1`.
    fn volume(&self, plain: &[&str], lent: &[&str]) -> Volume {
        let loans = lent.iter().map(|path| self.loan(path, b"1")).collect();
        self.put(&self.request(plain), loans).unwrap()
    }

    /// Puts more of the host's files into a volume, and leaves the set open.
    fn begin(&self, volume: &Volume, plain: &[&str]) -> PutContentRequest {
        let mut request = self.request(plain);
        (request.slot, request.more) = (volume.slot.clone(), true);
        self.put(&request, Vec::new()).unwrap();
        request.files.clear();
        request.more = false;
        request
    }
}

struct Volume {
    slot: String,
    path: PathBuf,
}

impl Volume {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path.join(path)).ok()
    }

    fn set(&self) -> PathBuf {
        fs::read_link(self.path.join("..data")).unwrap()
    }
}

/// Whether any file below a directory has this in it.
fn is_anywhere(directory: &Path, content: &[u8]) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        match kind.is_dir() {
            true => is_anywhere(&path, content),
            false => kind.is_file() && fs::read(&path).unwrap() == content,
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_file_changes_goes_and_comes_back_as_the_broker_says() {
    let stage = Stage::new();
    let volume = stage.volume(&["a"], &["lent"]);
    let before = volume.set();
    stage.lender.say("lent", Say::Give(b"1"));
    sleep(41 * SECOND).await;
    assert_eq!(volume.set(), before, "nothing has changed");
    stage.lender.say("lent", Say::Give(b"2"));
    sleep(41 * SECOND).await;
    assert_eq!(volume.read("lent").unwrap(), b"2");
    assert_ne!(volume.set(), before, "as those see it who watch the volume");
    stage.lender.say("lent", Say::No);
    sleep(41 * SECOND).await;
    assert_eq!(seen(&volume.path), ["a"]);
    stage.lender.say("lent", Say::Give(b"3"));
    sleep(6 * SECOND).await;
    assert_eq!(volume.read("lent").unwrap(), b"3");

    // The host's next set is not touched by the loans of the one before, nor is a slot that is gone.
    let mut next = stage.request(&["lent"]);
    next.slot.clone_from(&volume.slot);
    put(&stage.slots, &next).unwrap();
    stage.lender.say("lent", Say::No);
    sleep(2 * LEASE).await;
    assert_eq!(volume.read("lent").unwrap(), b"plain");
    stage.slots.release("c");
    sleep(2 * LEASE).await;
    assert!(!volume.path.exists());
}

#[tokio::test(start_paused = true)]
async fn a_lease_goes_on_while_a_host_leaves_its_set_open() {
    let stage = Stage::new();
    let mut request = stage.request(&["a"]);
    request.more = true;
    let loans = vec![stage.loan("lent", b"1")];
    let volume = stage.put(&request, loans).unwrap();
    assert!(!is_anywhere(&volume.path, b"1"), "not before it is seen");
    sleep(LEASE).await;
    (request.slot, request.more) = (volume.slot.clone(), false);
    request.files.clear();
    stage.put(&request, Vec::new()).unwrap();
    assert_eq!(seen(&volume.path), ["a"]);
    sleep(SECOND).await;
    assert_eq!(seen(&volume.path), ["a"], "revoked since, or no answer");
    stage.lender.say("lent", Say::Give(b"2"));
    sleep(2 * LATEST).await;
    assert_eq!(volume.read("lent").unwrap(), b"2", "it was asked for again");
}

#[tokio::test(start_paused = true)]
async fn no_file_waits_for_the_answer_about_another() {
    let stage = Stage::new();
    stage.lender.say("no", Say::No);
    stage.lender.say("new", Say::Give(b"2"));
    stage.lender.say("slow", Say::Nothing);
    let volume = stage.volume(&["a"], &["slow", "no", "new", "slower"]);
    sleep(41 * SECOND).await;
    assert_eq!(volume.read("new").unwrap(), b"2");
    assert_eq!(seen(&volume.path), ["a", "new", "slow", "slower"]);
    sleep(18 * SECOND).await;
    assert_eq!(volume.read("slow").unwrap(), b"1", "its lease is not over");
    sleep(SECOND + SECOND / 10).await;
    assert_eq!(seen(&volume.path), ["a", "new"]);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_cannot_be_shown_anew_loses_the_file_all_the_same() {
    let stage = Stage::new();
    let volume = stage.volume(&["a", "d/b"], &["lent", "d/lent"]);
    for path in ["lent", "d/lent"] {
        stage.lender.say(path, Say::No);
    }
    // What a container can do where its mount is writable: no link of the volume can be renamed.
    fs::create_dir(volume.path.join("..data_tmp")).unwrap();
    sleep(41 * SECOND).await;
    assert_eq!((volume.read("lent"), volume.read("d/lent")), (None, None));
    assert!(volume.read("a").is_some() && volume.read("d/b").is_some());
    assert!(!is_anywhere(&volume.path, b"1"));
    assert_eq!(volume.set(), Path::new("..set-1"));
    // It is tried until it is done.
    fs::remove_dir(volume.path.join("..data_tmp")).unwrap();
    sleep(6 * SECOND).await;
    assert_eq!(seen(&volume.path), ["a", "d"]);
    assert_ne!(volume.set(), Path::new("..set-1"));
}

#[tokio::test(start_paused = true)]
async fn what_a_container_did_to_its_directories_keeps_no_secret() {
    let stage = Stage::new();
    let volume = stage.volume(&["d/e/b", "f/c", "g"], &["lent", "moved/lent"]);
    let set = volume.path.join("..data");
    fs::remove_dir_all(set.join("d")).unwrap();
    fs::remove_dir_all(set.join("f")).unwrap();
    fs::write(set.join("f"), "a file").unwrap();
    fs::remove_file(set.join("g")).unwrap();
    fs::create_dir(set.join("g")).unwrap();
    fs::rename(set.join("moved"), volume.path.join("away")).unwrap();
    fs::create_dir(volume.path.join("..set-2")).unwrap();
    let elsewhere = stage.base.path().join("mount-of-one-file");
    fs::hard_link(set.join("lent"), &elsewhere).unwrap();
    for path in ["lent", "moved/lent"] {
        stage.lender.say(path, Say::No);
    }
    sleep(41 * SECOND).await;
    assert_eq!(volume.read("lent"), None);
    assert_eq!(
        fs::read(&elsewhere).unwrap(),
        b"",
        "whatever holds the file"
    );
    assert!(!is_anywhere(stage.base.path(), b"1"));
    sleep(6 * SECOND).await;
    assert_eq!(seen(&volume.path), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_replaced_goes_with_its_own_lease() {
    let stage = Stage::new();
    let volume = stage.volume(&["a"], &["lent"]);
    stage.lender.say("lent", Say::Give(b"2"));
    let bar = volume.path.join("..data_tmp");
    fs::create_dir(&bar).unwrap();
    sleep(59 * SECOND).await;
    assert_eq!(volume.read("lent").unwrap(), b"1");
    sleep(SECOND + SECOND / 10).await;
    assert_eq!(volume.read("lent"), None);
    assert!(!is_anywhere(&volume.path, b"1") && !is_anywhere(&volume.path, b"2"));
    fs::remove_dir(&bar).unwrap();
    sleep(11 * SECOND).await;
    assert_eq!(volume.read("lent").unwrap(), b"2");
}

#[tokio::test(start_paused = true)]
async fn an_open_set_of_the_host_keeps_neither_a_rotation_nor_itself_from_being_seen() {
    let stage = Stage::new();
    let volume = stage.volume(&["a"], &["lent", "gone"]);
    let open = stage.begin(&volume, &["b"]);
    stage.lender.say("lent", Say::Give(b"2"));
    stage.lender.say("gone", Say::No);
    sleep(41 * SECOND).await;
    assert_eq!(volume.read("lent").unwrap(), b"2");
    assert_eq!(seen(&volume.path), ["a", "lent"]);
    stage.put(&open, Vec::new()).unwrap();
    assert_eq!(seen(&volume.path), ["b"]);
    assert_eq!(volume.read("b").unwrap(), b"plain");
    sleep(GRACE + SECOND).await;
    assert!(!is_anywhere(stage.base.path(), b"2"));
}

#[tokio::test(start_paused = true)]
async fn what_was_replaced_is_emptied_wherever_it_is_held() {
    let stage = Stage::new();
    let volume = stage.volume(&[], &["lent", "same"]);
    let held = |name: &str| {
        let elsewhere = stage.base.path().join(format!("mount-of-{name}"));
        fs::hard_link(volume.path.join("..data").join(name), &elsewhere).unwrap();
        elsewhere
    };
    let (lent, same) = (held("lent"), held("same"));
    stage.lender.say("lent", Say::Give(b"2"));
    stage.lender.say("same", Say::Give(b"1"));
    sleep(41 * SECOND).await;
    assert_eq!(fs::read(&lent).unwrap(), b"1", "who has begun to read it");
    sleep(GRACE).await;
    assert_eq!(fs::read(&lent).unwrap(), b"");
    assert_eq!(volume.read("lent").unwrap(), b"2");
    assert_eq!(fs::read(&same).unwrap(), b"1", "lent on");
    stage.lender.say("same", Say::Nothing);
    sleep(LEASE).await;
    assert_eq!(fs::read(&same).unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_was_seen_before_it_failed_is_looked_after() {
    let stage = Stage::new();
    let volume = stage.volume(&["a"], &[]);
    fs::create_dir(volume.path.join("b")).unwrap();
    let mut request = stage.request(&["b"]);
    request.slot.clone_from(&volume.slot);
    let loans = vec![stage.loan("a", b"1")];
    assert!(stage.put(&request, loans).is_err());
    assert_eq!(volume.read("a").unwrap(), b"1");
    stage.lender.say("a", Say::No);
    sleep(41 * SECOND).await;
    assert_eq!(volume.read("a"), None);
    assert!(!is_anywhere(stage.base.path(), b"1"));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_looks_after_is_empty() {
    let stage = Stage::new();
    let request = stage.request(&["a"]);
    let place = stage.slots.place(&request).unwrap();
    let loans = vec![stage.loan("lent", b"1")];
    let (answer, lending) = stage.slots.put_in(&request, &place, loans);
    let path = PathBuf::from(answer.unwrap().path);
    assert_eq!(fs::read(path.join("lent")).unwrap(), b"1");
    drop(lending);
    assert_eq!(fs::read(path.join("lent")).unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn a_lent_file_has_its_limits_too() {
    let stage = Stage::new();
    let most = agent_api::limit::MAX_LENT_FILES;
    let loans = |count: usize| -> Vec<Loan> {
        let path = |number| format!("f{number}");
        (0..count)
            .map(|number| stage.loan(&path(number), b"1"))
            .collect()
    };
    let many = stage.put(&stage.request(&[]), loans(most + 1));
    let many = many.err().unwrap();
    assert_eq!(many.code, agent_api::ErrorCode::ResourceExhausted);
    assert_eq!(fs::read_dir(stage.base.path()).unwrap().count(), 0);
    // All of them may be replaced at once.
    stage.put(&stage.request(&[]), loans(most)).unwrap();
    stage.put(&stage.request(&[]), loans(most)).unwrap();

    let large = vec![0; agent_api::limit::MAX_CONTENT_FILE + 1].into();
    let empty = file(stage.base.path(), "f0", b"");
    let refused = stage.slots.replace(("none", 1), &empty, &large);
    assert!(refused.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_link_in_the_place_of_a_directory_leads_to_nothing_that_is_taken_away() {
    let stage = Stage::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("lent"), "theirs").unwrap();
    let volume = stage.volume(&["a"], &["d/lent"]);
    let directory = volume.path.join("..set-1/d");
    fs::remove_dir_all(&directory).unwrap();
    symlink(outside.path(), &directory).unwrap();
    stage.lender.say("d/lent", Say::No);
    sleep(41 * SECOND).await;
    assert_eq!(fs::read(outside.path().join("lent")).unwrap(), b"theirs");
    assert_eq!(seen(&volume.path), ["a"]);
}
