//! A simulated TDX platform for the tests.

use std::sync::LazyLock;

use evidence::{
    eventlog::EventKind,
    init_data::{Algorithm, InitDataDigest},
    sim::tdx::{
        Ca, DevelopmentRoot, Enclave, Level, LogBuilder, Offer, Platform, QeLevel, QuotingEnclave,
        Status, Validity,
    },
    tdx::{Attributes, Body, Header, INTEL_QE, TdxEvidence},
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
pub(crate) const FMSPC: [u8; 6] = [0xd0, 0xc0, 0x6f, 0, 0, 0];
const SEPTVE_DISABLE: u64 = 1 << 28;

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
            platform: platform(),
            enclave: Enclave::default(),
            header: Header {
                version: 4,
                reserved: [0; 4],
                vendor_id: INTEL_QE,
                user_data: [8; 20],
            },
            body: body(&init_data, log.registers()),
            log: Some(log),
            offer: offer(),
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

pub(crate) fn platform() -> Platform {
    Platform {
        ca: Ca::Platform,
        ppid: [0xaa; 16],
        fmspc: FMSPC,
        cpu_svn: [5; 16],
        pce_svn: 13,
        sgx_type: 1,
        instance: Some([0xbb; 16]),
        serial: 40,
        validity: VALIDITY,
    }
}

pub(crate) fn offer() -> Offer {
    let level = |svn, pce_svn, status, advisories: &[&str]| Level {
        sgx: [svn; 16],
        pce_svn,
        tdx: [svn; 16],
        date: 1_710_288_000 + i64::from(svn) * 86_400,
        status,
        advisories: advisories.iter().map(|&id| id.to_owned()).collect(),
    };
    let qe = |svn, status| QeLevel {
        svn,
        date: 1_710_288_000,
        status,
    };
    Offer {
        ca: Ca::Platform,
        fmspc: FMSPC,
        tcb_info: VALIDITY,
        qe_identity: VALIDITY,
        pck_crl: VALIDITY,
        root_ca_crl: VALIDITY,
        levels: vec![
            level(5, 13, Status::UpToDate, &[]),
            level(4, 13, Status::OutOfDate, &["INTEL-SA-00837"]),
            level(3, 5, Status::Revoked, &["INTEL-SA-00615"]),
        ],
        module_levels: vec![
            qe(5, Status::UpToDate),
            qe(4, Status::OutOfDate),
            qe(3, Status::Revoked),
        ],
        enclave: Enclave::default(),
        qe_levels: vec![
            qe(8, Status::UpToDate),
            qe(6, Status::OutOfDate),
            qe(4, Status::Revoked),
        ],
        revoked_platforms: vec![99],
        revoked_authorities: vec![99],
    }
}

fn body(init_data: &InitDataDigest, rtmr: [[u8; 48]; 4]) -> Body {
    let mut report_data = [0; 64];
    report_data[..48].fill(7);
    let mut tcb_svn = [5; 16];
    // The module's version: the identity TDX_01.
    tcb_svn[1] = 1;
    Body {
        tcb_svn,
        mr_seam: [1; 48],
        mrsigner_seam: [0; 48],
        seam_attributes: [0; 8],
        td_attributes: Attributes(SEPTVE_DISABLE),
        xfam: [0xe7, 2, 6, 0, 0, 0, 0, 0],
        mr_td: [3; 48],
        mr_config_id: init_data.as_bytes().try_into().unwrap(),
        mr_owner: [4; 48],
        mr_owner_config: [5; 48],
        rtmr,
        report_data,
        tdx15: None,
    }
}
