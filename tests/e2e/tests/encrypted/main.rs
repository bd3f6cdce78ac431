//! The main job: an encrypted image runs attested in a VM, and only there.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod disks;
mod secrets;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use disks::Volumes;
use secrets::{
    Members, PASSWORD, Sealed, a_lent_secret_goes_when_it_is_revoked,
    a_secret_that_does_not_open_stops_its_container_alone,
    secrets_are_opened_and_the_policy_says_who_reads_which, workloads_policy,
};

use support::image::{Entry, Recipe};
use support::init_data::InitData;
use support::pod::{Pod, Settings};
use support::run::within;
use support::stage::{KEY_ID, Stage, TOOLS};
use support::timeline::PHASES;
use support::{dev_tee, need, product};

const MARKER: &str = "only-the-guest-may-read-this";
/// Of the image of which a pod attests once.
const LAYERS: usize = 6;
const REFUSAL: Duration = Duration::from_secs(60);

#[test]
fn an_encrypted_image_runs_attested_and_one_changed_byte_of_init_data_is_refused() {
    if !need(&[&TOOLS[..], &disks::TOOLS].concat()) {
        return;
    }
    let stage = Stage::simulated().unwrap();
    let key = stage.key("image.key").unwrap();
    let image = stage
        .push_encrypted(&of_six_layers(), "secret", &key, KEY_ID)
        .unwrap();
    let broker = stage.broker().unwrap();
    let init_data = InitData::new(Some(broker), Some(&stage.registry), &workloads_policy());
    broker.put(KEY_ID, &key).unwrap();
    let sealed = Sealed::make(&stage);
    broker
        .release_only_to_kind("sim-snp", &init_data.digest())
        .unwrap();
    let key_bytes = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    std::fs::remove_dir_all(stage.state.path().join("layout-secret")).unwrap();

    let before = stage.containerd.leftovers();
    let mut settings = stage.settings();
    settings.kubelet = Some(sealed.kubelet.clone());
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let pod = Pod::new("enc", &config, &empty, &["/bin/cat", "/marker"])
        .from_image(&image)
        .flag(&["--rm"]);

    // The container runs, and says what only the decrypted layer holds.
    let run = stage.run(&pod.clone().with_init_data(&init_data)).unwrap();
    assert_eq!(
        run.stdout,
        format!("{MARKER}\n"),
        "{}\n{}",
        run.report(),
        stage.log_tail()
    );
    assert_eq!(run.code, 0);

    // The start is written down, phase by phase.
    let timeline = stage.timeline("enc").unwrap();
    let named: Vec<_> = timeline.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(named, PHASES, "{timeline:?}");
    assert!(
        u128::from(timeline.total()) <= run.took.as_millis(),
        "{timeline:?} {:?}",
        run.took
    );

    // The host has neither plaintext nor key: not afterwards, and not while the container runs.
    stage.settled(&before).unwrap();
    let needles = [MARKER.as_bytes(), key_bytes.as_slice(), PASSWORD.as_bytes()];
    assert_eq!(stage.search_host(&needles).unwrap(), Vec::<PathBuf>::new());
    let volumes = Volumes::new(&stage);
    let flags = volumes.flags();
    let held = Pod::new("held", &config, &empty, &["/bin/sleep", "600"])
        .from_image(&image)
        .with_init_data(&init_data)
        .flag(&[
            "--detach",
            "--null-io",
            "--env",
            &sealed.variable,
            "--mount",
            &sealed.mount,
        ])
        .flag(&strs(&flags));
    nothing_leaks_while_it_runs(&stage, &held, &needles, &volumes);
    let members = Members {
        stage: &stage,
        config: &config,
        image: &image,
    };
    a_secret_that_does_not_open_stops_its_container_alone(&members, &init_data, &sealed);
    stage.settled(&before).unwrap();
    let clear = Pod::new("clear", &config, &empty, &["/bin/true"])
        .from_image(&image)
        .with_init_data(&init_data)
        .flag(&strs(&flags));
    a_volume_without_a_key_is_refused(&stage, &clear, volumes);
    one_changed_byte_is_refused(&stage, &pod, &init_data);

    // And the first pod still runs: a refusal spoils nothing.
    let good = pod.with_init_data(&init_data);
    let again = stage.run(&good).unwrap();
    assert_eq!(again.stdout, format!("{MARKER}\n"), "{}", again.report());
    later_pods_had_the_layers_from_the_nodes_mirror(&stage, &image);

    // What was reported is what `cloister measure` predicts of these files and this command line.
    only_what_is_predicted_is_released(&stage, &init_data);
    let predicted = stage.run(&good).unwrap();
    assert_eq!(
        predicted.stdout,
        format!("{MARKER}\n"),
        "{}",
        with_cause(&stage, &predicted.report())
    );
    a_field_that_says_something_else_stops_the_guest(&stage, &image, &init_data);
}

