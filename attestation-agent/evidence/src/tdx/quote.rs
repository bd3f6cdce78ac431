//! The quote: header and body, which the quoting enclave's key signs, and the chain of keys behind it.
//!
//! ```text
//! header 48 │ v5: type 2, size 4 │ body │ length 4 │ signature 64 │ attestation key 64 │ 6, size
//!   └────────── signed ─────────────────┘             ┌──────────────────────────────────────┘
//!                      QE report 384 │ its signature 64 │ size 2, data │ 5, size 4, PCK chain in PEM
//! ```

use super::body::Body;

/// The most bytes of a quote. Intel's have about 5,000.
pub const QUOTE_BYTES: usize = 32 * 1024;
/// The most bytes of the certificates in a quote.
pub const CHAIN_BYTES: usize = 16 * 1024;
/// Bytes of a quoting enclave's report.
pub const QE_REPORT_BYTES: usize = 384;
/// Bytes of a signature, and of a key: two numbers of P-256, big-endian.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of the data that the quoting enclave binds beside its key.
pub const AUTH_DATA_BYTES: usize = 32;
/// Intel's identity as a vendor of quoting enclaves.
pub const INTEL_QE: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];

const ECDSA_P256: u16 = 2;
const TDX: u32 = 0x81;
const QE_CERTIFICATION: u16 = 6;
const PCK_CHAIN: u16 = 5;

/// A quote of version 4 or 5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// Who made it.
    pub header: Header,
    /// What it says of the TD.
    pub body: Body,
    /// Over header and body, by `attestation_key`.
    pub signature: [u8; SIGNATURE_BYTES],
    /// The quoting enclave's key.
    pub attestation_key: [u8; SIGNATURE_BYTES],
    /// The report that binds the key.
    pub qe_report: QeReport,
    /// Over `qe_report`, by the platform's key.
    pub qe_report_signature: [u8; SIGNATURE_BYTES],
    /// What `qe_report` binds beside the key.
    pub auth_data: [u8; AUTH_DATA_BYTES],
    /// PEM: the platform's certificate, its issuer's and the root's; often with a zero at its end.
    pub certificates: Vec<u8>,
}

/// The fields that version 4 and version 5 share. What is not here has one value only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 4 or 5.
    pub version: u16,
    /// The versions of the enclaves in version 3, reserved since.
    pub reserved: [u8; 4],
    /// Whose quoting enclave.
    pub vendor_id: [u8; 16],
    /// The platform's identity at its owner.
    pub user_data: [u8; 20],
}

/// The quoting enclave's own report (SGX, "REPORT").
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct QeReport {
    pub cpu_svn: [u8; 16],
    pub misc_select: [u8; 4],
    pub reserved1: [u8; 28],
    pub attributes: [u8; 16],
    pub mr_enclave: [u8; 32],
    pub reserved2: [u8; 32],
    pub mr_signer: [u8; 32],
    pub reserved3: [u8; 96],
    pub isv_prod_id: u16,
    pub isv_svn: u16,
    pub reserved4: [u8; 60],
    pub report_data: [u8; 64],
}

