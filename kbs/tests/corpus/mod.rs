//! Good evidence and good requests with one fault each, and what the owner has to be told.

pub(crate) mod launch;
pub(crate) mod message;
pub(crate) mod reference;
pub(crate) mod release;
pub(crate) mod td;

use kbs_protocol::AttestRequest;
use serde_json::{Map, Value, json};

use crate::platform::{Platform, td::Td};

/// One fault.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) fault: Fault,
    /// The claim, or the type of error, that has to be named first.
    pub(crate) claim: &'static str,
    /// What stands in what was expected or found.
    pub(crate) told: &'static str,
}

/// Where the fault is.
pub(crate) enum Fault {
    /// In the launch or the chip, before evidence is made.
    Launch(fn(&mut Platform)),
    /// In the request, after evidence was made.
    Message(fn(&mut AttestRequest)),
    /// In the launch of a TD or its platform, before evidence is made.
    Td(fn(&mut Td)),
    /// In a TD's request, after evidence was made.
    TdMessage(fn(&mut AttestRequest)),
    /// In what the owner registered.
    Reference(fn(&mut Map<String, Value>)),
    /// In the request for the resource.
    Release(Release),
}

/// A fault of what a guest with a good token asks for, or is judged by.
pub(crate) enum Release {
    /// Another path.
    Path(&'static str),
    /// Another token: none, or made from the good one.
    Token(fn(&str) -> Option<String>),
    /// Another release policy.
    Policy(&'static str),
    /// Another appraisal policy, as changed text of the good one.
    Appraisal(fn(&str) -> String),
}

pub(crate) fn case(
    name: &'static str,
    fault: Fault,
    claim: &'static str,
    told: &'static str,
) -> Case {
    Case {
        name,
        fault,
        claim,
        told,
    }
}

/// What is registered for the good launches of [`Platform::new`] and [`Td::new`].
pub(crate) fn references() -> Map<String, Value> {
    let td = Td::new().body;
    let Value::Object(map) = json!({
        "snp_launch_measurement": ["ab".repeat(48)],
        "snp_bootloader": [9],
        "snp_tee_svn": [2],
        "snp_snp_svn": [23],
        "snp_microcode": [213],
        "snp_smt_enabled": [true],
        "snp_tsme_enabled": [false],
        "snp_guest_abi_major": [0],
        "snp_guest_abi_minor": [0],
        "snp_single_socket": [false],
        "snp_smt_allowed": [true],
        "mr_td": [hex::encode(td.mr_td)],
        "rtmr_1": [hex::encode(td.rtmr[1])],
        "rtmr_2": [hex::encode(td.rtmr[2])],
        "xfam": [hex::encode(td.xfam)],
    }) else {
        unreachable!("an object is written above")
    };
    map
}
