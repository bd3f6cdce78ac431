//! Faults of a TD, of its platform and of its event log.

use base64::{Engine, prelude::BASE64_STANDARD};
use evidence::tdx::Attributes;
use kbs_protocol::AttestRequest;

use super::{Case, Fault, case};
use crate::platform::td::{ATTRIBUTES, OLD_FMSPC, Td};

fn td(name: &'static str, fault: fn(&mut Td), claim: &'static str, told: &'static str) -> Case {
    case(name, Fault::Td(fault), claim, told)
}

pub(crate) fn cases() -> Vec<Case> {
    [measured(), log(), attributes(), platform(), message()]
        .into_iter()
        .flatten()
        .collect()
}

#[rustfmt::skip]
fn measured() -> Vec<Case> {
    vec![
        td("another TDVF", |t| t.body.mr_td = [0x21; 48], "sim-tdx.quote.body.mr_td", "2121"),
        td("another kernel of a TD", |t| t.boot(b"other", b"quiet"), "sim-tdx.quote.body.rtmr_1", ""),
        td("another command line of a TD", |t| t.boot(b"kernel", b"debug"), "sim-tdx.quote.body.rtmr_2", ""),
        td("other features of the processor", |t| t.body.xfam = [0xe7, 0, 0, 0, 0, 0, 0, 0], "sim-tdx.quote.body.xfam", "e700"),
        td("another init-data bound by a TD", |t| t.config_id = Some([9; 48]), "init_data", "0909"),
        td("no init-data bound by a TD", |t| t.config_id = Some([0; 48]), "init_data", "0000"),
    ]
}

#[rustfmt::skip]
fn log() -> Vec<Case> {
    fn register(t: &mut Td, at: usize) { t.body.rtmr[at] = [0x31; 48]; }
    vec![
        td("RTMR0 without its events", |t| register(t, 0), "rtmr_0", "3131"),
        td("RTMR1 without its events", |t| register(t, 1), "rtmr_1", "3131"),
        td("RTMR2 without its events", |t| register(t, 2), "rtmr_2", "3131"),
        td("RTMR3 without its events", |t| register(t, 3), "rtmr_3", "3131"),
    ]
}

#[rustfmt::skip]
fn attributes() -> Vec<Case> {
    const CLAIM: &str = "quote.body.td_attributes";
    fn with(t: &mut Td, bits: u64) { t.body.td_attributes = Attributes(ATTRIBUTES ^ bits); }
    vec![
        td("a TD under debug", |t| with(t, 1), "sim-tdx.td_attributes.debug", "true"),
        td("a TD that misses the loss of a page", |t| with(t, ATTRIBUTES), CLAIM, ""),
        td("a TD that can be migrated", |t| with(t, 1 << 29), CLAIM, ""),
        td("another vendor's quoting enclave", |t| t.header.vendor_id = [1; 16], "quote.header.vendor_id", "0101"),
    ]
}

#[rustfmt::skip]
fn platform() -> Vec<Case> {
    vec![
        td("firmware out of date", |t| t.platform.cpu_svn = [4; 16], "sim-tdx.tcb_status", "OutOfDate"),
        td("firmware revoked", |t| (t.platform.cpu_svn, t.platform.pce_svn) = ([3; 16], 5), "tcb_status", "Revoked"),
        td("firmware older than any", |t| t.platform.cpu_svn = [1; 16], "tcb_status", ""),
        td("a TDX module out of date", |t| t.body.tcb_svn[0] = 4, "sim-tdx.tcb_status", "OutOfDate"),
        td("a quoting enclave out of date", |t| t.enclave.isv_svn = 6, "sim-tdx.tcb_status", "OutOfDate"),
        td("a quoting enclave of somebody else", |t| t.enclave.mr_signer = [9; 32], "qe_mrsigner", "0909"),
        td("a TDX module of somebody else", |t| t.body.mrsigner_seam = [9; 48], "mrsigner_seam", "0909"),
        td("an expired platform", |t| t.platform.validity.until = 1_750_000_000, "validity", "2025-06-15"),
        td("a platform of the future", |t| t.platform.validity.from = 2_300_000_000, "validity", "2042"),
        td("a revoked platform", |t| t.platform.serial = 99, "crl", "revoked"),
        td("a kind of platform whose TCB info ended", |t| t.platform.fmspc = OLD_FMSPC, "validity", "2025-06-15"),
        td("a kind of platform that nobody knows", |t| t.platform.fmspc = [1; 6], "tcb_info", "010101"),
    ]
}

#[rustfmt::skip]
fn message() -> Vec<Case> {
    fn byte(request: &mut AttestRequest, at: usize) {
        let quote = &mut request.tee_evidence.primary_evidence["quote"];
        let mut bytes = BASE64_STANDARD.decode(quote.as_str().unwrap()).unwrap();
        bytes[at] ^= 1;
        *quote = BASE64_STANDARD.encode(bytes).into();
    }
    fn changed(
        name: &'static str,
        fault: fn(&mut AttestRequest),
        claim: &'static str,
        told: &'static str,
    ) -> Case {
        case(name, Fault::TdMessage(fault), claim, told)
    }
    vec![
        // Offsets in a quote of version 4: 48 bytes of header, 584 of body, then the signature.
        changed("MRTD changed on its way", |r| byte(r, 48 + 136), "signature", ""),
        changed("a quote's signature changed", |r| byte(r, 48 + 584 + 4), "signature", ""),
        changed("a quote of version 3", |r| byte(r, 0), "quote", "version"),
        changed("a log that is no log", |r| r.tee_evidence.primary_evidence["cc_eventlog"] = BASE64_STANDARD.encode([1; 99]).into(), "cc_eventlog", ""),
        changed("an unknown member beside a quote", |r| r.tee_evidence.primary_evidence["more"] = 1.into(), "primary_evidence", "more"),
    ]
}
