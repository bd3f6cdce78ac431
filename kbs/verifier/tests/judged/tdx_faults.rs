//! Simulated TDX evidence with one fault each: every fault is refused by its own name.

use crate::tdx_development;

use evidence::{
    eventlog::EventKind,
    init_data::Algorithm,
    sim::tdx::{Ca, LogBuilder, Validity},
    tdx::Body15,
};
use tdx_development::Case;

const BEHIND: Validity = Validity {
    from: 1_700_000_000,
    until: 1_750_000_000,
};
const AHEAD: Validity = Validity {
    from: 1_850_000_000,
    until: 1_900_000_000,
};

type Fault = (&'static str, fn(&mut Case), &'static str);

const FAULTS: &[Fault] = &[
    ("nonce", |c| c.bindings.report_data[0] ^= 1, "ReportData"),
    ("report data", |c| c.body.report_data[0] ^= 1, "ReportData"),
    ("padding", |c| c.body.report_data[63] = 1, "ReportData"),
    (
        "init-data",
        |c| c.bindings.init_data = Some(Algorithm::Sha384.digest(b"other")),
        "InitData",
    ),
    ("config id", |c| c.body.mr_config_id[47] ^= 1, "InitData"),
    (
        "no config id",
        |c| c.body.mr_config_id = [0; 48],
        "InitData",
    ),
    ("vendor", |c| c.header.vendor_id[0] ^= 1, "Vendor"),
    (
        "migratable",
        |c| c.body.td_attributes.0 |= 1 << 29,
        "can be migrated",
    ),
    ("profiled", |c| c.body.td_attributes.0 |= 1 << 4, "profiles"),
    ("pages", |c| c.body.td_attributes.0 = 0, "SEPT_VE_DISABLE"),
    (
        "reserved",
        |c| c.body.td_attributes.0 |= 1 << 40,
        "Reserved bits",
    ),
    ("service TD", |c| serve(c), "a service TD is bound"),
    ("rtmr_0", |c| c.body.rtmr[0][0] ^= 1, "rtmr_0"),
    ("rtmr_1", |c| c.body.rtmr[1][0] ^= 1, "rtmr_1"),
    ("rtmr_2", |c| c.body.rtmr[2] = [0; 48], "rtmr_2"),
    ("rtmr_3", |c| c.body.rtmr[3][47] ^= 1, "rtmr_3"),
    (
        "a lost event",
        |c| c.log = Some(LogBuilder::new()),
        "rtmr_0",
    ),
    ("an event in MRTD", |c| extend(c, 0), "Index"),
    ("an event nowhere", |c| extend(c, 5), "Index"),
    (
        "processor",
        |c| c.platform.cpu_svn[0] = 2,
        "NoLevel { part: \"platform's processor\" }",
    ),
    (
        "provisioning enclave",
        |c| c.platform.pce_svn = 4,
        "NoLevel { part: \"platform's provisioning enclave\" }",
    ),
    (
        "revoked level",
        |c| c.platform.cpu_svn[0] = 3,
        "TcbRevoked { part: \"platform\" }",
    ),
    (
        "old module",
        |c| c.body.tcb_svn[0] = 2,
        "NoLevel { part: \"TDX module\" }",
    ),
    (
        "revoked module",
        |c| c.body.tcb_svn[0] = 3,
        "TcbRevoked { part: \"TDX module\" }",
    ),
    (
        "unknown module",
        |c| c.body.tcb_svn[1] = 7,
        "NoLevel { part: \"TDX module\" }",
    ),
    (
        "module's signer",
        |c| c.body.mrsigner_seam[0] = 1,
        "mrsigner_seam",
    ),
    (
        "module's attributes",
        |c| c.body.seam_attributes[0] = 1,
        "seam_attributes",
    ),
    (
        "enclave's signer",
        |c| c.enclave.mr_signer[0] ^= 1,
        "qe_mrsigner",
    ),
    (
        "enclave's product",
        |c| c.enclave.isv_prod_id = 1,
        "qe_isvprodid",
    ),
    (
        "enclave's debug",
        |c| c.enclave.attributes[0] |= 2,
        "qe_attributes",
    ),
    (
        "enclave's selection",
        |c| c.enclave.misc_select[0] = 1,
        "qe_miscselect",
    ),
    (
        "old enclave",
        |c| c.enclave.isv_svn = 3,
        "NoLevel { part: \"quoting enclave\" }",
    ),
    (
        "revoked enclave",
        |c| c.enclave.isv_svn = 5,
        "TcbRevoked { part: \"quoting enclave\" }",
    ),
    ("FMSPC", |c| c.platform.fmspc[0] ^= 1, "Fmspc"),
    ("collateral's FMSPC", |c| c.offer.fmspc[5] = 1, "Fmspc"),
    ("issuer", |c| c.platform.ca = Ca::Processor, "OtherCa"),
    ("clock behind", |c| c.now = 1_600_000_000, "NotYetValid"),
    ("clock ahead", |c| c.now = 2_100_000_000, "Expired"),
    (
        "TCB info",
        |c| c.offer.tcb_info = BEHIND,
        "Expired { document: TcbInfo",
    ),
    (
        "next TCB info",
        |c| c.offer.tcb_info = AHEAD,
        "NotYetValid { document: TcbInfo",
    ),
    (
        "QE identity",
        |c| c.offer.qe_identity = BEHIND,
        "Expired { document: QeIdentity",
    ),
    (
        "next QE identity",
        |c| c.offer.qe_identity = AHEAD,
        "NotYetValid { document: QeIdentity",
    ),
    (
        "PCK CRL",
        |c| c.offer.pck_crl = BEHIND,
        "Expired { document: PckCrl",
    ),
    (
        "next PCK CRL",
        |c| c.offer.pck_crl = AHEAD,
        "NotYetValid { document: PckCrl",
    ),
    (
        "root CRL",
        |c| c.offer.root_ca_crl = BEHIND,
        "Expired { document: RootCrl",
    ),
    (
        "platform's certificate",
        |c| c.platform.validity = BEHIND,
        "Expired { document: Pck,",
    ),
    (
        "platform's next certificate",
        |c| c.platform.validity = AHEAD,
        "NotYetValid { document: Pck,",
    ),
    (
        "revoked platform",
        |c| c.platform.serial = 99,
        "Revoked { document: Pck,",
    ),
    (
        "revoked CA",
        |c| c.offer.revoked_authorities.push(2),
        "Revoked { document: PckCa,",
    ),
    (
        "revoked signer",
        |c| c.offer.revoked_authorities.push(4),
        "Revoked { document: TcbSigner,",
    ),
    (
        "revoked root",
        |c| c.offer.revoked_authorities.push(1),
        "Revoked { document: Root,",
    ),
    (
        "changed TCB info",
        |c| c.tamper = |parts| parts.tcb_info = parts.tcb_info.replace("Revoked", "UpToDate"),
        "Chain { document: TcbInfo, issuer: TcbSigner }",
    ),
    (
        "changed QE identity",
        |c| c.tamper = |parts| parts.qe_identity.push(' '),
        "Chain { document: QeIdentity, issuer: QeSigner }",
    ),
    (
        "swapped signatures",
        |c| {
            c.tamper = |parts| parts.tcb_info_signature = parts.qe_identity_signature.clone();
        },
        "Chain { document: TcbInfo, issuer: TcbSigner }",
    ),
    (
        "changed list",
        |c| c.tamper = |parts| *parts.pck_crl.last_mut().unwrap() ^= 1,
        "Chain { document: PckCrl, issuer: PckCa }",
    ),
    (
        "swapped lists",
        |c| c.tamper = |parts| parts.root_ca_crl = parts.pck_crl.clone(),
        "Chain { document: RootCrl, issuer: Root }",
    ),
    (
        "no list",
        |c| c.tamper = |parts| parts.pck_crl.clear(),
        "Form { document: PckCrl",
    ),
    (
        "half a chain",
        |c| {
            c.tamper = |parts| {
                parts.tcb_info_issuer_chain.truncate(500);
            };
        },
        "Form { document: TcbSigner",
    ),
    (
        "another signer",
        |c| c.tamper = |parts| parts.tcb_info_issuer_chain = parts.pck_crl_issuer_chain.clone(),
        "Chain { document: TcbInfo, issuer: TcbSigner }",
    ),
];

fn serve(case: &mut Case) {
    case.header.version = 5;
    case.body.tdx15 = Some(Body15 {
        tee_tcb_svn2: case.body.tcb_svn,
        mr_servicetd: [1; 48],
        ex: None,
    });
}

fn extend(case: &mut Case, index: u32) {
    let log = case.log.take().unwrap();
    case.log = Some(log.event(
        index,
        EventKind::Action,
        b"text that no register answers for",
    ));
}

#[test]
fn each_single_fault_has_its_own_name() {
    for (name, fault, expected) in FAULTS {
        let mut case = Case::new();
        fault(&mut case);
        let failure = case.verify().unwrap_err();
        let shown = format!("{failure:?}");
        assert!(shown.contains(expected), "{name}: {shown}");
        let explanation = failure.explain();
        assert!(
            !explanation.fix.is_empty() && explanation.expected != explanation.found,
            "{name}"
        );
    }
}
