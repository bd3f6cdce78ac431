//! What the owner seals for a workload: opened in the guest, given to whom the policy names, gone when it is revoked,
//! and refused in another's place.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::init_data::{ALLOW_ALL, InitData};
use support::pod::Pod;
use support::product;
use support::run::within;
use support::stage::Stage;

use super::REFUSAL;

pub(crate) const PASSWORD: &str = "the-owners-password-of-the-database";

/// Verification keys that a guest does not get: one that is not there, and one that is not released.
const NO_KEY: &str = "default/none/seal";
const HIDDEN_KEY: &str = "default/hidden/seal";

/// What the owner sealed, and where the host has it.
pub(crate) struct Sealed {
    pub(crate) variable: String,
    /// The same by keys that do not come.
    withheld: [String; 2],
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
        broker.put(HIDDEN_KEY, &public).unwrap();
        let seal_by = |key: &str, terms: &[&str], resource: &str| {
            let kid = format!("kbs:///{key}");
            let by = ["seal", "vault", "--key", private, "--kid", &kid];
            let uri = format!("kbs:///default/secret/{resource}");
            agent(&[&by[..], terms, &[uri.as_str()]].concat())
        };
        let seal = |terms: &[&str], resource: &str| seal_by("default/key/seal", terms, resource);
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
            withheld: [NO_KEY, HIDDEN_KEY]
                .map(|key| format!("DB_PASSWORD={}", seal_by(key, &[], "db"))),
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

/// What a pod of several containers is made of.
pub(crate) struct Members<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) config: &'a Path,
    pub(crate) image: &'a str,
}

impl Members<'_> {
    /// A container of the pod, as Kubernetes has its init containers and all others made.
    fn pod<'a>(&'a self, id: &'a str, empty: &'a Path, kind: &str, args: &[&str]) -> Pod<'a> {
        let kind = format!("io.kubernetes.cri.container-type={kind}");
        let pod = "io.kubernetes.cri.sandbox-id=members";
        Pod::new(id, self.config, empty, args)
            .from_image(self.image)
            .flag(&["--annotation", &kind, "--annotation", pod])
    }

    /// A container of the pod that does not start, because its variable does not open.
    fn refused(&self, id: &str, variable: &str, code: &str) -> String {
        let empty = self.stage.empty();
        let pod = self.pod(id, &empty, "container", &["/bin/true"]);
        let pod = pod.flag(&["--env", variable]);
        let line = self.stage.refuse(&pod, code, REFUSAL).unwrap();
        let (name, sealed) = variable.split_once('=').unwrap();
        assert!(line.contains(name), "{line}");
        assert!(!line.contains(&sealed[..32]), "{line}");
        line
    }
}

/// An init container has its secret, and one whose secret does not open stops itself alone: the pod goes on to its
/// main container. The error names the variable and nothing of the secret.
pub(crate) fn a_secret_that_does_not_open_stops_its_container_alone(
    members: &Members<'_>,
    init_data: &InitData,
    sealed: &Sealed,
) {
    let Members { stage, .. } = members;
    let empty = stage.empty();
    let detached = |id, kind: &str| {
        let pod = members.pod(id, &empty, kind, &["/bin/sleep", "600"]);
        pod.flag(&["--detach", "--null-io"])
    };
    let started = |pod: &Pod<'_>| {
        let run = stage.run(pod).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
        run.stdout
    };
    started(&detached("members", "sandbox").with_init_data(init_data));
    let line = ["/bin/sh", "-c", "echo $DB_PASSWORD"];
    let init = members.pod("init", &empty, "container", &line);
    let init = init.flag(&["--rm", "--env", &sealed.variable]);
    assert_eq!(started(&init), format!("{PASSWORD}\n"));

    // The host gives a secret of the owner's in another's place.
    let (_, secret) = sealed.variable.split_once('=').unwrap();
    let moved = format!("GREETING={secret}");
    members.refused("moved", &moved, "secret-not-opened");
    whether_the_broker_has_a_key_is_not_told(members, sealed);

    started(&detached("main", "container").flag(&["--env", &sealed.variable]));
    let exec = ["task", "exec", "--exec-id", "m", "main"];
    let said = stage.containerd.ctr(&[&exec[..], &line].concat()).unwrap();
    assert_eq!(said.stdout, format!("{PASSWORD}\n"), "{}", said.report());
    for id in ["main", "members"] {
        stage.containerd.remove(id);
    }
}

/// A host can write a header that names any resource. Of its guest it does not learn whether there is such a one; the
/// owner does, by the ticket.
fn whether_the_broker_has_a_key_is_not_told(members: &Members<'_>, sealed: &Sealed) {
    let broker = members.stage.broker().unwrap();
    let deny = "package policy\ndefault allow := false\n";
    let deny = members.stage.state.file("deny.rego", deny).unwrap();
    let scoped = ["policy", "set", "--scope", "default/hidden", "--file"];
    let deny = [deny.to_str().unwrap()];
    broker.owner(&[&scoped[..], &deny].concat()).unwrap();
    let told = [0, 1].map(|which| {
        let id = ["none", "hidden"][which];
        let line = members.refused(id, &sealed.withheld[which], "broker-denied");
        let (_, ticket) = line.split_once("(ticket ").unwrap();
        let (ticket, _) = ticket.split_once(')').unwrap();
        let explained = broker.explain(ticket).unwrap();
        let key = [NO_KEY, HIDDEN_KEY][which];
        let line = line.replace(ticket, "T").replace(key, "KEY");
        (line.replace(id, "ID"), explained)
    });
    let [(none, absent), (hidden, refused)] = told;
    assert_eq!(none, hidden);
    assert!(absent.contains("there is no such resource"), "{absent}");
    assert!(refused.contains("refused"), "{refused}");
}
