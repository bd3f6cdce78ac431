//! How far the creation of a container is: for whoever looks, and for the error when its time is over.
//!
//! ```text
//! prepare ─► boot ─► pull: resolve ─► keys ─► layers ─► publish ─► attest ─► make
//!                    └─ all there is to know where the guest's owner does not show more
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use agent_api::pull::PullProgress;
use agent_api::pull::pull_progress::Phase;
use agent_api::{ErrorCode, GuestError, limit};
use indicatif::HumanBytes;
use serde::{Deserialize, Serialize};

/// How long a pull must have run before its speed says anything.
const SPEED_AFTER: Duration = Duration::from_millis(500);
/// The most of an image's name in a sentence, in characters.
const NAME_SHOWN: usize = 256;

/// What is done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The shim reads what it was asked for.
    #[default]
    Prepare,
    /// The VM boots.
    Boot,
    /// The guest pulls the image, and tells no more of it.
    Pull,
    /// The guest fetches policy, manifest and signatures.
    Resolve,
    /// The guest fetches the keys of encrypted layers.
    Keys,
    /// The guest fetches and unpacks layers.
    Layers,
    /// The guest merges the layers into one tree.
    Publish,
    /// The guest has the image, and waits for its attestation.
    Attest,
    /// The guest makes the container.
    Make,
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its bytes in the registry.
    pub size: u64,
    /// How many of them the guest has.
    pub fetched: u64,
    /// Whether it is unpacked.
    pub unpacked: bool,
}

/// How far a creation is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// What is done now.
    pub step: Step,
    /// The image that the guest pulls, as the host named it.
    pub image: Option<String>,
    /// Its layers, lowest first, once they are known.
    pub layers: Vec<Layer>,
    /// When the first of their bytes were seen, and how many.
    #[serde(skip)]
    first: Option<(Instant, u64)>,
}

/// How far the creation of one of a sandbox's containers is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Creation {
    /// The container.
    pub container: String,
    /// How far it is.
    pub progress: Progress,
}

impl fmt::Display for Creation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            self.container,
            self.progress.told(Instant::now())
        )
    }
}

/// Whose time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// That of who asked for the container.
    Caller,
    /// That of the configuration.
    Configuration,
}

impl Progress {
    /// Goes on to a step of the shim's own.
    pub fn enter(&mut self, step: Step) {
        self.step = step;
    }

    /// The guest was asked for a container from this image.
    pub fn pull(&mut self, image: &str) {
        self.step = Step::Pull;
        self.image = Some(image.to_owned());
    }

    /// Takes what the guest tells of a pull. The guest is not trusted to be short or to be right.
    pub fn take(&mut self, told: &PullProgress, now: Instant) {
        self.step = match told.phase.enum_value_or_default() {
            Phase::UNKNOWN => Step::Pull,
            Phase::RESOLVE => Step::Resolve,
            Phase::KEYS => Step::Keys,
            Phase::LAYERS => Step::Layers,
            Phase::PUBLISH => Step::Publish,
            Phase::ATTEST => Step::Attest,
        };
        let layers = told.layers.iter().take(limit::MAX_PULL_LAYERS);
        let layers = layers.map(|layer| Layer {
            size: layer.size,
            fetched: layer.fetched.min(layer.size),
            unpacked: layer.unpacked,
        });
        self.layers = layers.collect();
        if !self.layers.is_empty() {
            self.first.get_or_insert((now, self.fetched()));
        }
    }

    /// Bytes of all layers that the guest has.
    #[must_use]
    pub fn fetched(&self) -> u64 {
        sum(self.layers.iter().map(|layer| layer.fetched))
    }

    /// Bytes of all layers.
    #[must_use]
    pub fn size(&self) -> u64 {
        sum(self.layers.iter().map(|layer| layer.size))
    }

    /// Layers that are unpacked.
    #[must_use]
    pub fn unpacked(&self) -> usize {
        self.layers.iter().filter(|layer| layer.unpacked).count()
    }

