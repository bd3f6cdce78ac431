//! What a verified quote says. Trustee's claims keep its names and types; ours stand beside them.

use dcap_qvl::{PckCertFlag, QuoteClaims, TcbStatusWithAdvisory};
use evidence::{
    eventlog::{EventClaims, EventLog},
    tdx::{Body, Quote},
};
use serde_json::{Map, Value, json};

use super::needs::Ca;
use crate::failure::date;

/// What `dcap-qvl` found about the platform.
pub(super) struct Verdict<'a> {
    pub(super) found: &'a QuoteClaims,
    pub(super) ca: Ca,
}

pub(super) fn claims(
    quote: &Quote,
    log: Option<&EventLog<'_>>,
    rtmr_3_replayed: bool,
    verdict: &Verdict<'_>,
) -> Value {
    let mut claims = of_quote(quote, log);
    let instance = verdict.found.platform.pck.platform_instance_id;
    if let Some(id) = instance {
        claims.insert("platform_instance_id".into(), json!(instance_id(id)));
    }
    claims.insert("rtmr_3_replayed".into(), json!(rtmr_3_replayed));
    claims.extend(tcb(verdict.found));
    claims.extend(dates(verdict.found));
    claims.extend(platform(verdict));
    Value::Object(claims)
}

/// What the guest's evidence alone says.
fn of_quote(quote: &Quote, log: Option<&EventLog<'_>>) -> Map<String, Value> {
    let body = &quote.body;
    let mut said = object(json!({ "header": header(quote), "body": body_claims(body) }));
    if quote.header.version != 4 {
        let (kind, bytes) = body.kind_and_bytes();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        said.insert("type".into(), json!(hex::encode(kind.to_le_bytes())));
        said.insert("size".into(), json!(hex::encode(bytes.to_le_bytes())));
    }
    let attributes = body.td_attributes;
    let mut claims = object(json!({
        "quote": said,
        "td_attributes": {
            "debug": attributes.debug(),
            "septve_disable": attributes.septve_disable(),
            "protection_keys": attributes.protection_keys(),
            "key_locker": attributes.key_locker(),
            "perfmon": attributes.perfmon(),
        },
        "report_data": hex::encode(body.report_data),
        "init_data": hex::encode(body.mr_config_id),
    }));
    if let Some(log) = log {
        let events: Vec<_> = log.events().iter().map(EventClaims::from).collect();
        claims.insert("uefi_event_logs".into(), json!(events));
    }
    claims
}

fn header(quote: &Quote) -> Value {
    let header = &quote.header;
    json!({
        "version": hex::encode(header.version.to_le_bytes()),
        "att_key_type": hex::encode(header.att_key_type().to_le_bytes()),
        "tee_type": hex::encode(header.tee_type().to_le_bytes()),
        "reserved": hex::encode(header.reserved),
        "vendor_id": hex::encode(header.vendor_id),
        "user_data": hex::encode(header.user_data),
    })
}

fn body_claims(body: &Body) -> Map<String, Value> {
    let [rtmr_0, rtmr_1, rtmr_2, rtmr_3] = body.rtmr.map(hex::encode);
    let mut claims = object(json!({
        "tcb_svn": hex::encode(body.tcb_svn),
        "mr_seam": hex::encode(body.mr_seam),
        "mrsigner_seam": hex::encode(body.mrsigner_seam),
        "seam_attributes": hex::encode(body.seam_attributes),
        "td_attributes": hex::encode(body.td_attributes.0.to_le_bytes()),
        "xfam": hex::encode(body.xfam),
        "mr_td": hex::encode(body.mr_td),
        "mr_config_id": hex::encode(body.mr_config_id),
        "mr_owner": hex::encode(body.mr_owner),
        "mr_owner_config": hex::encode(body.mr_owner_config),
        "rtmr_0": rtmr_0,
        "rtmr_1": rtmr_1,
        "rtmr_2": rtmr_2,
        "rtmr_3": rtmr_3,
        "report_data": hex::encode(body.report_data),
    }));
    let Some(more) = &body.tdx15 else {
        return claims;
    };
    claims.extend(object(json!({
        "tee_tcb_svn2": hex::encode(more.tee_tcb_svn2),
        "mr_servicetd": hex::encode(more.mr_servicetd),
    })));
    if let Some(ex) = &more.ex {
        claims.extend(object(json!({
            "vmid": ex.vmid,
            "td_id": hex::encode(ex.td_id),
            "dev_info": hex::encode(ex.dev_info),
        })));
    }
    claims
}