/// Each is encrypted with a key of its own.
fn of_six_layers() -> Recipe {
    let mut recipe = Recipe::busybox(MARKER).unwrap();
    for number in recipe.layers.len()..LAYERS {
        let path = format!("layer-{number}");
        let file = Entry::File(path, 0o644, number.to_string().into_bytes());
        recipe.layers.push(vec![file]);
    }
    recipe
}

/// Attestations in the broker's record.
fn attestations(stage: &Stage) -> usize {
    let entries = ["record", "export", "--kind", "attest"];
    let entries = stage.broker().unwrap().owner(&entries).unwrap();
    entries.stdout.lines().count()
}

/// What was said, and the broker's explanation of its ticket, where it has one.
fn with_cause(stage: &Stage, report: &str) -> String {
    let ticket = report
        .split_once("(ticket ")
        .and_then(|(_, rest)| rest.split_once(')'));
    let cause = ticket.map(|(ticket, _)| stage.broker().unwrap().explain(ticket).unwrap());
    format!("{report}\n{}", cause.unwrap_or_default())
}

/// Whose driver gives it in the clear.
fn a_volume_without_a_key_is_refused(stage: &Stage, pod: &Pod<'_>, volumes: Volumes) {
    volumes.are_what_the_guest_left();
    let _clear = volumes.without_a_key();
    let error = stage.refuse(pod, "failed-precondition", REFUSAL).unwrap();
    assert!(
        error.contains("/fast") && error.contains("encryptionKey"),
        "{error}"
    );
}

/// One byte of init-data changed: the host learns a code and a ticket, the owner the cause.
fn one_changed_byte_is_refused(stage: &Stage, pod: &Pod<'_>, init_data: &InitData) {
    let broker = stage.broker().unwrap();
    let changed = init_data.with_one_byte_changed();
    assert_eq!(changed.toml.len(), init_data.toml.len());
    let line = stage
        .refuse(
            &pod.clone().with_init_data(&changed),
            "broker-denied",
            REFUSAL,
        )
        .unwrap();
    assert!(
        !line.contains(&changed.digest()),
        "the cause crossed the host: {line}"
    );
    let (_, ticket) = line.split_once("(ticket ").unwrap();
    let (ticket, _) = ticket.split_once(')').unwrap();
    let explained = broker.explain(ticket).unwrap();
    for part in [&init_data.digest(), &changed.digest()] {
        assert!(
            explained.contains(part),
            "{part} is missing in:\n{explained}"
        );
    }
}

/// A TD's registers, its log and what the guest recorded in them pass the same way.
#[test]
fn the_same_image_runs_in_a_simulated_td() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::simulated().unwrap();
    let key = stage.key("image.key").unwrap();
    let image = stage
        .push_encrypted(&Recipe::busybox(MARKER).unwrap(), "td", &key, KEY_ID)
        .unwrap();
    let broker = stage.broker().unwrap();
    broker.put(KEY_ID, &key).unwrap();
    let init_data = stage.init_data();
    let policy = EVENTS_OF
        .replace("KIND", "sim-tdx")
        .replace("MEASURED", "true");
    let policy = policy.replace("INIT_DATA", &init_data.digest());
    let policy = stage.state.file("td.rego", policy).unwrap();
    broker.release_policy(&policy).unwrap();
    let settings = Settings {
        tee: "sim-tdx",
        ..stage.settings()
    };
    let config = settings.write(&stage.state, "td.toml").unwrap();
    let empty = stage.empty();
    let pod = Pod::new("td", &config, &empty, &["/bin/cat", "/marker"])
        .from_image(&image)
        .with_init_data(&init_data)
        .flag(&["--rm"]);
    let run = stage.run(&pod).unwrap();
    assert_eq!(
        run.stdout,
        format!("{MARKER}\n"),
        "{}\n{}",
        run.report(),
        stage.log_tail()
    );
}

/// Releases to a kind by its name, to what was measured, and to a guest that has recorded its init-data and its
/// policy before it attested.
const EVENTS_OF: &str = r#"package policy
default allow := false
evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
said := evidence["KIND"]
recorded contains event.details.data.operation if {
	some event in said.uefi_event_logs
	event.digest_matches_event
	event.details.data.domain == "cloister"
}
reasons contains {
	"claim": "what the policy of this test asks for",
	"expected": `MEASURED`,
	"found": sprintf("measurement %v, init-data %v, recorded %v", [said.measurement, evidence.init_data, recorded]),
	"fix": "launch what was predicted",
}
allow if {
	MEASURED
	startswith(evidence.init_data, "INIT_DATA")
	recorded == {"InitData", "Policy"}
}
"#;