    /// Bytes in a second, since the first; `None` before that can be told.
    fn speed(&self, now: Instant) -> Option<u64> {
        let (since, bytes) = self.first?;
        let took = now.saturating_duration_since(since);
        let millis = u64::try_from(took.as_millis()).ok()?;
        let came = self.fetched().saturating_sub(bytes);
        (took >= SPEED_AFTER).then(|| came.saturating_mul(1000) / millis)
    }

    /// The error of a creation whose time is over: what it did, how far that was, and what helps.
    #[must_use]
    pub fn overdue(&self, within: Duration, clock: Clock, now: Instant) -> GuestError {
        let text = format!(
            "deadline of {} s exceeded while {}; {}",
            seconds(within),
            self.told(now),
            match clock {
                Clock::Caller =>
                    "give the caller more time (the kubelet's is runtimeRequestTimeout), or the guest a nearer registry",
                Clock::Configuration =>
                    "raise create_container_timeout in [agent.kata] or the annotation \
                     io.katacontainers.config.runtime.create_container_timeout",
            }
        );
        GuestError::new(ErrorCode::DeadlineExceeded, self.step.phase(), text)
    }

    /// What is done and how far it is: the rest of a sentence.
    #[must_use]
    pub fn told(&self, now: Instant) -> String {
        let image = self.image.as_deref().unwrap_or("an image");
        let image = image_rs::shown_up_to(image, NAME_SHOWN);
        let pulling = format!("pulling {image}");
        match self.step {
            Step::Prepare => "preparing".to_owned(),
            Step::Boot => "booting the VM".to_owned(),
            Step::Make => "making the container in the guest".to_owned(),
            Step::Pull => format!(
                "{pulling}, of which the guest tells no more: its owner's policy may deny WatchPullRequest"
            ),
            Step::Resolve => format!("{pulling}: its manifest and signatures are not here yet"),
            Step::Keys => format!("{pulling}: the keys of its layers are not here yet"),
            Step::Layers => format!("{pulling}: {}", Layers(self, now)),
            Step::Publish => format!("{pulling}: its layers are here and being merged"),
            Step::Attest => format!("{pulling}: it is here, the guest's attestation is not"),
        }
    }
}

/// How far the layers are, in words.
struct Layers<'a>(&'a Progress, Instant);

impl fmt::Display for Layers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(progress, now) = self;
        let (fetched, size) = (progress.fetched(), progress.size());
        write!(
            f,
            "{} of {} layers unpacked, {} of {} fetched",
            progress.unpacked(),
            progress.layers.len(),
            HumanBytes(fetched),
            HumanBytes(size)
        )?;
        let left = size.saturating_sub(fetched);
        match progress.speed(*now) {
            _ if left == 0 => Ok(()),
            None => Ok(()),
            Some(0) => f.write_str(", and nothing more comes"),
            Some(speed) => write!(
                f,
                " at {}/s, which leaves {} s to go",
                HumanBytes(speed),
                left.div_ceil(speed)
            ),
        }
    }
}

impl Step {
    /// The phase of an error that ends it.
    fn phase(self) -> &'static str {
        match self {
            Self::Prepare | Self::Make => "create",
            Self::Boot => "vmm",
            Self::Pull
            | Self::Resolve
            | Self::Keys
            | Self::Layers
            | Self::Publish
            | Self::Attest => "pull",
        }
    }
}

fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

