//! A simulated TDX platform for the tests.

use std::sync::LazyLock;

use evidence::{
    eventlog::EventKind,
    init_data::{Algorithm, InitDataDigest},
    sim::tdx::{DevelopmentRoot, Enclave, LogBuilder, Offer, Platform, QuotingEnclave, Validity},
    tdx::{Body, Header, TdxEvidence},
};
use serde::Deserialize;
use verifier::{
    Bindings, Claims, Failure,
    tdx::{self, Collateral, Parts, Roots, TdxFailure},
};

pub(crate) const NOW: u64 = 1_790_000_000;
pub(crate) const VALIDITY: Validity = Validity {
    from: 1_700_000_000,
    until: 2_000_000_000,
};

pub(crate) static ROOT: LazyLock<DevelopmentRoot> =
    LazyLock::new(|| DevelopmentRoot::generate(VALIDITY).unwrap());

pub(crate) static ROOTS: LazyLock<Roots> =
    LazyLock::new(|| Roots::development(&ROOT.certificates_pem().unwrap()).unwrap());

/// Everything that one verification depends on; valid until a test changes something.
pub(crate) struct Case {
    pub(crate) platform: Platform,
    pub(crate) enclave: Enclave,
    pub(crate) header: Header,
    pub(crate) body: Body,
    pub(crate) log: Option<LogBuilder>,
    pub(crate) offer: Offer,
    /// After the offer was signed.
    pub(crate) tamper: fn(&mut Parts),
    pub(crate) bindings: Bindings,
    pub(crate) now: u64,
}

impl Case {
    pub(crate) fn new() -> Self {
        let init_data: InitDataDigest = Algorithm::Sha384.digest(b"init-data");
        let log = log();
        Self {
            platform: Platform::simulated(VALIDITY),
            enclave: Enclave::default(),
            header: Header::simulated(4),
            body: body(&init_data, log.registers()),
            log: Some(log),
            offer: Offer::simulated(VALIDITY),
            tamper: |_| (),
            bindings: Bindings {
                report_data: [7; 48],
                init_data: Some(init_data),
            },
            now: NOW,
        }
    }

    pub(crate) fn quoting(&self) -> QuotingEnclave {
        let key = ROOT.platform(&self.platform).unwrap();
        key.enclave(&self.enclave).unwrap()
    }

    pub(crate) fn evidence(&self) -> TdxEvidence {
        let log = self.log.as_ref().map(LogBuilder::finish);
        self.quoting()
            .evidence(self.header, self.body.clone(), log)
            .unwrap()
    }

    pub(crate) fn collateral(&self) -> Result<Collateral, TdxFailure> {
        let mut parts = parts(&ROOT, &self.offer);
        (self.tamper)(&mut parts);
        Collateral::prepare(&ROOTS, parts)
    }

    #[allow(dead_code, reason = "not every test that shares this file asks for it")]
    pub(crate) fn verify(&self) -> Result<Claims, Failure> {
        let sent = serde_json::to_value(self.evidence()).unwrap();
        let collateral = self.collateral()?;
        self.judge(&tdx::parse(&ROOTS, &sent)?, &collateral)
    }

    pub(crate) fn judge(
        &self,
        evidence: &TdxEvidence,
        collateral: &Collateral,
    ) -> Result<Claims, Failure> {
        tdx::verify(evidence, &ROOTS, collateral, &self.bindings, self.now)
    }
}

/// The simulator's collateral, over its JSON.
pub(crate) fn parts(root: &DevelopmentRoot, offer: &Offer) -> Parts {
    let sent = serde_json::to_value(root.collateral(offer).unwrap()).unwrap();
    Parts::deserialize(&sent).unwrap()
}

pub(crate) fn log() -> LogBuilder {
    LogBuilder::new()
        .event(1, EventKind::Separator, &[0; 4])
        .measured(
            2,
            EventKind::EfiPlatformFirmwareBlob2,
            b"\x07kernel\0",
            &[9; 48],
        )
        .event(3, EventKind::EventTag, b"\0\0\0\0\x05\0\0\0quiet")
        .event(2, EventKind::NoAction, b"nobody answers for this")
        .aael("coco.com", "pull", r#"{"image":"busybox"}"#)
}

fn body(init_data: &InitDataDigest, rtmr: [[u8; 48]; 4]) -> Body {
    let mut body = Body::simulated(rtmr);
    body.report_data[..48].fill(7);
    body.mr_config_id = init_data.as_bytes().try_into().unwrap();
    body
}