/// What the shim's log says of the last launch.
fn measured_command_line(stage: &Stage) -> String {
    let log = stage.containerd.log();
    let (_, line) = log.rsplit_once("command_line=\"").unwrap();
    line.split_once('"').unwrap().0.to_owned()
}

fn only_what_is_predicted_is_released(stage: &Stage, init_data: &InitData) {
    let line = measured_command_line(stage);
    let firmware = stage.dev_tee.as_ref().unwrap().join("firmware.fd");
    let mut measure = Command::new(product::bin("cloister").unwrap());
    measure
        .args([
            "measure",
            "--format",
            "launch",
            "--append",
            &line,
            "--firmware",
        ])
        .arg(firmware)
        .arg("--image")
        .arg(product::guest_dir());
    let predicted = within(REFUSAL, &mut measure).unwrap().ok().unwrap().stdout;
    let predicted: serde_json::Value = serde_json::from_str(&predicted).unwrap();
    let measurement = &predicted[0]["measurement"];
    let policy = EVENTS_OF
        .replace("KIND", "sim-snp")
        .replace("MEASURED", &format!("said.measurement == {measurement}"))
        .replace("INIT_DATA", &init_data.digest());
    let policy = stage.state.file("measured.rego", policy).unwrap();
    stage.broker().unwrap().release_policy(&policy).unwrap();
}

/// The field of the report is the authority: where it says nothing of the document, no workload is started.
fn a_field_that_says_something_else_stops_the_guest(
    stage: &Stage,
    image: &str,
    init_data: &InitData,
) {
    let dir = stage.state.path().join("dev-tee");
    let dir = dev_tee::with(&dir, "fault = \"none\"", "fault = \"host-data\"").unwrap();
    let settings = Settings {
        dev_tee: Some(dir),
        ..stage.settings()
    };
    let config = settings.write(&stage.state, "fault.toml").unwrap();
    let empty = stage.empty();
    let pod = Pod::new("fault", &config, &empty, &["/bin/cat", "/marker"])
        .from_image(image)
        .with_init_data(init_data)
        .flag(&["--rm"]);
    let line = stage.refuse(&pod, "init-data-invalid", REFUSAL).unwrap();
    assert!(line.contains("the launch bound none"), "{line}");
}

/// Three pods pulled it. Only the one that came first needed the registry; a second, where the first was gone before
/// its offer had arrived.
fn later_pods_had_the_layers_from_the_nodes_mirror(stage: &Stage, image: &str) {
    let manifest = stage.registry.manifest(image).unwrap();
    let log = stage.registry.log();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), LAYERS);
    for layer in layers {
        let kind = layer["mediaType"].as_str().unwrap();
        assert!(kind.ends_with("+encrypted"), "{kind}");
        let digest = layer["digest"].as_str().unwrap();
        let request = format!("\"GET /v2/secret/blobs/{digest}");
        let pulls = log.matches(&request).count();
        assert!((1..=2).contains(&pulls), "{pulls} of {digest} in:\n{log}");
    }
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The container can read what it came with, and the host cannot, while it runs.
fn nothing_leaks_while_it_runs(
    stage: &Stage,
    held: &Pod<'_>,
    needles: &[&[u8]],
    volumes: &Volumes,
) {
    let before = attestations(stage);
    let started = stage.run(held).unwrap();
    let report = started.report();
    assert_eq!(started.code, 0, "{report}\n{}", stage.log_tail());
    let words = ["/bin/cat", "/marker"];
    let exec = ["task", "exec", "--exec-id", "e", held.id];
    let read = stage.containerd.ctr(&[&exec[..], &words].concat()).unwrap();
    assert_eq!(read.stdout, format!("{MARKER}\n"), "{}", read.report());
    assert_eq!(stage.search_host(needles).unwrap(), Vec::<PathBuf>::new());
    // What is measured are words that the kernel was really given.
    let words = ["/bin/cat", "/proc/cmdline"];
    let exec = ["task", "exec", "--exec-id", "c", held.id];
    let given = stage.containerd.ctr(&[&exec[..], &words].concat()).unwrap();
    let given: Vec<_> = given.stdout.split_whitespace().collect();
    let measured = measured_command_line(stage);
    assert!(measured.split(' ').all(|word| given.contains(&word)));
    secrets_are_opened_and_the_policy_says_who_reads_which(stage, held.id);
    a_lent_secret_goes_when_it_is_revoked(stage, held.id);
    // Six layers, three secrets and the key that verifies them, each lease renewed: one proof.
    assert_eq!(attestations(stage) - before, 1);
    volumes.are_noise_on_the_host(stage, held.id);
    stage.containerd.remove(held.id);
}
