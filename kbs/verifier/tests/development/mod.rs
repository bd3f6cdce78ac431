//! A simulated SEV-SNP platform for the tests, under one development root per build directory.

use std::{fs, path::Path, process, sync::LazyLock};

use evidence::{
    init_data::{Algorithm, InitDataDigest},
    sim::snp::{Chip, DevelopmentRoot, Validity},
    snp::{Generation, Product, Report, SnpEvidence},
};
use verifier::{
    Bindings, Claims, Failure,
    snp::{self, Collateral, Crl, Roots, Rules, Vek},
};

pub(crate) const NOW: u64 = 1_790_000_000;
pub(crate) const VALIDITY: Validity = Validity {
    from: 1_700_000_000,
    until: 2_000_000_000,
};

/// Making a root takes seconds, so the build directory keeps it.
pub(crate) static ROOT: LazyLock<DevelopmentRoot> = LazyLock::new(|| {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sim-snp-root.pem");
    if let Ok(text) = fs::read_to_string(&kept) {
        return DevelopmentRoot::from_pem(&text).unwrap();
    }
    let root = DevelopmentRoot::generate(VALIDITY).unwrap();
    let new = kept.with_extension(process::id().to_string());
    fs::write(&new, root.to_pem().unwrap().as_bytes()).unwrap();
    fs::rename(&new, &kept).unwrap();
    root
});

pub(crate) static ROOTS: LazyLock<Roots> =
    LazyLock::new(|| Roots::development(&ROOT.certificates_pem().unwrap()).unwrap());

/// Everything that one verification depends on; valid until a test changes something.
pub(crate) struct Case {
    pub(crate) chip: Chip,
    pub(crate) report: Report,
    pub(crate) rules: Rules,
    pub(crate) bindings: Bindings,
    pub(crate) crls: Vec<Crl>,
    pub(crate) now: u64,
}

impl Case {
    pub(crate) fn new(version: u32, generation: Generation) -> Self {
        let init_data: InitDataDigest = Algorithm::Sha256.digest(b"init-data");
        let report = report(version, generation, &init_data);
        let crl = ROOT.crl(0, VALIDITY, &[99]).unwrap();
        Self {
            chip: Chip::of(&report, generation, VALIDITY),
            report,
            rules: Rules::default(),
            bindings: Bindings {
                report_data: [7; 48],
                init_data: Some(init_data),
            },
            crls: vec![Crl::prepare(&ROOTS, generation.product(), &crl).unwrap()],
            now: NOW,
        }
    }

    pub(crate) fn evidence(&self) -> SnpEvidence {
        let key = ROOT.chip(&self.chip).unwrap();
        key.evidence(self.report.clone()).unwrap()
    }

    pub(crate) fn verify(&self) -> Result<Claims, Failure> {
        let sent = serde_json::to_value(self.evidence()).unwrap();
        self.judge(&snp::parse(&ROOTS, &sent)?, None)
    }

    pub(crate) fn judge(
        &self,
        evidence: &SnpEvidence,
        vek: Option<&Vek>,
    ) -> Result<Claims, Failure> {
        let collateral = Collateral {
            vek,
            crls: &self.crls,
        };
        snp::verify(
            evidence,
            &ROOTS,
            collateral,
            &self.rules,
            &self.bindings,
            self.now,
        )
    }
}

/// Every generation with the versions of report that name it.
pub(crate) fn platforms() -> impl Iterator<Item = (u32, Generation)> {
    let of = |version| Generation::ALL.map(|generation| (version, generation));
    [3, 4, 5].into_iter().flat_map(of)
}

#[allow(dead_code, reason = "not every test that shares this file asks for it")]
pub(crate) fn crl(authority: usize, product: Product, serials: &[u64], validity: Validity) -> Crl {
    let der = ROOT.crl(authority, validity, serials).unwrap();
    Crl::prepare(&ROOTS, product, &der).unwrap()
}

fn report(version: u32, generation: Generation, init_data: &InitDataDigest) -> Report {
    let mut report_data = [0; 64];
    report_data[..48].fill(7);
    Report {
        guest_svn: 4,
        family_id: [1; 16],
        image_id: [2; 16],
        report_data,
        measurement: [3; 48],
        host_data: init_data.as_bytes().try_into().unwrap(),
        id_key_digest: [4; 48],
        author_key_digest: [5; 48],
        ..Report::simulated(version, generation)
    }
}