/// Bytes that are no TDX quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Too long.
    #[error("a TDX quote of {0} bytes, of which at most {QUOTE_BYTES} are read")]
    Length(usize),
    /// It ends amidst a field.
    #[error("the TDX quote ends within its {0}")]
    Short(&'static str),
    /// A version that is not known here.
    #[error("TDX quote version {0} is not known: 4 and 5 are")]
    Version(u16),
    /// A kind of key that is not known here.
    #[error("the TDX quote has an attestation key of type {0}: 2 is known, ECDSA over P-256")]
    KeyType(u16),
    /// Another TEE's.
    #[error("the quote is of TEE type {0:#x}, and TDX has 0x81")]
    TeeType(u32),
    /// A type of body that is not known here, or another length than it has.
    #[error("the TDX quote has a body of type {kind} with {bytes} bytes, which is not known")]
    Body {
        /// The type.
        kind: u16,
        /// The length.
        bytes: u32,
    },
    /// Other certification data than a quoting enclave's.
    #[error("the TDX quote has certification data of type {0}, not 6 of a quoting enclave")]
    Certification(u16),
    /// The platform's certificate is elsewhere.
    #[error(
        "the TDX quote has certification data of type {0} and not the chain of certificates, type 5: \
         register the platform and give the host's quote service its PCK certificate"
    )]
    NoChain(u16),
    /// Not 32 bytes.
    #[error("the TDX quote has {0} bytes of QE authentication data, not {AUTH_DATA_BYTES}")]
    AuthData(u16),
    /// Too long.
    #[error("the TDX quote has {0} bytes of certificates, of which at most {CHAIN_BYTES} are read")]
    Chain(usize),
    /// Bytes that no field answers for.
    #[error("the TDX quote has something behind its {0}")]
    Tail(&'static str),
}

impl Quote {
    /// Reads a quote. Zeros may follow it: some hosts hand out their whole buffer.
    ///
    /// # Errors
    /// When a version, a type or a length is not known, or when bytes are left over.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        if bytes.len() > QUOTE_BYTES {
            return Err(QuoteError::Length(bytes.len()));
        }
        let mut rest = Reader(bytes);
        let header = Header::read(&mut rest)?;
        let body = read_body(&mut rest, header.version)?;
        let mut section = Reader(rest.sized("signature data")?);
        if rest.0.iter().any(|byte| *byte != 0) {
            return Err(QuoteError::Tail("signature data"));
        }
        let short = || QuoteError::Short("signature data");
        let signature = section.array().ok_or_else(short)?;
        let attestation_key = section.array().ok_or_else(short)?;
        let kind = section.u16().ok_or_else(short)?;
        if kind != QE_CERTIFICATION {
            return Err(QuoteError::Certification(kind));
        }
        let mut qe = Reader(section.sized("QE certification data")?);
        if !section.0.is_empty() {
            return Err(QuoteError::Tail("QE certification data"));
        }
        let short = || QuoteError::Short("QE certification data");
        let qe_report = QeReport::read(&mut qe).ok_or_else(short)?;
        let qe_report_signature = qe.array().ok_or_else(short)?;
        let bytes = qe.u16().ok_or_else(short)?;
        if usize::from(bytes) != AUTH_DATA_BYTES {
            return Err(QuoteError::AuthData(bytes));
        }
        let auth_data = qe.array().ok_or_else(short)?;
        let kind = qe.u16().ok_or_else(short)?;
        if kind != PCK_CHAIN {
            return Err(QuoteError::NoChain(kind));
        }
        let certificates = qe.sized("certificates")?;
        if certificates.len() > CHAIN_BYTES {
            return Err(QuoteError::Chain(certificates.len()));
        }
        if !qe.0.is_empty() {
            return Err(QuoteError::Tail("certificates"));
        }
        Ok(Self {
            header,
            body,
            signature,
            attestation_key,
            qe_report,
            qe_report_signature,
            auth_data,
            certificates: certificates.to_vec(),
        })
    }

    /// The quote's bytes, without zeros behind them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut qe = self.qe_report.to_bytes().to_vec();
        qe.extend(self.qe_report_signature);
        qe.extend(length::<u16>(AUTH_DATA_BYTES).to_le_bytes());
        qe.extend(self.auth_data);
        qe.extend(PCK_CHAIN.to_le_bytes());
        put_sized(&mut qe, &self.certificates);
        let mut section = [self.signature, self.attestation_key].concat();
        section.extend(QE_CERTIFICATION.to_le_bytes());
        put_sized(&mut section, &qe);
        let mut bytes = self.signed_bytes();
        put_sized(&mut bytes, &section);
        bytes
    }

    /// Header and body: what `signature` covers.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.version.to_le_bytes().to_vec();
        bytes.extend(ECDSA_P256.to_le_bytes());
        bytes.extend(TDX.to_le_bytes());
        bytes.extend(self.header.reserved);
        bytes.extend(self.header.vendor_id);
        bytes.extend(self.header.user_data);
        if self.header.version != 4 {
            let (kind, size) = self.body.kind_and_bytes();
            bytes.extend(kind.to_le_bytes());
            bytes.extend(length::<u32>(size).to_le_bytes());
        }
        self.body.write(&mut bytes);
        bytes
    }
}

