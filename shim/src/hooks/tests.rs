//! Hooks that are real programs.

use super::*;

struct Stage {
    root: tempfile::TempDir,
    state: StateDir,
}

impl Stage {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(&root.path().join("state"));
        state.create().unwrap();
        Self { root, state }
    }

    /// A specification whose hooks append what they are told to a file each.
    fn spec(&self, script: &str) -> Spec {
        let hook = |name: &str| {
            let line = format!("{script}; cat >> {}/{name}", self.root.path().display());
            json!([{"path": "/bin/sh", "args": ["sh", "-c", line], "env": ["A=1"], "timeout": 5}])
        };
        let spec = json!({
            "annotations": {"k": "v"},
            "hooks": {"createRuntime": hook("created"), "poststop": hook("stopped")},
        });
        serde_json::from_value(spec).unwrap()
    }

    fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.root.path().join(name)).unwrap_or_default()
    }

    fn before(&self, spec: &Spec) -> Result<(), GuestError> {
        before(&self.state, "c", self.root.path(), spec, 77)
    }
}

#[test]
fn hooks_are_told_of_their_container_and_what_follows_its_end_runs_once() {
    let stage = Stage::new();
    let spec = stage.spec("[ $A = 1 ] && [ -z $HOME ]");
    assert!(any(&spec) && any_before(&spec) && !any(&Spec::default()));
    stage.before(&spec).unwrap();
    let state: serde_json::Value = serde_json::from_str(&stage.said("created")).unwrap();
    assert_eq!(state["pid"], 77);
    assert_eq!(state["status"], "creating");
    assert_eq!(state["annotations"]["k"], "v");
    assert_eq!(state["bundle"], stage.root.path().display().to_string());
    assert!(stage.said("stopped").is_empty());
    assert!(after_all(&stage.state, Duration::from_secs(30)));
    after(&stage.state, "c");
    let state: serde_json::Value = serde_json::from_str(&stage.said("stopped")).unwrap();
    assert_eq!(state["status"], "stopped");
}

#[test]
fn a_hook_that_fails_is_named_with_what_it_said_and_what_undoes_it_runs() {
    let stage = Stage::new();
    let spec = stage.spec("[ -e gone ] || { echo no network >&2; exit 3; }");
    let error = stage.before(&spec).unwrap_err().to_string();
    assert!(
        error.contains("/bin/sh") && error.contains("no network"),
        "{error}"
    );
    std::fs::write(stage.root.path().join("gone"), "").unwrap();
    after(&stage.state, "c");
    assert!(stage.said("stopped").contains("stopped"));
}

#[test]
fn a_hook_that_hangs_is_ended() {
    let stage = Stage::new();
    let mut spec = stage.spec("exec sleep 600");
    spec.hooks.as_mut().unwrap().create_runtime[0].timeout = Some(0);
    let error = stage.before(&spec).unwrap_err().to_string();
    assert!(error.contains("did not end"), "{error}");
}

#[test]
fn what_ran_out_of_time_stays_on_record_and_runs_later_without_what_had_ended() {
    let stage = Stage::new();
    stage.before(&stage.spec("true")).unwrap();
    assert!(!after_all(&stage.state, Duration::ZERO));
    assert!(stage.said("stopped").is_empty());
    assert!(after_all(&stage.state, Duration::from_secs(30)));
    assert!(stage.said("stopped").contains("stopped"));
    assert!(
        !std::fs::read_dir(stage.state.path()).unwrap().any(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            is_record(&name)
        })
    );
}

#[test]
fn one_that_was_cut_off_runs_again() {
    let stage = Stage::new();
    stage.before(&stage.spec("true")).unwrap();
    let at = |name: &str| stage.state.path().join(name);
    // As a shim leaves it that is killed meanwhile.
    std::fs::rename(at("poststop-c"), at("undoing-c")).unwrap();
    after(&stage.state, "c");
    assert!(stage.said("stopped").is_empty(), "who has it may be at it");
    assert!(after_all(&stage.state, Duration::from_secs(30)));
    assert!(stage.said("stopped").contains("stopped"));
}

#[test]
fn the_hooks_of_two_containers_at_once_hear_and_say_their_own() {
    let stage = Stage::new();
    let hook = "state=$(cat); sleep 0.1; echo \"$state\" >&2; exit 1";
    let program = Program {
        path: PathBuf::from("/bin/sh"),
        args: ["sh", "-c", hook].map(str::to_owned).to_vec(),
        env: Vec::new(),
        timeout: None,
    };
    let error_of = &|id: &str| {
        let told = told(id, stage.root.path(), &Spec::default());
        run(&program, &told, "creating", 1, None)
            .unwrap_err()
            .to_string()
    };
    std::thread::scope(|scope| {
        let all = ["one", "two", "three"].map(|id| (id, scope.spawn(move || error_of(id))));
        for (id, error) in all {
            let error = error.join().unwrap();
            assert!(error.contains(&format!("\"id\":\"{id}\"")), "{id}: {error}");
        }
    });
    assert_eq!(std::fs::read_dir(stage.state.path()).unwrap().count(), 0);
}

#[test]
fn of_one_that_says_much_the_last_is_told_and_what_it_leaves_behind_holds_up_nobody() {
    let stage = Stage::new();
    let spec = stage.spec("sleep 60 & yes | head -c 3000000; echo the end; exit 1");
    let began = Instant::now();
    let error = stage.before(&spec).unwrap_err().to_string();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "it was waited for"
    );
    assert!(error.contains("the end"), "{error}");
    assert!(error.len() < MAX_SAID + 200, "{}", error.len());
}
