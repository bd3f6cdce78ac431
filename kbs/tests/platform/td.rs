//! A simulated TDX platform whose guests attest, and the collateral that a broker is given for it.

use std::sync::LazyLock;

use evidence::{
    eventlog::EventKind,
    init_data::InitData,
    sim::tdx::{
        Ca, DevelopmentRoot, Enclave, Level, LogBuilder, Offer, Platform, QeLevel, Status, Validity,
    },
    tdx::{Attributes, Body, Header, INTEL_QE},
};
use kbs_protocol::{AttestRequest, report_data};
use serde_json::{Value, json};

use super::VALIDITY;

const FMSPC: [u8; 6] = [0xd0, 0xc0, 0x6f, 0, 0, 0];
/// A kind of platform whose TCB info has ended.
pub(crate) const OLD_FMSPC: [u8; 6] = [0xd0, 0xc0, 0x6f, 0, 0, 1];
/// SEPT_VE_DISABLE.
pub(crate) const ATTRIBUTES: u64 = 1 << 28;

pub(crate) static TD_ROOT: LazyLock<DevelopmentRoot> =
    LazyLock::new(|| DevelopmentRoot::generate(VALIDITY).unwrap());

/// What the development root signed beside evidence, as a broker reads it.
pub(crate) fn collateral() -> Value {
    let set = |offer: &Offer| serde_json::to_value(TD_ROOT.collateral(offer).unwrap()).unwrap();
    let old = Offer {
        fmspc: OLD_FMSPC,
        tcb_info: Validity {
            from: VALIDITY.from,
            until: 1_750_000_000,
        },
        ..offer()
    };
    json!({"crls": [], "tdx": [set(&offer()), set(&old)]})
}

/// One launch of a TD.
pub(crate) struct Td {
    pub(crate) platform: Platform,
    pub(crate) enclave: Enclave,
    pub(crate) header: Header,
    pub(crate) body: Body,
    pub(crate) log: Option<LogBuilder>,
    /// What the launch binds; the digest of the init-data that is sent where absent.
    pub(crate) config_id: Option<[u8; 48]>,
}

impl Td {
    pub(crate) fn new() -> Self {
        let log = log(b"kernel", b"quiet");
        Self {
            platform: platform(),
            enclave: Enclave::default(),
            header: Header {
                version: 4,
                reserved: [0; 4],
                vendor_id: INTEL_QE,
                user_data: [8; 20],
            },
            body: body(log.registers()),
            log: Some(log),
            config_id: None,
        }
    }

    /// Boots other things, and has both the log and the registers say so.
    pub(crate) fn boot(&mut self, kernel: &[u8], parameters: &[u8]) {
        let log = log(kernel, parameters);
        self.body.rtmr = log.registers();
        self.log = Some(log);
    }

    /// Makes evidence over the request as it is.
    pub(crate) fn prove(&self, request: &mut AttestRequest) {
        let mut body = self.body.clone();
        let runtime = &request.runtime_data;
        let additional = &request.tee_evidence.additional_evidence;
        let digest = report_data(&runtime.nonce, &runtime.tee_pubkey, additional);
        body.report_data[..digest.len()].copy_from_slice(&digest);
        if let Some(bound) = self.config_id {
            body.mr_config_id = bound;
        } else if let Some(sent) = &request.init_data {
            let digest = InitData::parse(sent.body.as_bytes()).unwrap().digest();
            let bytes = digest.as_bytes();
            body.mr_config_id[..bytes.len()].copy_from_slice(bytes);
        }
        let key = TD_ROOT.platform(&self.platform).unwrap();
        let enclave = key.enclave(&self.enclave).unwrap();
        let log = self.log.as_ref().map(LogBuilder::finish);
        let evidence = enclave.evidence(self.header, body, log).unwrap();
        request.tee_evidence.primary_evidence = serde_json::to_value(evidence).unwrap();
    }
}

fn log(kernel: &[u8], parameters: &[u8]) -> LogBuilder {
    LogBuilder::new()
        .event(1, EventKind::Separator, &[0; 4])
        .event(2, EventKind::EfiPlatformFirmwareBlob2, kernel)
        .event(3, EventKind::EventTag, parameters)
        .aael("coco.com", "pull", r#"{"image":"busybox"}"#)
}

fn platform() -> Platform {
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

fn offer() -> Offer {
    let level = |svn, pce_svn, status| Level {
        sgx: [svn; 16],
        pce_svn,
        tdx: [svn; 16],
        date: 1_710_288_000,
        status,
        advisories: Vec::new(),
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
            level(5, 13, Status::UpToDate),
            level(4, 13, Status::OutOfDate),
            level(3, 5, Status::Revoked),
        ],
        module_levels: vec![qe(5, Status::UpToDate), qe(4, Status::OutOfDate)],
        enclave: Enclave::default(),
        qe_levels: vec![qe(8, Status::UpToDate), qe(6, Status::OutOfDate)],
        revoked_platforms: vec![99],
        revoked_authorities: vec![99],
    }
}

fn body(rtmr: [[u8; 48]; 4]) -> Body {
    let mut tcb_svn = [5; 16];
    // The module's version: the identity TDX_01.
    tcb_svn[1] = 1;
    Body {
        tcb_svn,
        mr_seam: [1; 48],
        mrsigner_seam: [0; 48],
        seam_attributes: [0; 8],
        td_attributes: Attributes(ATTRIBUTES),
        xfam: [0xe7, 2, 6, 0, 0, 0, 0, 0],
        mr_td: [3; 48],
        mr_config_id: [0; 48],
        mr_owner: [4; 48],
        mr_owner_config: [5; 48],
        rtmr,
        report_data: [0; 64],
        tdx15: None,
    }
}
