//! What verifiers need beside the evidence: certificates of chips, lists of revoked certificates, TCB
//! info and QE identity. They are found here, checked, kept for as long as they hold, and renewed
//! before they end.
//!
//! ```text
//! attestation ─► memory ─► disk ─► AMD KDS / Intel PCS, or a mirror
//!                   ▲        ▲       one fetch for all who ask; a host that says 429 is left alone
//!                upkeep   bundle     (signed, for brokers that may ask nobody)
//! ```
//!
//! Each document is its vendor's by signature, so it may come from anywhere. What does not verify is
//! not kept. A guest waits for its own document only, and not for long.

mod bundle;
mod carry;
mod config;
mod development;
mod disk;
mod document;
mod error;
mod fetch;
mod flight;
mod hold;
mod keeper;
mod proof;
mod renew;
mod shelf;
mod stored;

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use evidence::{
    Tee,
    snp::{Generation, Product, SigningKey, SnpEvidence, Tcb},
};
use sha2::{Digest as _, Sha256};
use verifier::{
    snp::{self, Crl, CrlRule, SnpFailure, Vek},
    tdx,
};

pub(crate) use bundle::BUNDLE_BYTES;
pub use bundle::BundleError;
pub use carry::{Imported, Summary};
pub use config::{Config, Simulated};
pub use development::{DEVELOPMENT_BYTES, Development};
pub use document::Document;
pub use error::CollateralError;
pub(crate) use error::show;

use self::{
    development::Handed,
    keeper::Keeper,
    proof::{Ready, Trust, Want},
    shelf::Shelf,
};
use crate::session::seconds;

/// Between two rounds of upkeep.
const ROUND: Duration = Duration::from_secs(60);
/// Checked keys that guests brought.
const BROUGHT: usize = 1024;

/// All collateral of a broker.
pub struct Collateral {
    keeper: Arc<Keeper>,
    brought: Shelf<[u8; 32], Arc<Vek>>,
    handed: Option<Handed>,
}

impl std::fmt::Debug for Collateral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collateral").finish_non_exhaustive()
    }
}

/// For one SEV-SNP report.
#[derive(Debug, Clone)]
pub struct SnpSet {
    /// The key that signed it.
    pub vek: Arc<Vek>,
    /// What the product's ARK revoked; empty only where the rules allow it.
    pub crls: Arc<[Crl]>,
}

/// Something to have in the cache before a guest needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needed {
    /// The certificate of a chip, and its product's list.
    Chip {
        /// Real or simulated.
        kind: Tee,
        /// Decides the product.
        generation: Generation,
        /// As in the report.
        chip_id: Vec<u8>,
        /// As reported.
        tcb: Tcb,
    },
    /// What TDX quotes of a kind of platform are judged by.
    Platform {
        /// Real or simulated.
        kind: Tee,
        /// The platform.
        needs: tdx::Needs,
    },
}

/// A file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Which document.
    pub document: Document,
    /// From when until when it holds, in seconds since the Unix epoch; or why it cannot be used.
    pub state: Result<(i64, i64), String>,
}

impl Collateral {
    /// Everything that the configuration names. Nothing is fetched and nothing written yet.
    ///
    /// # Errors
    /// Names the address or the file that cannot be used.
    pub fn open(config: &Config) -> Result<Self, CollateralError> {
        config.check_files()?;
        Ok(Self {
            keeper: Arc::new(Keeper::open(config)?),
            brought: Shelf::new(BROUGHT),
            handed: None,
        })
    }

    /// Takes over what a development root signed.
    #[must_use]
    pub fn with_development(mut self, documents: Development) -> Self {
        self.handed = Some(Handed::new(documents));
        self
    }

    /// Makes these roots known, by which imports and upkeep verify documents of their kind. An
    /// attestation makes its own known.
    #[must_use]
    pub fn with_snp_roots(self, roots: &snp::Roots) -> Self {
        self.keeper.share_snp(roots);
        self
    }

    /// The same for TDX.
    #[must_use]
    pub fn with_tdx_roots(self, roots: &tdx::Roots) -> Self {
        self.keeper.share_tdx(roots);
        self
    }

    /// The key that signed a report, from the evidence or from AMD, and the list of what was revoked.
    ///
    /// # Errors
    /// Names the document that cannot be had, or what in the evidence leads to none.
    pub async fn snp(
        &self,
        roots: &snp::Roots,
        evidence: &SnpEvidence,
        rules: &snp::Rules,
        now: SystemTime,
    ) -> Result<SnpSet, CollateralError> {
        let now = whole(now);
        let generation = snp::generation(evidence.report(), rules)?;
        let (vek, crls) = tokio::join!(
            self.vek(roots, generation, evidence, now),
            self.crls(roots, generation.product(), now),
        );
        let vek = vek?;
        let crls = match (crls, rules.crl) {
            (Ok(crls), _) => crls,
            (Err(error), CrlRule::MayBeAbsent) => {
                tracing::debug!(%error, "judged without a list of revoked certificates");
                [].into()
            }
            (Err(error), CrlRule::Required) => return Err(error),
        };
        Ok(SnpSet { vek, crls })
    }

