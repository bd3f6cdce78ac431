//! Whom to believe: AMD's published roots, or a development root for simulated evidence.
//!
//! The signatures of roots and intermediates are checked once, when they are prepared; their dates
//! are looked at in every verification.

use evidence::{Tee, snp::Product};
use ring::digest::{Context, SHA256};

use super::{
    SnpFailure,
    role::{Issuer, Role, form, parse},
};

/// The most bytes of a development root's certificates in PEM.
const PEM_BYTES: usize = 64 * 1024;

/// Bytes of [`Roots::digest`].
pub const ROOTS_DIGEST_BYTES: usize = 32;

const AMD: [(Product, [&str; 3]); 3] = [
    (
        Product::Milan,
        [
            include_str!("../../roots/milan-ark.pem"),
            include_str!("../../roots/milan-ask.pem"),
            include_str!("../../roots/milan-asvk.pem"),
        ],
    ),
    (
        Product::Genoa,
        [
            include_str!("../../roots/genoa-ark.pem"),
            include_str!("../../roots/genoa-ask.pem"),
            include_str!("../../roots/genoa-asvk.pem"),
        ],
    ),
    (
        Product::Turin,
        [
            include_str!("../../roots/turin-ark.pem"),
            include_str!("../../roots/turin-ask.pem"),
            include_str!("../../roots/turin-asvk.pem"),
        ],
    ),
];

/// Prepared roots of one kind of evidence. AMD's stand for [`Tee::Snp`] and nothing else does.
#[derive(Debug, Clone)]
pub struct Roots {
    kind: Tee,
    lines: Vec<Line>,
    digest: [u8; ROOTS_DIGEST_BYTES],
}

/// One product's root and what it signed.
#[derive(Debug, Clone)]
pub(super) struct Line {
    product: Product,
    pub(super) ark: Issuer,
    pub(super) ask: Issuer,
    pub(super) asvk: Issuer,
}

impl Roots {
    /// AMD's published roots, which are part of the program.
    ///
    /// # Errors
    /// Never in a program that passed its tests: when a root does not sign what it has to.
    pub fn amd() -> Result<Self, SnpFailure> {
        let line = |(product, pems): (Product, [&str; 3])| {
            let [ark, ask, asvk] = pems.map(|pem| pem_to_der(pem.as_bytes()));
            Line::prepare(product, &ark?, &ask?, &asvk?)
        };
        Ok(Self::of(
            Tee::Snp,
            AMD.into_iter().map(line).collect::<Result<_, _>>()?,
        ))
    }

    /// A development root for [`Tee::SimSnp`]: its ARK, ASK and ASVK in PEM, in this order.
    ///
    /// # Errors
    /// When these are not three certificates, or the first did not sign the others.
    pub fn development(pem: &str) -> Result<Self, SnpFailure> {
        const END: &str = "-----END CERTIFICATE-----";
        let pieces: Vec<_> = pem.split_inclusive(END).collect();
        let [ark, ask, asvk, rest] = pieces[..] else {
            return Err(form(Role::Ark, "the bundle is not ARK, ASK and ASVK"));
        };
        if pem.len() > PEM_BYTES || !rest.trim().is_empty() {
            return Err(form(
                Role::Ark,
                "the bundle has more than ARK, ASK and ASVK",
            ));
        }
        let der = |pem: &str| pem_to_der(pem.trim().as_bytes());
        let [ark, ask, asvk] = [der(ark)?, der(ask)?, der(asvk)?];
        let line = |product| Line::prepare(product, &ark, &ask, &asvk);
        let lines = Product::ALL.map(line).into_iter();
        Ok(Self::of(Tee::SimSnp, lines.collect::<Result<_, _>>()?))
    }

    fn of(kind: Tee, lines: Vec<Line>) -> Self {
        let mut digest = Context::new(&SHA256);
        digest.update(kind.name().as_bytes());
        for line in &lines {
            digest.update(line.product.name().as_bytes());
            for issuer in [&line.ark, &line.ask, &line.asvk] {
                digest.update(&issuer.der);
            }
        }
        let mut bytes = [0; ROOTS_DIGEST_BYTES];
        bytes.copy_from_slice(digest.finish().as_ref());
        Self {
            kind,
            lines,
            digest: bytes,
        }
    }

    /// The SHA-256 of their kind and certificates. What was prepared with these roots may be kept
    /// under it, so that it is never found for others.
    #[must_use]
    pub fn digest(&self) -> &[u8; ROOTS_DIGEST_BYTES] {
        &self.digest
    }

    /// The kind of evidence that these roots stand for.
    #[must_use]
    pub fn kind(&self) -> Tee {
        self.kind
    }

    pub(super) fn line(&self, product: Product) -> Result<&Line, SnpFailure> {
        self.lines
            .iter()
            .find(|line| line.product == product)
            .ok_or(SnpFailure::NoRoot { product })
    }
}

impl Line {
    fn prepare(product: Product, ark: &[u8], ask: &[u8], asvk: &[u8]) -> Result<Self, SnpFailure> {
        let line = Self {
            product,
            ark: Issuer::parse(Role::Ark, ark)?,
            ask: Issuer::parse(Role::Ask, ask)?,
            asvk: Issuer::parse(Role::Asvk, asvk)?,
        };
        for issuer in [&line.ark, &line.ask, &line.asvk] {
            let role = issuer.standing.role;
            let certificate = parse(role, &issuer.der)?;
            line.ark
                .check_certificate(role, &issuer.der, &certificate)?;
        }
        Ok(line)
    }

    /// Who signs keys of this kind.
    pub(super) fn issuer(&self, role: Role) -> &Issuer {
        match role {
            Role::Vcek => &self.ask,
            Role::Vlek => &self.asvk,
            Role::Ark | Role::Ask | Role::Asvk => &self.ark,
        }
    }
}

/// The DER of a certificate that is in PEM or already in DER.
pub(super) fn to_der(data: &[u8]) -> Result<Vec<u8>, SnpFailure> {
    if data.starts_with(b"-----BEGIN") {
        return pem_to_der(data);
    }
    Ok(data.to_vec())
}

fn pem_to_der(pem: &[u8]) -> Result<Vec<u8>, SnpFailure> {
    match pem_rfc7468::decode_vec(pem) {
        Ok(("CERTIFICATE", der)) => Ok(der),
        _ => Err(SnpFailure::Pem),
    }
}
