//! What is predicted of one launch, whichever TEE it is of.

use serde_json::Value;

use super::{output, references::References, tdx};

/// What the hardware will report.
pub(super) enum Prediction {
    Snp(output::Predicted),
    Tdx(tdx::Predicted),
}

impl Prediction {
    /// For people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Snp(predicted) => predicted.text(),
            Self::Tdx(predicted) => predicted.text(),
        }
    }

    /// Each value by what it is of, shape by shape.
    pub(super) fn measurements(&self) -> Vec<(String, String)> {
        match self {
            Self::Snp(predicted) => predicted.measurements(),
            Self::Tdx(predicted) => predicted.measurements(),
        }
    }

    /// Each shape with all that its launch needs.
    pub(super) fn shapes(&self) -> Vec<Value> {
        match self {
            Self::Snp(predicted) => predicted.shapes(),
            Self::Tdx(predicted) => predicted.shapes(),
        }
    }

    /// Adds what a broker is told to expect.
    pub(super) fn refer(&self, all: &mut References) {
        match self {
            Self::Snp(predicted) => predicted.refer(all),
            Self::Tdx(predicted) => predicted.refer(all),
        }
    }

    /// Tells what a document for a broker has not.
    pub(super) fn warn(&self) -> anyhow::Result<()> {
        match self {
            Self::Snp(predicted) => predicted.warn(),
            Self::Tdx(predicted) => predicted.warn(),
        }
    }

    /// What the values say of what is booted; a TD's firmware measures that.
    pub(super) fn booted(&self) -> Option<output::Booted> {
        match self {
            Self::Snp(predicted) => Some(predicted.booted),
            Self::Tdx(_) => None,
        }
    }
}