    async fn vek(
        &self,
        roots: &snp::Roots,
        generation: Generation,
        evidence: &SnpEvidence,
        now: i64,
    ) -> Result<Arc<Vek>, CollateralError> {
        let product = generation.product();
        let Some(certificate) = Vek::brought(roots, product, evidence)? else {
            let report = evidence.report();
            askable(report)?;
            let simulated = !roots.kind().is_hardware();
            let (chip, tcb) = (&report.chip_id, report.reported_tcb);
            let want = Want::vcek(simulated, generation, chip, tcb);
            return match self.ready(roots, want, now).await? {
                Ready::Vek(vek) => Ok(vek),
                Ready::Crls(_) | Ready::Tdx(_) => Err(SnpFailure::NoKey.into()),
            };
        };
        let mut key = Sha256::new();
        key.update(roots.digest());
        key.update(format!("{product} {:?} ", certificate.kind));
        key.update(&certificate.data);
        let key = key.finalize().into();
        if let Some(vek) = self.brought.get(&key) {
            return Ok(vek);
        }
        let vek = Arc::new(Vek::from_certificate(roots, product, certificate)?);
        self.brought.insert(key, Arc::clone(&vek));
        Ok(vek)
    }

    async fn crls(
        &self,
        roots: &snp::Roots,
        product: Product,
        now: i64,
    ) -> Result<Arc<[Crl]>, CollateralError> {
        let simulated = !roots.kind().is_hardware();
        let handed = self.handed.as_ref().filter(|_| simulated);
        if let Some(crls) = handed.and_then(|handed| handed.crls(roots, product)) {
            return crls;
        }
        let want = Want::amd_crl(simulated, product);
        match self.ready(roots, want, now).await? {
            Ready::Crls(crls) => Ok(crls),
            Ready::Vek(_) | Ready::Tdx(_) => Err(SnpFailure::CrlAbsent { product }.into()),
        }
    }

    /// What a TDX quote is judged by.
    ///
    /// # Errors
    /// Names the document that cannot be had.
    pub async fn tdx(
        &self,
        roots: &tdx::Roots,
        needs: &tdx::Needs,
        now: SystemTime,
    ) -> Result<Arc<tdx::Collateral>, CollateralError> {
        let simulated = !roots.kind().is_hardware();
        let handed = self.handed.as_ref().filter(|_| simulated);
        if let Some(found) = handed.and_then(|handed| handed.tdx(roots, needs)) {
            return found;
        }
        let want = Want::tdx(simulated, needs);
        let document = want.first().clone();
        let share = || self.keeper.share_tdx(roots);
        let (keeper, now) = (&self.keeper, whole(now));
        let kept = keeper.get(want, roots.digest(), share, now).await?;
        match &kept.ready {
            Ready::Tdx(collateral) => Ok(Arc::clone(collateral)),
            Ready::Vek(_) | Ready::Crls(_) => Err(CollateralError::Absent { document }),
        }
    }

    async fn ready(
        &self,
        roots: &snp::Roots,
        want: Want,
        now: i64,
    ) -> Result<Ready, CollateralError> {
        let share = || self.keeper.share_snp(roots);
        let kept = self.keeper.get(want, roots.digest(), share, now).await?;
        Ok(kept.ready.clone())
    }

    /// Renews, for as long as it is polled, what is kept.
    pub async fn run(self: Arc<Self>) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            self.look_after(SystemTime::now()).await;
        }
    }

    /// One round of it.
    pub async fn look_after(&self, now: SystemTime) {
        for want in self.keeper.wants().await {
            self.keeper.look_after(want, whole(now)).await;
        }
    }

    /// Has a document in the cache, and waits for it as long as that takes.
    ///
    /// # Errors
    /// Names the document that cannot be had.
    pub async fn prefetch(
        &self,
        needed: &Needed,
        now: SystemTime,
    ) -> Result<Vec<Document>, CollateralError> {
        let (kind, wants) = match needed {
            Needed::Chip {
                kind,
                generation,
                chip_id,
                tcb,
            } => {
                let simulated = !kind.is_hardware();
                let vcek = Want::vcek(simulated, *generation, chip_id, *tcb);
                let list = Want::amd_crl(simulated, generation.product());
                (kind, vec![vcek, list])
            }
            Needed::Platform { kind, needs } => (kind, vec![Want::tdx(!kind.is_hardware(), needs)]),
        };
        let trust = self.trust(*kind)?;
        let mut had = Vec::new();
        for want in wants {
            self.keeper.have(&want, trust.clone(), whole(now)).await?;
            had.extend_from_slice(want.documents());
        }
        Ok(had)
    }

    /// What is on the disk.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn list(&self) -> io::Result<Vec<Listed>> {
        let entries = self.keeper.list().await?;
        let listed = entries.into_iter().map(|entry| Listed {
            document: entry.document,
            state: entry.held.map(|held| (held.from, held.until)),
        });
        Ok(listed.collect())
    }

    fn trust(&self, kind: Tee) -> Result<Trust, CollateralError> {
        let missing = || CollateralError::Config(format!("there are no roots for `{kind}`"));
        self.keeper.trust(kind).ok_or_else(missing)
    }
}

/// That AMD's service can be asked for the key of a report.
fn askable(report: &evidence::snp::Report) -> Result<(), SnpFailure> {
    if report.key_info.signature_masked() {
        return Err(SnpFailure::Unsigned);
    }
    match report.key_info.signing_key() {
        SigningKey::None => Err(SnpFailure::Unsigned),
        // Loaded keys are their cloud's; only the host has the certificate.
        SigningKey::Vlek => Err(SnpFailure::NoKey),
        SigningKey::Vcek if report.chip_id == [0; 64] => Err(SnpFailure::ChipMasked),
        SigningKey::Vcek => Ok(()),
    }
}

fn whole(now: SystemTime) -> i64 {
    i64::try_from(seconds(now)).unwrap_or(i64::MAX)
}