fn tcb(found: &QuoteClaims) -> Map<String, Value> {
    let mut claims = object(json!({
        "tcb_status": found.tcb.status.to_string(),
        "advisory_ids": found.tcb.advisory_ids,
        "tcb_date": rfc3339(found.platform.tcb_date_tag),
        "tcb_eval_num": found.tcb.eval_data_number,
    }));
    if let Some(level) = &found.platform.current_tcb_level {
        let of = |status, advisories: &Vec<String>| {
            TcbStatusWithAdvisory::new(status, advisories.clone())
        };
        let qe = &found.qe.tcb_level;
        let current =
            of(level.tcb_status, &level.advisory_ids).merge(&of(qe.tcb_status, &qe.advisory_ids));
        claims.extend(object(json!({
            "tcb_status_current": current.status.to_string(),
            "advisory_ids_current": current.advisory_ids,
            "tcb_date_current": level.tcb_date,
        })));
    }
    claims
}

fn dates(found: &QuoteClaims) -> Map<String, Value> {
    object(json!({
        // Collateral that does not hold now is refused, so it is never another.
        "collateral_expiration_status": "0",
        "earliest_issue_date": rfc3339(found.earliest_issue_date),
        "latest_issue_date": rfc3339(found.latest_issue_date),
        "earliest_expiration_date": rfc3339(found.earliest_expiration_date),
    }))
}

fn platform(verdict: &Verdict<'_>) -> Map<String, Value> {
    let platform = &verdict.found.platform;
    let pck = &platform.pck;
    let sgx_type = match pck.sgx_type {
        0 => "Standard".to_owned(),
        1 => "Scalable".to_owned(),
        2 => "Scalable with Integrity".to_owned(),
        other => format!("Unknown ({other})"),
    };
    let mut claims = object(json!({
        "platform_provider_id": hex::encode(&pck.ppid),
        "sgx_type": sgx_type,
        "root_key_id": hex::encode(&platform.root_key_id),
        "pck_crl_num": platform.pck_crl_num,
        "root_ca_crl_num": platform.root_ca_crl_num,
        "fmspc": hex::encode(pck.fmspc),
        "pck_ca": verdict.ca.name(),
        "cpu_svn": hex::encode(pck.cpu_svn),
        "pce_svn": pck.pce_svn,
        "qe_isv_svn": verdict.found.qe.report.isv_svn,
    }));
    if pck.sgx_type > 0 {
        for (name, flag) in [
            ("is_dynamic_platform", pck.dynamic_platform),
            ("is_cached_keys", pck.cached_keys),
            ("is_smt_enabled", pck.smt_enabled),
        ] {
            claims.insert(name.into(), json!(flag == PckCertFlag::True));
        }
    }
    claims
}

/// Certificates have it as a little-endian number, Trustee's claim as a big-endian one.
fn instance_id(mut id: [u8; 16]) -> String {
    id.reverse();
    hex::encode(id)
}

fn rfc3339(seconds: u64) -> String {
    date(i64::try_from(seconds).unwrap_or(i64::MAX))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The quote's collateral is lost and its log is another boot's, so only the claims are compared.
    #[test]
    fn claims_of_a_real_quote_are_trustees() {
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
        if !vectors.exists() {
            eprintln!("skipped: no vectors beside the workspace");
            return;
        }
        let read = |name: &str| fs::read(vectors.join(name)).unwrap();
        let quote = Quote::parse(&read("tdx/quote-v4.dat")).unwrap();
        let log = read("eventlog/CCEL_data");
        let log = EventLog::parse(&log).unwrap();
        let mut expected: Value =
            serde_json::from_slice(&read("tdx/quote-v4-claims.json")).unwrap();
        let instance = expected["platform_instance_id"].take();
        let platform = super::super::needs::Platform::of(&quote).unwrap();
        let id = platform.extension.platform_instance_id.unwrap();
        assert_eq!(instance, instance_id(id.try_into().unwrap()));
        expected
            .as_object_mut()
            .unwrap()
            .remove("platform_instance_id");
        assert_eq!(Value::Object(of_quote(&quote, Some(&log))), expected);
    }
}
