//! A simulated TDX platform whose guests attest, and the collateral that a broker is given for it.

use std::sync::LazyLock;

use evidence::{
    eventlog::EventKind,
    init_data::InitData,
    sim::tdx::{DevelopmentRoot, Enclave, LogBuilder, Offer, Platform, Validity},
    tdx::{Body, Header},
};
use kbs_protocol::{AttestRequest, report_data};
use serde_json::{Value, json};

use super::VALIDITY;

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
        ..Offer::simulated(VALIDITY)
    };
    json!({"crls": [], "tdx": [set(&Offer::simulated(VALIDITY)), set(&old)]})
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
            platform: Platform::simulated(VALIDITY),
            enclave: Enclave::default(),
            header: Header::simulated(4),
            body: Body::simulated(log.registers()),
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
