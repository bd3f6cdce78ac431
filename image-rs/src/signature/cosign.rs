//! cosign's older way: a payload as a layer, and all else in the layer's annotations.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::certificate::Chain;
use super::document::Documents;
use super::payload::{self, Payload};
use super::refusal::Reason;
use super::rekor::Entry;
use super::sigstore::{Material, SigstoreSigned};
use crate::reference::Reference;

/// The media type of a layer that is a payload.
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const BUNDLE: &str = "dev.sigstore.cosign/bundle";

/// Rekor's answer, as cosign keeps it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Bundle {
    signed_entry_timestamp: String,
    payload: BundlePayload,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BundlePayload {
    body: String,
    integrated_time: u64,
    log_index: u64,
    #[serde(rename = "logID")]
    log_id: String,
}

/// Whether this signature counts for the image.
pub(super) fn judge(
    required: &SigstoreSigned,
    payload: &[u8],
    annotations: &HashMap<String, String>,
    image: &Reference,
    documents: &Documents,
    now: u64,
) -> Result<(), Reason> {
    let signature = annotations
        .get(SIGNATURE)
        .ok_or_else(|| Reason::format("its layer", format!("no annotation {SIGNATURE}")))?;
    let chain = annotations
        .get(CERTIFICATE)
        .filter(|pem| !pem.is_empty())
        .map(|pem| {
            let others = annotations.get(CHAIN).filter(|pem| !pem.is_empty());
            Chain::from_pem(pem, others.map(String::as_str))
        })
        .transpose()?;
    let entry = annotations
        .get(BUNDLE)
        .map(|json| entry(json))
        .transpose()?;
    let material = Material {
        // Some signers break the line, which Go's decoder passes over.
        signature: STANDARD
            .decode(signature.replace(['\n', '\r'], ""))
            .map_err(|error| Reason::format("its signature", error))?,
        message: payload.to_vec(),
        payload: None,
        chain,
        entries: entry.into_iter().collect(),
    };
    required.authenticate(&material, now)?;
    let payload = Payload::read(payload, payload::COSIGN)?;
    documents.check(&payload.digest)?;
    payload.check_identity(&required.identity, image)
}

fn entry(json: &str) -> Result<Entry, Reason> {
    let bad = |error: String| Reason::format("its bundle", error);
    let bundle: Bundle = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    let decode = |text: &str| {
        STANDARD
            .decode(text)
            .map_err(|error| bad(error.to_string()))
    };
    Ok(Entry {
        body: decode(&bundle.payload.body)?,
        integrated_time: bundle.payload.integrated_time,
        log_index: bundle.payload.log_index,
        log_id: bundle.payload.log_id,
        entry_timestamp: Some(decode(&bundle.signed_entry_timestamp)?),
        proof: None,
    })
}
