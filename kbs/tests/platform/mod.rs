//! Simulated platforms whose guests attest: here SEV-SNP, under a development root that the build
//! directory keeps: making one takes seconds.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod td;

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::LazyLock,
};

use evidence::{
    init_data::InitData,
    sim::snp::{Chip, DevelopmentRoot, Validity},
    snp::{Generation, Report},
};
use kbs_protocol::{AttestRequest, report_data};

use crate::deployment::{Deployment, Guest};

pub(crate) const VALIDITY: Validity = Validity {
    from: 1_700_000_000,
    until: 2_400_000_000,
};

pub(crate) static ROOT: LazyLock<DevelopmentRoot> = LazyLock::new(|| root("sim-snp-root.pem"));

/// A root that no broker knows.
pub(crate) static OTHER_ROOT: LazyLock<DevelopmentRoot> =
    LazyLock::new(|| root("other-snp-root.pem"));

fn root(name: &str) -> DevelopmentRoot {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if let Ok(text) = fs::read_to_string(&kept) {
        return DevelopmentRoot::from_pem(&text).unwrap();
    }
    let root = DevelopmentRoot::generate(VALIDITY).unwrap();
    let new = kept.with_extension(process::id().to_string());
    fs::write(&new, root.to_pem().unwrap().as_bytes()).unwrap();
    fs::rename(&new, &kept).unwrap();
    root
}

/// A broker that accepts simulated SEV-SNP and TDX, and whatever else is listed.
pub(crate) fn broker(also: &[&str]) -> Deployment {
    // Once: another broker of this process may just read them.
    static KEPT: LazyLock<[PathBuf; 3]> = LazyLock::new(|| {
        let kept = |name: &str, text: &str| {
            let name = format!("{}-{name}", process::id());
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            fs::write(&path, text).unwrap();
            path
        };
        [
            kept("snp.pem", &ROOT.certificates_pem().unwrap()),
            kept("tdx.pem", &td::TD_ROOT.certificates_pem().unwrap()),
            kept("collateral.json", &td::collateral().to_string()),
        ]
    });
    let [snp, tdx, collateral] = &*KEPT;
    let kinds = also.iter().chain(&["sim-snp", "sim-tdx"]);
    let kinds: Vec<_> = kinds.map(|kind| format!("{kind:?}")).collect();
    Deployment::start_with(&[], |config| {
        let table = format!(
            "accept = [{}]\naccept_devices = [\"sampledevice\"]\n\
             development = {{ snp_root = {snp:?}, tdx_root = {tdx:?}, collateral = {collateral:?} }}",
            kinds.join(", "),
        );
        config.replace("accept = []", &table)
    })
}

/// One launch on one chip.
pub(crate) struct Platform {
    pub(crate) report: Report,
    pub(crate) chip: Chip,
    /// What the launch binds; the digest of the init-data that is sent where absent.
    pub(crate) host_data: Option<[u8; 32]>,
}

impl Platform {
    pub(crate) fn new() -> Self {
        let generation = Generation::Genoa;
        let report = Report {
            measurement: [0xab; 48],
            ..Report::simulated(3, generation)
        };
        let chip = Chip::of(&report, generation, VALIDITY);
        Self {
            report,
            chip,
            host_data: None,
        }
    }

    /// A guest of this launch that has a challenge and an honest answer to it.
    pub(crate) async fn guest(&self, deployment: &Deployment, init_data: Option<&str>) -> Guest {
        let mut guest = Guest::asked(deployment, "sim-snp", init_data).await;
        self.prove(&mut guest.request);
        guest
    }

    /// Makes evidence over the request as it is.
    pub(crate) fn prove(&self, request: &mut AttestRequest) {
        let mut report = self.report.clone();
        let runtime = &request.runtime_data;
        let additional = &request.tee_evidence.additional_evidence;
        let digest = report_data(&runtime.nonce, &runtime.tee_pubkey, additional);
        report.report_data[..digest.len()].copy_from_slice(&digest);
        if let Some(bound) = self.host_data {
            report.host_data = bound;
        } else if let Some(sent) = &request.init_data {
            let digest = InitData::parse(sent.body.as_bytes()).unwrap().digest();
            report.host_data.copy_from_slice(&digest.as_bytes()[..32]);
        }
        let key = ROOT.chip(&self.chip).unwrap();
        let evidence = key.evidence(report).unwrap();
        request.tee_evidence.primary_evidence = serde_json::to_value(evidence).unwrap();
    }
}
