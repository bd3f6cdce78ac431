//! A broker's cache, a service that it asks, and simulated machines.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use evidence::{
    sim::snp::Validity,
    snp::{Generation, Product, SnpEvidence},
};
use kbs::collateral::{Collateral, CollateralError, Config, SnpSet};
use tempfile::TempDir;
use verifier::{
    Failure,
    snp::{self, CrlRule, Rules},
};

use crate::{
    development::{Case, ROOT, ROOTS},
    service::Service,
};

/// Rules of an operator who does not insist on lists.
pub(crate) const LENIENT: Rules = Rules {
    crl: CrlRule::MayBeAbsent,
    version_2: Some(Generation::Milan),
};

pub(crate) const DAY: i64 = 24 * 3600;

/// A broker's cache, and the service that it asks.
pub(crate) struct Lab {
    pub(crate) service: Service,
    pub(crate) dir: TempDir,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let service = Service::start().await;
        let dir = tempfile::tempdir().unwrap();
        Self { service, dir }
    }

    pub(crate) fn config(&self) -> Config {
        self.service.config(self.dir.path())
    }

    pub(crate) fn open(&self) -> Collateral {
        Collateral::open(&self.config())
            .unwrap()
            .with_snp_roots(&ROOTS)
    }

    /// The service knows the machine's chip, and gives a list that revokes nobody.
    pub(crate) fn knows(&self, machine: &Machine) {
        self.service
            .give(&machine.path(), machine.certificate.clone());
        let list = list(around(0, 30), &[]);
        self.service.give(&machine.list_path(), list);
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("cache")) else {
            return Vec::new();
        };
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }
}

/// A simulated machine whose host brings no certificate.
pub(crate) struct Machine {
    pub(crate) case: Case,
    pub(crate) evidence: SnpEvidence,
    pub(crate) certificate: Vec<u8>,
}

impl Machine {
    pub(crate) fn new(generation: Generation, chip: u8) -> Self {
        let mut case = Case::new(3, generation);
        case.report.chip_id[..generation.chip_id_bytes()].fill(chip);
        case.chip.chip_id = case.report.chip_id;
        let key = ROOT.chip(&case.chip).unwrap();
        let mut report = case.report.clone();
        key.sign(&mut report).unwrap();
        Self {
            evidence: SnpEvidence::new(&report.to_bytes().unwrap(), Vec::new()).unwrap(),
            certificate: key.certificate().to_vec(),
            case,
        }
    }

    pub(crate) fn product(&self) -> Product {
        self.case.chip.generation.product()
    }

    pub(crate) fn path(&self) -> String {
        let generation = self.case.chip.generation;
        let chip = &self.case.report.chip_id[..generation.chip_id_bytes()];
        let fmc = if generation.has_fmc() {
            "fmcSPL=01&"
        } else {
            ""
        };
        format!(
            "/vcek/v1/{}/{}?{fmc}blSPL=09&teeSPL=02&snpSPL=23&ucodeSPL=213",
            self.product(),
            hex::encode(chip)
        )
    }

    pub(crate) fn list_path(&self) -> String {
        list_path(self.product())
    }

    pub(crate) async fn asks(&self, collateral: &Collateral) -> Result<SnpSet, CollateralError> {
        self.asks_at(collateral, SystemTime::now()).await
    }

    pub(crate) async fn asks_at(
        &self,
        collateral: &Collateral,
        now: SystemTime,
    ) -> Result<SnpSet, CollateralError> {
        let rules = Rules::default();
        collateral.snp(&ROOTS, &self.evidence, &rules, now).await
    }

    pub(crate) fn verify(&self, set: &SnpSet) -> Result<verifier::Claims, Failure> {
        let collateral = snp::Collateral {
            vek: Some(&set.vek),
            crls: &set.crls,
        };
        let (rules, bindings) = (Rules::default(), &self.case.bindings);
        let now = u64::try_from(now()).unwrap();
        snp::verify(&self.evidence, &ROOTS, collateral, &rules, bindings, now)
    }
}

pub(crate) fn list_path(product: Product) -> String {
    format!("/vcek/v1/{product}/crl")
}

pub(crate) fn now() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    i64::try_from(now).unwrap()
}

pub(crate) fn later(days: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(days * 24 * 3600)
}

/// When the tests began: what is dated by it is dated alike.
static START: LazyLock<i64> = LazyLock::new(now);

/// From ten days before the start and `shift` days until `days` after the start.
pub(crate) fn around(shift: i64, days: i64) -> Validity {
    Validity {
        from: *START + (shift - 10) * DAY,
        until: *START + days * DAY,
    }
}

pub(crate) fn list(validity: Validity, serials: &[u64]) -> Vec<u8> {
    ROOT.crl(0, validity, serials).unwrap()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(bytes)
}