/// Seconds, with a tenth where they are few. What is left of a caller's time is a little less than it set.
fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..5 => format!("{:.1}", duration.as_secs_f32()),
        _ => format!("{:.0}", duration.as_secs_f32()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::pull::PullLayer;

    const MIB: u64 = 1 << 20;

    fn told(phase: Phase, layers: &[(u64, u64, bool)]) -> PullProgress {
        let layers = layers.iter().map(|&(size, fetched, unpacked)| PullLayer {
            size,
            fetched,
            unpacked,
            ..Default::default()
        });
        PullProgress {
            number: 1,
            phase: phase.into(),
            layers: layers.collect(),
            ..Default::default()
        }
    }

    fn overdue(progress: &Progress, now: Instant) -> String {
        let within = Duration::from_secs(30);
        progress.overdue(within, Clock::Caller, now).to_string()
    }

    #[test]
    fn a_deadline_says_what_was_pulled_and_how_far_and_what_helps() {
        let (began, mut progress) = (Instant::now(), Progress::default());
        progress.pull("r.example/app:1");
        progress.take(
            &told(
                Phase::LAYERS,
                &[(100 * MIB, 0, false), (200 * MIB, 0, false)],
            ),
            began,
        );
        let later = began + Duration::from_secs(20);
        progress.take(
            &told(
                Phase::LAYERS,
                &[(100 * MIB, 100 * MIB, true), (200 * MIB, 20 * MIB, false)],
            ),
            later,
        );
        assert_eq!(
            overdue(&progress, later),
            "pull: deadline of 30 s exceeded while pulling r.example/app:1: 1 of 2 layers unpacked, \
             120.00 MiB of 300.00 MiB fetched at 6.00 MiB/s, which leaves 30 s to go; give the caller more \
             time (the kubelet's is runtimeRequestTimeout), or the guest a nearer registry [deadline-exceeded]"
        );
        let within = Duration::from_millis(1500);
        let configured = progress
            .overdue(within, Clock::Configuration, later)
            .to_string();
        assert!(configured.contains("deadline of 1.5 s"), "{configured}");
        assert!(
            configured.contains("create_container_timeout"),
            "{configured}"
        );
    }

    #[test]
    fn each_step_is_told_as_what_it_is() {
        let now = Instant::now();
        let mut progress = Progress::default();
        progress.enter(Step::Boot);
        assert!(overdue(&progress, now).starts_with("vmm: "));
        progress.pull("a:1");
        assert!(overdue(&progress, now).contains("WatchPullRequest"));
        for (phase, words) in [
            (Phase::RESOLVE, "manifest"),
            (Phase::KEYS, "keys"),
            (Phase::PUBLISH, "merged"),
            (Phase::ATTEST, "attestation"),
        ] {
            progress.take(&told(phase, &[]), now);
            let text = overdue(&progress, now);
            assert!(text.starts_with("pull: ") && text.contains(words), "{text}");
        }
        progress.enter(Step::Make);
        assert!(overdue(&progress, now).contains("making the container"));
    }

    #[test]
    fn a_pull_that_stands_still_is_told_so_and_a_fresh_one_has_no_speed() {
        let (now, mut progress) = (Instant::now(), Progress::default());
        progress.take(&told(Phase::LAYERS, &[(9, 3, false)]), now);
        assert!(!overdue(&progress, now).contains("/s"));
        let later = now + Duration::from_secs(9);
        assert!(overdue(&progress, later).contains("nothing more comes"));
    }

    #[test]
    fn what_a_guest_makes_up_is_cut_and_does_not_overflow() {
        let (now, mut progress) = (Instant::now(), Progress::default());
        let layers = vec![(u64::MAX, u64::MAX, false); limit::MAX_PULL_LAYERS * 2];
        progress.take(&told(Phase::LAYERS, &layers), now);
        assert_eq!(progress.layers.len(), limit::MAX_PULL_LAYERS);
        assert_eq!(progress.size(), u64::MAX);
        progress.take(&told(Phase::LAYERS, &[(5, 9, false)]), now);
        assert_eq!(progress.fetched(), 5);
        progress.pull(&"x".repeat(100_000));
        assert!(overdue(&progress, now).len() < 1024);
    }

    #[test]
    fn it_crosses_as_json_without_the_clock() {
        let mut progress = Progress::default();
        progress.pull("a:1");
        progress.take(&told(Phase::LAYERS, &[(2, 1, false)]), Instant::now());
        let json = serde_json::to_string(&progress).unwrap();
        assert_eq!(
            json,
            r#"{"step":"layers","image":"a:1","layers":[{"size":2,"fetched":1,"unpacked":false}]}"#
        );
        let back: Progress = serde_json::from_str(&json).unwrap();
        assert_eq!((back.step, back.layers), (progress.step, progress.layers));
    }
}
