//! The phases of a start, as the shim writes them to its log.
//!
//! One line for each container: `phases sandbox=<pod> container=<id> vmm=120 kernel=900 ...`, in
//! milliseconds. The log outlives the pod, which its state directory does not.

use anyhow::{Context, Result, ensure};

/// The phases, in the order in which a start goes through them.
pub const PHASES: [&str; 7] = [
    "vmm", "kernel", "agent", "attest", "pull", "create", "start",
];

/// Milliseconds of each phase that took place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// `(phase, milliseconds)` in the order of [`PHASES`].
    pub phases: Vec<(&'static str, u64)>,
}

impl Timeline {
    /// The last start of `container` in a log.
    ///
    /// # Errors
    /// When the log has no such line, or the line no phase.
    pub fn in_log(log: &str, container: &str) -> Result<Self> {
        let wanted = format!("container={container}");
        let line = log
            .lines()
            .rev()
            .filter_map(|line| line.split_once("phases sandbox="))
            .map(|(_, line)| line)
            .find(|line| words(line).any(|word| word == wanted))
            .with_context(|| format!("no phases of {container} in the log"))?;
        let of = |phase: &str| {
            words(line).find_map(|word| word.strip_prefix(phase)?.strip_prefix('=')?.parse().ok())
        };
        let phases: Vec<_> = PHASES.iter().filter_map(|p| Some((*p, of(p)?))).collect();
        ensure!(!phases.is_empty(), "no phase in `{line}`");
        Ok(Self { phases })
    }

    /// Sum of the phases that follow one another: `attest` runs beside the others, within `pull`.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.phases
            .iter()
            .filter(|(phase, _)| *phase != "attest")
            .map(|(_, ms)| ms)
            .sum()
    }

    /// Milliseconds of one phase.
    #[must_use]
    pub fn of(&self, phase: &str) -> Option<u64> {
        self.phases
            .iter()
            .find(|(name, _)| *name == phase)
            .map(|(_, ms)| *ms)
    }
}

/// Words of a line that may itself be quoted in another log's line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', '"', '\\']).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_start_of_the_container_counts() -> Result<()> {
        let log = "INFO phases sandbox=p container=a vmm=1 create=2\n\
                   level=info msg=\"phases sandbox=p container=a vmm=7 attest=5 start=9\"\n\
                   INFO phases sandbox=p container=ab vmm=3\n";
        let timeline = Timeline::in_log(log, "a")?;
        assert_eq!(timeline.phases, [("vmm", 7), ("attest", 5), ("start", 9)]);
        assert_eq!(timeline.total(), 16);
        assert!(Timeline::in_log(log, "b").is_err());
        Ok(())
    }
}
