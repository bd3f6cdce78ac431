//! Which verifier judges a kind of evidence, with whose roots.
//!
//! The verifiers are pure; here they get what an operator configured. A development root answers for
//! simulated kinds only, the vendors' roots for hardware only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use evidence::{Device, Tee};
use serde_json::Value;
use verifier::{
    Bindings, Claims, Failure, device, sample,
    snp::{self, CrlRule, SnpFailure},
};

use crate::{config::Attestation, session::seconds};

/// Bytes of a file with development roots.
const ROOT_BYTES: u64 = 64 * 1024;

/// The verifiers that are turned on.
pub(crate) struct Verifiers {
    kinds: BTreeSet<Tee>,
    devices: BTreeSet<Device>,
    snp: Option<Snp>,
    simulated_snp: Option<Snp>,
}

struct Snp {
    roots: snp::Roots,
    rules: snp::Rules,
}

impl Verifiers {
    /// Reads the roots of the kinds that are accepted.
    pub(crate) fn read(config: &Attestation) -> Result<Self, RootError> {
        let accepts = |kind| config.accept.contains(&kind);
        let amd = accepts(Tee::Snp).then(snp::Roots::amd).transpose()?;
        let development = match &config.development.snp_root {
            Some(path) if accepts(Tee::SimSnp) => Some(snp::Roots::development(&read(path)?)?),
            Some(_) | None => None,
        };
        let with = |crl: CrlRule| {
            move |roots| Snp {
                roots,
                rules: snp::Rules {
                    crl,
                    version_2: None,
                },
            }
        };
        Ok(Self {
            kinds: config.accept.clone(),
            devices: config.accept_devices.clone(),
            snp: amd.map(with(CrlRule::Required)),
            simulated_snp: development.map(with(CrlRule::MayBeAbsent)),
        })
    }

    /// The kind of a name, where it is accepted.
    pub(crate) fn accept(&self, name: &str) -> Result<Tee, Failure> {
        verifier::accept(name, &self.kinds)
    }

    /// The devices in a request, where all are accepted.
    pub(crate) fn devices(&self, text: &str) -> Result<BTreeMap<Device, Value>, Failure> {
        device::accept(text, &self.devices)
    }

    /// Verifies evidence of an accepted kind.
    pub(crate) async fn verify(
        &self,
        kind: Tee,
        evidence: &Value,
        bindings: &Bindings,
        now: SystemTime,
    ) -> Result<Claims, NotVerified> {
        match (kind, &self.snp, &self.simulated_snp) {
            (Tee::Sample, _, _) => Ok(sample::verify(evidence, bindings)?),
            (Tee::Snp, Some(amd), _) => amd.verify(evidence, bindings, now),
            (Tee::SimSnp, _, Some(development)) => development.verify(evidence, bindings, now),
            (Tee::Snp | Tee::SimSnp | Tee::Tdx | Tee::SimTdx, _, _) => {
                Err(Failure::NotAccepted { kind }.into())
            }
        }
    }
}

impl Snp {
    fn verify(
        &self,
        evidence: &Value,
        bindings: &Bindings,
        now: SystemTime,
    ) -> Result<Claims, NotVerified> {
        let evidence = snp::parse(&self.roots, evidence)?;
        let collateral = snp::Collateral::default();
        let now = seconds(now);
        Ok(snp::verify(
            &evidence,
            &self.roots,
            collateral,
            &self.rules,
            bindings,
            now,
        )?)
    }
}

fn read(path: &Path) -> Result<String, RootError> {
    let failed = |source| RootError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.len() > ROOT_BYTES {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    fs::read_to_string(path).map_err(failed)
}

/// Why there are no claims.
#[derive(Debug)]
pub(crate) enum NotVerified {
    /// The evidence is at fault.
    Failed(Failure),
}

impl From<Failure> for NotVerified {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A root that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The file cannot be read.
    #[error("read the development root {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not the certificates of a root.
    #[error("the root of SEV-SNP: {0}")]
    Snp(#[from] SnpFailure),
}
