//! A document as it is kept and carried, and what it says of itself: since when and until when it
//! holds, and what it is about.
//!
//! What is read here is not believed before the whole verifies. It decides only whether verifying is
//! worth while, and which of two copies is newer.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::value::RawValue;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use verifier::tdx::{self, CHAIN_BYTES, SIGNATURE_BYTES};

use super::document::{Document, Item};

/// The version of the form.
const VERSION: u32 = 1;
/// Bytes of the form around a document, which is in base64.
const FRAME_BYTES: usize = 2 * CHAIN_BYTES + 4096;
/// Bytes of the longest file.
pub(super) const FILE_BYTES: usize = tdx::CRL_BYTES / 3 * 4 + FRAME_BYTES;

/// A document, when it was fetched, and the chain of its issuer where one came with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    version: u32,
    pub(super) document: Document,
    /// Seconds since the Unix epoch.
    pub(super) fetched: i64,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub(super) body: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) issuer_chain: Option<String>,
}

/// A stored document whose form was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) stored: Stored,
    /// Seconds since the Unix epoch, as the next one.
    pub(super) from: i64,
    pub(super) until: i64,
}

impl Held {
    pub(super) fn new(
        document: Document,
        fetched: i64,
        body: Vec<u8>,
        issuer_chain: Option<String>,
    ) -> Result<Self, String> {
        let version = VERSION;
        Self::of(Stored {
            version,
            document,
            fetched,
            body,
            issuer_chain,
        })
    }

    /// Reads a file.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Self::of(stored)
    }

    pub(super) fn of(stored: Stored) -> Result<Self, String> {
        if stored.version != VERSION {
            return Err(format!("its form has version {}", stored.version));
        }
        let document = &stored.document;
        if stored.body.len() > document.cap() {
            return Err(format!("it has more than {} bytes", document.cap()));
        }
        let needs_chain = !document.chain_headers().is_empty();
        match &stored.issuer_chain {
            Some(chain) if chain.len() > CHAIN_BYTES => {
                return Err(format!(
                    "its issuer's chain has more than {CHAIN_BYTES} bytes"
                ));
            }
            chain if chain.is_some() != needs_chain => {
                return Err("its issuer's chain is missing, or there is one too many".to_owned());
            }
            _ => {}
        }
        let (from, until) = dates(document, &stored.body)?;
        Ok(Self {
            stored,
            from,
            until,
        })
    }

    pub(super) fn document(&self) -> &Document {
        &self.stored.document
    }

    pub(super) fn is_current(&self, now: i64) -> bool {
        (self.from..=self.until).contains(&now)
    }

    /// Whether a newer one should be looked for while this one still holds.
    pub(super) fn is_due(&self, now: i64) -> bool {
        /// What was revoked should be known within a day, however long a list holds.
        const DAY_SECONDS: i64 = 24 * 3600;
        /// Towards its end, the newer one is looked for this often.
        const HOUR_SECONDS: i64 = 3600;
        let lifetime = self.until.saturating_sub(self.from);
        let age = now.saturating_sub(self.stored.fetched);
        let ends_soon = now >= self.until.saturating_sub(lifetime / 4);
        // A copy from the future is of a clock that was wrong.
        let is_old = !(0..DAY_SECONDS).contains(&age);
        let is_due = is_old || (ends_soon && age >= HOUR_SECONDS.min(lifetime / 8));
        self.document().is_reissued() && is_due
    }

    /// Of two copies of one document: whether this is the one to use.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        (self.from, self.stored.fetched) > (other.from, other.stored.fetched)
    }
}

/// Seconds since the Unix epoch, between which the document says that it holds.
fn dates(document: &Document, body: &[u8]) -> Result<(i64, i64), String> {
    match &document.item {
        Item::Vcek { .. } => certificate(body),
        Item::AmdCrl { .. } | Item::PckCrl { .. } | Item::RootCrl => list(body),
        Item::TcbInfo { fmspc } => {
            let signed = signed(document, body)?;
            let about = statement(&signed.text)?;
            let found = about.fmspc.unwrap_or_default();
            let fmspc = hex::encode(fmspc);
            if about.id != "TDX" || !found.eq_ignore_ascii_case(&fmspc) {
                return Err(format!(
                    "it is about {} {}, not about TDX {fmspc}",
                    shorten(&about.id),
                    shorten(&found)
                ));
            }
            Ok((about.issue_date, about.next_update))
        }
        Item::QeIdentity => {
            let signed = signed(document, body)?;
            let about = statement(&signed.text)?;
            if about.id != "TD_QE" {
                return Err(format!(
                    "it is about {}, not about TD_QE",
                    shorten(&about.id)
                ));
            }
            Ok((about.issue_date, about.next_update))
        }
    }
}

