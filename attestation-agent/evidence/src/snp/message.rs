//! What a guest sends: the report, and the certificates that its host gave it.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    bytes::{base64, list},
    report::{REPORT_BYTES, Report, ReportError},
};

/// The most certificates in one message.
pub const CERTIFICATES: usize = 16;

/// The most bytes of one certificate.
pub const CERTIFICATE_BYTES: usize = 16 * 1024;

/// A report and the certificates beside it: `{"attestation_report", "cert_chain"}`.
///
/// The report is read from its members, as the `sev` crate writes them, or from the base64 of its
/// bytes, which also keeps what the specification reserves today.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Wire")]
pub struct SnpEvidence {
    bytes: Box<[u8; REPORT_BYTES]>,
    report: Report,
    certificates: Vec<Certificate>,
}

/// A certificate from the host's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// What the host says it is.
    #[serde(rename = "cert_type")]
    pub kind: CertificateKind,
    /// DER, or PEM where the host stored it so.
    #[serde(with = "list")]
    pub data: Vec<u8>,
}

/// The kinds in the host's table, by the `sev` crate's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CertificateKind {
    /// The end of the table.
    Empty,
    /// AMD's root.
    #[serde(rename = "ARK")]
    Ark,
    /// AMD's signer of chips, or of loaded keys.
    #[serde(rename = "ASK")]
    Ask,
    /// The chip's key.
    #[serde(rename = "VCEK")]
    Vcek,
    /// The loaded key.
    #[serde(rename = "VLEK")]
    Vlek,
    /// A list of revoked certificates.
    #[serde(rename = "CRL")]
    Crl,
    /// Anything else, by its UUID.
    #[serde(rename = "OTHER")]
    Other(String),
}

impl SnpEvidence {
    /// Evidence from the bytes that the firmware wrote.
    ///
    /// # Errors
    /// When the bytes are no report, see [`Report::parse`].
    pub fn new(bytes: &[u8], certificates: Vec<Certificate>) -> Result<Self, ReportError> {
        let report = Report::parse(bytes)?;
        let bytes: Box<[u8; REPORT_BYTES]> = Box::new(
            bytes
                .try_into()
                .map_err(|_| ReportError::Length(bytes.len()))?,
        );
        Ok(Self {
            bytes,
            report,
            certificates,
        })
    }

    /// The report's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; REPORT_BYTES] {
        &self.bytes
    }

    /// The report's fields.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The certificates beside it.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }
}

impl SnpEvidence {
    /// The same in few bytes: the report and each certificate in base64. Ours reads it; a peer that knows
    /// only the `sev` crate's form does not.
    #[must_use]
    pub fn raw(&self) -> serde_json::Value {
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let certificates = self.certificates.iter().map(|certificate| {
            serde_json::json!({ "cert_type": certificate.kind, "data": encode(&certificate.data) })
        });
        serde_json::json!({
            "attestation_report": encode(&*self.bytes),
            "cert_chain": certificates.collect::<Vec<_>>(),
        })
    }
}

/// Written as the `sev` crate does while that loses nothing, else with the report in base64.
impl Serialize for SnpEvidence {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Out<'a, R> {
            attestation_report: R,
            cert_chain: Option<&'a [Certificate]>,
        }
        let cert_chain = (!self.certificates.is_empty()).then_some(&*self.certificates);
        if self.report.to_bytes().as_ref() == Ok(&*self.bytes) {
            let attestation_report = &self.report;
            return Out {
                attestation_report,
                cert_chain,
            }
            .serialize(to);
        }
        Out {
            attestation_report: BASE64_STANDARD.encode(*self.bytes),
            cert_chain,
        }
        .serialize(to)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    attestation_report: WireReport,
    cert_chain: Option<Vec<Certificate>>,
}

enum WireReport {
    Members(Box<Report>),
    Bytes(Vec<u8>),
}

impl TryFrom<Wire> for SnpEvidence {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        let certificates = wire.cert_chain.unwrap_or_default();
        if certificates.len() > CERTIFICATES {
            return Err(format!("more than {CERTIFICATES} certificates"));
        }
        let evidence = match wire.attestation_report {
            WireReport::Members(report) => report.to_bytes().map(|bytes| Self {
                bytes: Box::new(bytes),
                report: *report,
                certificates,
            }),
            WireReport::Bytes(bytes) => Self::new(&bytes, certificates),
        };
        evidence.map_err(|error| error.to_string())
    }
}

impl<'de> Deserialize<'de> for WireReport {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = WireReport;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the members of an SNP report, or the base64 of its bytes")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WireReport, A::Error> {
                Report::deserialize(MapAccessDeserializer::new(map))
                    .map(|report| WireReport::Members(Box::new(report)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<WireReport, E> {
                base64(text, REPORT_BYTES).map(WireReport::Bytes)
            }
        }

        from.deserialize_any(Either)
    }
}
