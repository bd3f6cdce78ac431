//! Which verifier judges a kind of evidence, with whose roots and by which collateral.
//!
//! The verifiers are pure; here they get what an operator configured and what the vendors published. A
//! development root answers for simulated kinds only, the vendors' roots for hardware only.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use evidence::{Device, Tee, snp::Generation};
use serde_json::value::RawValue;
use verifier::{
    Bindings, Claims, Explanation, Failure, device, sample,
    snp::{self, CrlRule, SnpFailure},
    tdx::{self, TdxFailure},
};

use crate::{
    collateral::{Collateral, CollateralError, DEVELOPMENT_BYTES, Development},
    config::{Config, OldGeneration},
    file,
    session::seconds,
};

/// The verifiers that are turned on.
pub(crate) struct Verifiers {
    kinds: BTreeSet<Tee>,
    devices: BTreeSet<Device>,
    snp: Option<Snp>,
    simulated_snp: Option<Snp>,
    tdx: Option<tdx::Roots>,
    simulated_tdx: Option<tdx::Roots>,
    pub(crate) collateral: Arc<Collateral>,
}

struct Snp {
    roots: snp::Roots,
    rules: snp::Rules,
}

impl Verifiers {
    /// Reads the roots of the kinds that are accepted, and opens the cache of collateral.
    pub(crate) fn open(config: &Config) -> Result<Self, VerifierError> {
        let accepted = &config.attestation.accept;
        let accepts = |kind| accepted.contains(&kind);
        let development = &config.attestation.development;
        let root = |path: &Option<PathBuf>, kind| {
            let path = path.as_ref().filter(|_| accepts(kind));
            path.map(|path| text(path)).transpose()
        };
        let snp_root = root(&development.snp_root, Tee::SimSnp)?;
        let tdx_root = root(&development.tdx_root, Tee::SimTdx)?;
        let snp = accepts(Tee::Snp).then(snp::Roots::amd).transpose()?;
        let simulated = snp_root
            .map(|pem| snp::Roots::development(&pem))
            .transpose()?;
        let mut collateral = Collateral::open(&config.collateral)?;
        if let Some(path) = &development.collateral {
            let documents =
                Development::parse(&file::read(path, DEVELOPMENT_BYTES).map_err(unread(path))?)?;
            collateral = collateral.with_development(documents);
        }
        let tdx = accepts(Tee::Tdx).then(tdx::Roots::intel).transpose()?;
        let simulated_tdx = tdx_root
            .map(|pem| tdx::Roots::development(&pem))
            .transpose()?;
        let version_2 = config.attestation.snp_version_2.map(|old| match old {
            OldGeneration::Milan => Generation::Milan,
            OldGeneration::Genoa => Generation::Genoa,
        });
        let with = |crl| {
            move |roots| Snp {
                roots,
                rules: snp::Rules { crl, version_2 },
            }
        };
        for roots in snp.iter().chain(&simulated) {
            collateral = collateral.with_snp_roots(roots);
        }
        for roots in tdx.iter().chain(&simulated_tdx) {
            collateral = collateral.with_tdx_roots(roots);
        }
        Ok(Self {
            kinds: accepted.clone(),
            devices: config.attestation.accept_devices.clone(),
            snp: snp.map(with(CrlRule::Required)),
            // A development root may have revoked nothing, and have no list that says so.
            simulated_snp: simulated.map(with(CrlRule::MayBeAbsent)),
            tdx,
            simulated_tdx,
            collateral: Arc::new(collateral),
        })
    }

    /// The kind of a name, where it is accepted.
    pub(crate) fn accept(&self, name: &str) -> Result<Tee, Failure> {
        verifier::accept(name, &self.kinds)
    }

    /// What comes beside the evidence in a request, where all its devices are accepted.
    pub(crate) fn additional<'a>(&self, text: &'a str) -> Result<device::Additional<'a>, Failure> {
        device::accept(text, &self.devices)
    }

    /// Verifies evidence of an accepted kind.
    pub(crate) async fn verify(
        &self,
        kind: Tee,
        evidence: &RawValue,
        bindings: &Bindings,
        now: SystemTime,
    ) -> Result<Claims, NotVerified> {
        let off = || Failure::NotAccepted { kind };
        match kind {
            Tee::Sample => Ok(sample::verify(evidence, bindings)?),
            Tee::Snp | Tee::SimSnp => {
                let snp = match kind {
                    Tee::Snp => &self.snp,
                    _ => &self.simulated_snp,
                };
                let snp = snp.as_ref().ok_or_else(off)?;
                self.snp(snp, evidence, bindings, now).await
            }
            Tee::Tdx | Tee::SimTdx => {
                let roots = match kind {
                    Tee::Tdx => &self.tdx,
                    _ => &self.simulated_tdx,
                };
                let roots = roots.as_ref().ok_or_else(off)?;
                self.tdx(roots, evidence, bindings, now).await
            }
        }
    }

    async fn snp(
        &self,
        snp: &Snp,
        evidence: &RawValue,
        bindings: &Bindings,
        now: SystemTime,
    ) -> Result<Claims, NotVerified> {
        let (roots, rules) = (&snp.roots, &snp.rules);
        let evidence = snp::parse(roots, evidence)?;
        let had = self.collateral.snp(roots, &evidence, rules, now).await?;
        let collateral = snp::Collateral {
            vek: Some(&had.vek),
            crls: &had.crls,
        };
        let now = seconds(now);
        Ok(snp::verify(
            &evidence, roots, collateral, rules, bindings, now,
        )?)
    }

    async fn tdx(
        &self,
        roots: &tdx::Roots,
        evidence: &RawValue,
        bindings: &Bindings,
        now: SystemTime,
    ) -> Result<Claims, NotVerified> {
        let evidence = tdx::parse(roots, evidence)?;
        let needs = tdx::needs(&evidence).map_err(Failure::from)?;
        let collateral = self.collateral.tdx(roots, &needs, now).await?;
        Ok(tdx::verify(
            &evidence,
            roots,
            &collateral,
            bindings,
            seconds(now),
        )?)
    }
}

fn text(path: &Path) -> Result<String, VerifierError> {
    let text = file::read_text(path, file::SMALL).map_err(unread(path))?;
    Ok(text.as_str().to_owned())
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> VerifierError {
    move |source| VerifierError::Read {
        path: path.to_owned(),
        source,
    }
}

/// Why there are no claims.
#[derive(Debug)]
pub(crate) enum NotVerified {
    /// The evidence is at fault.
    Failed(Failure),
    /// What the vendor says of its hardware is not there.
    Collateral(CollateralError),
}

impl NotVerified {
    pub(crate) fn explain(&self) -> Explanation {
        match self {
            Self::Failed(failure) => failure.explain(),
            Self::Collateral(error) => error.explain(),
        }
    }
}

impl From<Failure> for NotVerified {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<CollateralError> for NotVerified {
    fn from(error: CollateralError) -> Self {
        Self::Collateral(error)
    }
}

/// A verifier that cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// A file of a development root.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not the certificates of a root.
    #[error("the root of SEV-SNP: {0}")]
    Snp(#[from] SnpFailure),
    /// Not the certificate of a root.
    #[error("the root of TDX: {0}")]
    Tdx(#[from] TdxFailure),
    /// The collateral.
    #[error(transparent)]
    Collateral(#[from] CollateralError),
}