fn certificate(body: &[u8]) -> Result<(i64, i64), String> {
    let Ok(([], certificate)) = x509_parser::parse_x509_certificate(body) else {
        return Err("it is not a certificate in DER".to_owned());
    };
    let validity = certificate.validity();
    Ok((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

fn list(body: &[u8]) -> Result<(i64, i64), String> {
    let Ok(([], list)) = x509_parser::parse_x509_crl(body) else {
        return Err("it is not a list of revoked certificates in DER".to_owned());
    };
    let until = list.next_update().ok_or("it names no next update")?;
    Ok((list.last_update().timestamp(), until.timestamp()))
}

/// A statement of Intel's and the signature over its bytes.
pub(super) struct Signed {
    pub(super) text: String,
    pub(super) signature: Vec<u8>,
}

/// Takes an answer of Intel's apart; the statement stays as it is, byte for byte.
pub(super) fn signed(document: &Document, body: &[u8]) -> Result<Signed, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Answer<'a> {
        #[serde(borrow, rename = "tcbInfo")]
        tcb_info: Option<&'a RawValue>,
        #[serde(borrow, rename = "enclaveIdentity")]
        enclave_identity: Option<&'a RawValue>,
        signature: String,
    }
    let answer: Answer<'_> =
        serde_json::from_slice(body).map_err(|error| format!("it is not Intel's form: {error}"))?;
    let statement = match (&document.item, answer.tcb_info, answer.enclave_identity) {
        (Item::TcbInfo { .. }, Some(statement), None)
        | (Item::QeIdentity, None, Some(statement)) => statement,
        _ => return Err("it is another kind of document".to_owned()),
    };
    let signature = hex::decode(&answer.signature).map_err(|_| "its signature is not hex")?;
    if signature.len() != SIGNATURE_BYTES {
        return Err("its signature has another length".to_owned());
    }
    Ok(Signed {
        text: statement.get().to_owned(),
        signature,
    })
}

/// Of a statement, what is needed here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct About {
    id: String,
    fmspc: Option<String>,
    #[serde(deserialize_with = "date")]
    issue_date: i64,
    #[serde(deserialize_with = "date")]
    next_update: i64,
}

fn statement(text: &str) -> Result<About, String> {
    serde_json::from_str(text).map_err(|error| format!("its statement: {error}"))
}

fn date<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    let text = String::deserialize(from)?;
    let date = OffsetDateTime::parse(&text, &Rfc3339).map_err(D::Error::custom)?;
    Ok(date.unix_timestamp())
}

fn to_base64<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&BASE64_STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    BASE64_STANDARD.decode(text).map_err(D::Error::custom)
}

/// A piece of a foreign text that is safe to print.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 64;
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DOCUMENT: &str = "tdx.tcb-info.00a06d080000";

    fn answer(change: impl FnOnce(&mut serde_json::Value)) -> Result<Held, String> {
        let mut answer = json!({
            "tcbInfo": {
                "id": "TDX", "fmspc": "00A06D080000",
                "issueDate": "2026-01-01T00:00:00Z", "nextUpdate": "2026-01-31T00:00:00Z",
            },
            "signature": "00".repeat(64),
        });
        change(&mut answer);
        let (body, chain) = (answer.to_string().into_bytes(), Some("chain".to_owned()));
        Held::new(DOCUMENT.parse().unwrap(), 1_767_225_600, body, chain)
    }

    #[test]
    fn a_document_says_when_it_holds_and_is_read_back() {
        let held = answer(|_| ()).unwrap();
        assert_eq!((held.from, held.until), (1_767_225_600, 1_769_817_600));
        assert!(held.is_current(held.until) && !held.is_current(held.until + 1));
        assert!(!held.is_due(held.from + 3600) && held.is_due(held.from + 24 * 3600));
        let text = serde_json::to_vec(&held.stored).unwrap();
        assert_eq!(Held::read(&text), Ok(held));
    }

    #[test]
    fn what_is_about_something_else_is_refused() {
        assert!(answer(|a| a["tcbInfo"]["fmspc"] = json!("00A06D080001")).is_err());
        assert!(answer(|a| a["tcbInfo"]["id"] = json!("SGX")).is_err());
        assert!(answer(|a| a["tcbInfo"]["nextUpdate"] = json!("soon")).is_err());
        assert!(answer(|a| a["signature"] = json!("00")).is_err());
        assert!(answer(|a| a["more"] = json!(1)).is_err());
        let body = b"{}".to_vec();
        assert!(Held::new("tdx.qe-identity".parse().unwrap(), 0, body, None).is_err());
    }
}
