//! What the owner seals for a workload: opened in the guest, given to whom the policy names, gone when it is revoked,
//! and refused in another's place.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use support::init_data::{ALLOW_ALL, InitData};
use support::pod::Pod;
use support::product;
use support::run::within;
use support::stage::Stage;

use super::REFUSAL;

pub(crate) const PASSWORD: &str = "the-owners-password-of-the-database";

/// What the owner sealed, and where the host has it.
pub(crate) struct Sealed {
    pub(crate) variable: String,
    pub(crate) kubelet: PathBuf,
    pub(crate) mount: String,
}

impl Sealed {
    /// Puts two secrets and the verification key at the broker, and seals them for a variable and for two files.
    pub(crate) fn make(stage: &Stage) -> Self {
        let (broker, state) = (stage.broker().unwrap(), &stage.state);
        for (path, secret) in [
            ("db", PASSWORD),
            ("other", "other-secret"),
            ("lent", "lent-secret"),
        ] {
            let file = state.file(path, secret).unwrap();
            broker
                .put(&format!("default/secret/{path}"), &file)
                .unwrap();
            std::fs::remove_file(file).unwrap();
        }
        let agent = |args: &[&str]| {
            let mut command = Command::new(product::bin("attestation-agent").unwrap());
            let done = within(REFUSAL, command.args(args)).unwrap().ok().unwrap();
            done.stdout.trim().to_owned()
        };
        let private = state.path().join("seal.jwk");
        let private = private.to_str().unwrap();
        let public = state
            .file("seal.pub", agent(&["seal-key", private]))
            .unwrap();
        broker.put("default/key/seal", &public).unwrap();
        let seal = |terms: &[&str], resource: &str| {
            let by = [
                "seal",
                "vault",
                "--key",
                private,
                "--kid",
                "kbs:///default/key/seal",
            ];
            let uri = format!("kbs:///default/secret/{resource}");
            agent(&[&by[..], terms, &[uri.as_str()]].concat())
        };
        let kubelet = state.dir("kubelet").unwrap();
        let volume = state
            .dir("kubelet/pods/u/volumes/kubernetes.io~secret/s")
            .unwrap();
        for (file, terms, resource) in [
            ("password", &["--name", "password"], "db"),
            ("lent", &["--lease-seconds", "5"], "lent"),
        ] {
            std::fs::write(volume.join(file), seal(terms, resource)).unwrap();
        }
        std::fs::write(volume.join("plain"), "plain").unwrap();
        let volume = volume.display();
        Self {
            variable: format!("DB_PASSWORD={}", seal(&["--name", "DB_PASSWORD"], "db")),
            kubelet,
            mount: format!("type=bind,src={volume},dst=/secret,options=rbind:ro"),
        }
    }
}

/// Every request of the host's; of the containers', one resource.
pub(crate) fn workloads_policy() -> String {
    let all = "default GetResourceRequest := true";
    assert!(ALLOW_ALL.contains(all));
    let one = "default GetResourceRequest := false\n\
        GetResourceRequest if {\n    input.container.id == \"held\"\n    input.resource == \"default/secret/db\"\n}";
    let policy = ALLOW_ALL.replace(all, one);
    policy.replace(
        "default GetTokenRequest := true",
        "default GetTokenRequest := false",
    )
}

/// The container's first process, a further one, its volume and the REST interface give the secret; what the policy does
/// not name they do not.
pub(crate) fn secrets_are_opened_and_the_policy_says_who_reads_which(stage: &Stage, id: &str) {
    let script = "echo $DB_PASSWORD; tr '\\0' '\\n' < /proc/1/environ | grep DB_; cat /secret/password /secret/plain; echo; \
        get='busybox wget -q -O - http://127.0.0.1:8006'; $get/cdh/resource/default/secret/db; echo; \
        $get/cdh/resource/default/secret/other || echo refused; \
        $get/aa/token?token_type=kbs || echo refused; $get/info";
    let script = script.replace("tr ", "busybox tr ");
    let exec = [
        "task",
        "exec",
        "--exec-id",
        "s",
        id,
        "/bin/sh",
        "-c",
        &script,
    ];
    let read = stage.containerd.ctr(&exec).unwrap();
    let expected = format!(
        "{PASSWORD}\nDB_PASSWORD={PASSWORD}\n{PASSWORD}plain\n{PASSWORD}\nrefused\nrefused\n"
    );
    let (told, info) = read.stdout.split_at(expected.len().min(read.stdout.len()));
    assert_eq!(told, expected, "{}\n{}", read.report(), stage.log_tail());
    assert!(info.contains(r#""tee":"sim-snp""#), "{info}");
}

/// The broker does not give it any more, and so the file goes; the others stay.
pub(crate) fn a_lent_secret_goes_when_it_is_revoked(stage: &Stage, id: &str) {
    let look = |number: usize| {
        let exec_id = format!("l{number}");
        let exec = [
            "task",
            "exec",
            "--exec-id",
            &exec_id,
            id,
            "/bin/ls",
            "/secret",
        ];
        stage.containerd.ctr(&exec).unwrap().stdout
    };
    assert_eq!(look(0), "lent\npassword\nplain\n");
    let revoke = ["resource", "delete", "default/secret/lent"];
    stage.broker().unwrap().owner(&revoke).unwrap();
    let mut seen = String::new();
    for number in 1..30 {
        seen = look(number);
        if seen == "password\nplain\n" {
            return;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("a revoked secret stays: {seen}\n{}", stage.log_tail());
}

/// The host gives a secret of the owner's in another's place. The error names the variable and nothing of the secret.
pub(crate) fn a_secret_of_another_name_stops_the_container(
    stage: &Stage,
    pod: &Pod<'_>,
    init_data: &InitData,
    sealed: &Sealed,
) {
    let (_, secret) = sealed.variable.split_once('=').unwrap();
    let moved = format!("GREETING={secret}");
    let pod = pod
        .clone()
        .with_init_data(init_data)
        .flag(&["--env", &moved]);
    let line = stage.refuse(&pod, "secret-not-opened", REFUSAL).unwrap();
    assert!(line.contains("GREETING"), "{line}");
    assert!(!line.contains(&secret[..32]), "{line}");
}
