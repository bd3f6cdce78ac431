//! The phases of a start, as the shim writes them down.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// The phases, in the order in which a start goes through them.
pub const PHASES: [&str; 7] = [
    "vmm", "kernel", "agent", "attest", "pull", "create", "start",
];

/// Milliseconds of each phase that took place.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// `(phase, milliseconds)` in the order of [`PHASES`].
    pub phases: Vec<(&'static str, u64)>,
}

impl Timeline {
    /// Reads the shim's file: a JSON object of phase and milliseconds, or a list of such pairs.
    ///
    /// # Errors
    /// When it is missing, is no JSON, or names no phase.
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("timeline {}: {text}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let of = |phase: &str| -> Option<u64> {
            match &value["phases"] {
                Value::Array(list) => list
                    .iter()
                    .find(|entry| entry["phase"] == phase)
                    .and_then(|entry| entry["ms"].as_u64()),
                Value::Object(map) => map.get(phase).and_then(Value::as_u64),
                _ => value.get(phase).and_then(Value::as_u64),
            }
        };
        let phases: Vec<_> = PHASES.iter().filter_map(|p| Some((*p, of(p)?))).collect();
        anyhow::ensure!(!phases.is_empty(), "no phase in it");
        Ok(Self { phases })
    }

    /// Sum of the phases.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.phases.iter().map(|(_, ms)| ms).sum()
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