impl Header {
    fn read(rest: &mut Reader<'_>) -> Result<Self, QuoteError> {
        let short = || QuoteError::Short("header");
        let version = rest.u16().ok_or_else(short)?;
        if !matches!(version, 4 | 5) {
            return Err(QuoteError::Version(version));
        }
        let key = rest.u16().ok_or_else(short)?;
        if key != ECDSA_P256 {
            return Err(QuoteError::KeyType(key));
        }
        let tee = rest.u32().ok_or_else(short)?;
        if tee != TDX {
            return Err(QuoteError::TeeType(tee));
        }
        Ok(Self {
            version,
            reserved: rest.array().ok_or_else(short)?,
            vendor_id: rest.array().ok_or_else(short)?,
            user_data: rest.array().ok_or_else(short)?,
        })
    }

    /// The type of the attestation key.
    #[must_use]
    pub const fn att_key_type(&self) -> u16 {
        ECDSA_P256
    }

    /// The type of the TEE.
    #[must_use]
    pub const fn tee_type(&self) -> u32 {
        TDX
    }
}

fn read_body(rest: &mut Reader<'_>, version: u16) -> Result<Body, QuoteError> {
    let short = || QuoteError::Short("body");
    let mut kind = 2;
    if version != 4 {
        kind = rest.u16().ok_or_else(short)?;
        let bytes = rest.u32().ok_or_else(short)?;
        if Body::bytes_of_kind(kind) != usize::try_from(bytes).ok() {
            return Err(QuoteError::Body { kind, bytes });
        }
    }
    Body::read(rest, kind).ok_or_else(short)
}

impl QeReport {
    fn read(rest: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            cpu_svn: rest.array()?,
            misc_select: rest.array()?,
            reserved1: rest.array()?,
            attributes: rest.array()?,
            mr_enclave: rest.array()?,
            reserved2: rest.array()?,
            mr_signer: rest.array()?,
            reserved3: rest.array()?,
            isv_prod_id: rest.u16()?,
            isv_svn: rest.u16()?,
            reserved4: rest.array()?,
            report_data: rest.array()?,
        })
    }

    /// The report's bytes, which the platform's key signs.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; QE_REPORT_BYTES] {
        let fields: [&[u8]; 12] = [
            &self.cpu_svn,
            &self.misc_select,
            &self.reserved1,
            &self.attributes,
            &self.mr_enclave,
            &self.reserved2,
            &self.mr_signer,
            &self.reserved3,
            &self.isv_prod_id.to_le_bytes(),
            &self.isv_svn.to_le_bytes(),
            &self.reserved4,
            &self.report_data,
        ];
        let mut bytes = [0; QE_REPORT_BYTES];
        for (byte, value) in bytes.iter_mut().zip(fields.concat()) {
            *byte = value;
        }
        bytes
    }
}

/// A length that a cap keeps below the number's end.
fn length<N: TryFrom<usize> + Default>(bytes: usize) -> N {
    N::try_from(bytes).unwrap_or_default()
}

fn put_sized(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend(length::<u32>(bytes.len()).to_le_bytes());
    to.extend(bytes);
}

/// What is left of the bytes. Numbers are little-endian.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// As many bytes as the number before them says.
    fn sized(&mut self, what: &'static str) -> Result<&'a [u8], QuoteError> {
        let taken = self
            .u32()
            .and_then(|bytes| self.0.split_at_checked(usize::try_from(bytes).ok()?));
        let (taken, rest) = taken.ok_or(QuoteError::Short(what))?;
        self.0 = rest;
        Ok(taken)
    }
}
