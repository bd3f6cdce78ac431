//! `make demo`: an encrypted image runs attested in a VM, through containerd, and one changed byte
//! of init-data is refused.
//!
//! Every part is the real one: containerd, a registry and a key broker on loopback, the shim, QEMU
//! and the guest. Each step says what it did; each claim is checked, and the first that does not hold
//! ends the demo with a non-zero code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use support::image::Recipe;
use support::init_data::InitData;
use support::pod::Pod;
use support::run::Finished;
use support::stage::{KEY_ID, Stage};
use support::timeline::{self, Timeline};

/// What only the image holds: the container prints it, and no file on the host may have it.
const MARKER: &str = "plaintext-of-the-encrypted-image";

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo stops here: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let mut steps = Steps::new();
    println!("Cloister: an encrypted image runs attested in a VM, through containerd\n");

    let stage = Stage::simulated()?;
    steps.done(
        "containerd, a registry and a key broker run on loopback",
        &[
            &format!("registry   https://{}", stage.registry.address()),
            &format!("broker     {}", stage.broker()?.url()),
        ],
    );

    let (image, key) = encrypt(&stage, &mut steps)?;
    let init_data = stage.init_data();
    let broker = stage.broker()?;
    broker.put(KEY_ID, &key)?;
    broker.release_only_to_kind("sim-snp", &init_data.digest())?;
    steps.done(
        "the broker has the key, under a policy",
        &[
            "releases   to a guest that was launched with this init-data, and to no other",
            "evidence   SEV-SNP's formats, signed by this machine's development root (sim-snp)",
            &format!("init-data  sha256:{}", init_data.digest()),
        ],
    );

    let timeline = run_and_search(&stage, &mut steps, &image, &key, &init_data)?;
    refuse(&stage, &mut steps, &image, &init_data)?;

    for (phase, ms) in &timeline.phases {
        println!("FIGURE start.{phase} {ms} ms -");
    }
    println!("FIGURE start.total {} ms -", timeline.total());
    println!(
        "\nAll of it held. {:.1} s in all.",
        steps.since.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Makes key and image; answers the image's reference and the key's file.
fn encrypt(stage: &Stage, steps: &mut Steps) -> Result<(String, PathBuf)> {
    let key = stage.key("image.key")?;
    let image = stage.push_encrypted(&Recipe::busybox(MARKER)?, "demo", &key, KEY_ID)?;
    check_encrypted(stage, &image)?;
    std::fs::remove_dir_all(stage.state.path().join("layout-demo"))?;
    steps.done(
        "an image was encrypted with a fresh key and pushed",
        &[
            &format!("image      {image}"),
            &format!("key        kbs:///{KEY_ID}, 32 bytes"),
        ],
    );
    Ok((image, key))
}

/// The pod runs, and the host knows nothing of what is in it.
fn run_and_search(
    stage: &Stage,
    steps: &mut Steps,
    image: &str,
    key: &Path,
    init_data: &InitData,
) -> Result<Timeline> {
    let key_bytes = std::fs::read(key)?;
    // From here on only the broker has the key, as it would be with an owner far away.
    std::fs::remove_file(key)?;
    let before = stage.containerd.leftovers();
    let run = start(stage, "demo", image, init_data)?;
    ensure!(
        run.code == 0,
        "the container did not run: {}\n{}",
        run.report(),
        stage.log_tail()
    );
    ensure!(
        run.stdout.contains(MARKER),
        "the container said something else: {}",
        run.report()
    );
    let words = format!("│ {}", run.stdout.trim_end().replace('\n', "\n     │ "));
    steps.done(
        "ctr run --runtime io.containerd.cloister.v2: the container's own words",
        &[&words],
    );

    let hits = stage.search_host(&[MARKER.as_bytes(), &key_bytes])?;
    ensure!(hits.is_empty(), "plaintext or key on the host: {hits:?}");
    stage.settled(&before)?;
    steps.done(
        "the host never had the plaintext nor the key, and the pod left nothing behind",
        &["searched   containerd's stores, the shim's state, the registry, all logs"],
    );

    let timeline = stage.timeline("demo")?;
    print_timeline(&timeline, &run);
    Ok(timeline)
}

/// The counter-example: one byte of init-data changed.
fn refuse(stage: &Stage, steps: &mut Steps, image: &str, init_data: &InitData) -> Result<()> {
    let changed = init_data.with_one_byte_changed();
    let refused = start(stage, "changed", image, &changed)?;
    let explained = check_refusal(stage, &refused)?;
    steps.done(
        "the same pod with one byte of its init-data changed is refused",
        &[
            &format!("init-data  sha256:{}", changed.digest()),
            &format!("ctr says   {}", last_line(&refused.stderr)),
        ],
    );
    ensure!(
        explained.contains(&init_data.digest()) && explained.contains(&changed.digest()),
        "the explanation lacks what was expected or what was found:\n{explained}"
    );
    let explained = explained.trim_end().replace('\n', "\n     ");
    steps.done(
        "kbs explain TICKET gives the owner the cause",
        &[&explained],
    );
    Ok(())
}

/// Numbers the steps and says how long each took.
struct Steps {
    number: usize,
    since: Instant,
    last: Instant,
}

impl Steps {
    fn new() -> Self {
        Self {
            number: 0,
            since: Instant::now(),
            last: Instant::now(),
        }
    }

    fn done(&mut self, what: &str, details: &[&str]) {
        self.number += 1;
        println!(
            "{:2}.  {what}  ({:.1} s)",
            self.number,
            self.last.elapsed().as_secs_f64()
        );
        for detail in details {
            println!("     {detail}");
        }
        println!();
        self.last = Instant::now();
    }
}

fn start(stage: &Stage, id: &str, image: &str, init_data: &InitData) -> Result<Finished> {
    let config = stage.settings().write(&stage.state, "configuration.toml")?;
    let empty = stage.empty();
    let pod = Pod::new(id, &config, &empty, &["/bin/cat", "/marker"])
        .from_image(image)
        .with_init_data(init_data)
        .flag(&["--rm"]);
    let run = stage.run(&pod)?;
    stage.containerd.remove(id);
    Ok(run)
}

fn check_encrypted(stage: &Stage, image: &str) -> Result<()> {
    let manifest = stage.registry.manifest(image)?;
    let layers = manifest["layers"]
        .as_array()
        .context("a manifest without layers")?;
    ensure!(!layers.is_empty(), "a manifest without layers");
    for layer in layers {
        let media_type = layer["mediaType"].as_str().unwrap_or_default();
        ensure!(
            media_type.ends_with("+encrypted"),
            "a layer is not encrypted: {layer}"
        );
    }
    Ok(())
}

/// The refusal at `ctr`: an error with a stable code and a ticket, and no cause. Answers what the
/// owner reads for the ticket.
fn check_refusal(stage: &Stage, refused: &Finished) -> Result<String> {
    ensure!(
        refused.code != 0,
        "the changed pod was not refused: {}",
        refused.report()
    );
    ensure!(
        !refused.stdout.contains(MARKER),
        "the refused pod printed the plaintext"
    );
    let said = &refused.stderr;
    ensure!(
        said.contains("[broker-denied]"),
        "no stable code: {}",
        refused.report()
    );
    let ticket = said
        .rsplit_once("(ticket ")
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(ticket, _)| ticket)
        .with_context(|| format!("no ticket: {}", refused.report()))?;
    stage.broker()?.explain(ticket)
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

fn print_timeline(timeline: &Timeline, run: &Finished) {
    println!("     the start, in milliseconds");
    let longest = timeline
        .phases
        .iter()
        .map(|(_, ms)| *ms)
        .max()
        .unwrap_or(1)
        .max(1);
    for phase in timeline::PHASES {
        let Some(ms) = timeline.of(phase) else {
            continue;
        };
        let width = usize::try_from(ms * 40 / longest).unwrap_or(40);
        println!("     {phase:>7} {ms:>6}  {}", "█".repeat(width.max(1)));
    }
    println!(
        "     {:>7} {:>6}  (attest runs beside pull)",
        "total",
        timeline.total()
    );
    println!(
        "     ctr run, from its start to its end: {} ms\n",
        run.took.as_millis()
    );
}
