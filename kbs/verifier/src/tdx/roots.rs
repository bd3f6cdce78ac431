//! Whom to believe: Intel's published root, or a development root for simulated evidence.

use evidence::Tee;
use ring::digest::{Context, SHA256};

use super::{
    TdxFailure,
    certificate::{Certificate, chain, form},
    document::Document,
};
use crate::snp::ROOTS_DIGEST_BYTES;

/// The most bytes of a development root in PEM.
const PEM_BYTES: usize = 16 * 1024;

const INTEL: &str = include_str!("../../roots/intel-sgx.pem");

/// A prepared root of one kind of evidence. Intel's stands for [`Tee::Tdx`] and nothing else does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    kind: Tee,
    pub(super) root: Certificate,
    digest: [u8; ROOTS_DIGEST_BYTES],
}

impl Roots {
    /// Intel's published root, which is part of the program.
    ///
    /// # Errors
    /// Never in a program that passed its tests: when the root did not sign itself.
    pub fn intel() -> Result<Self, TdxFailure> {
        Self::prepare(Tee::Tdx, INTEL)
    }

    /// A development root for [`Tee::SimTdx`], in PEM.
    ///
    /// # Errors
    /// When this is not one certificate that signed itself, or when it has Intel's key: hardware's
    /// evidence is not simulated.
    pub fn development(pem: &str) -> Result<Self, TdxFailure> {
        let roots = Self::prepare(Tee::SimTdx, pem)?;
        if roots.root.point == Self::intel()?.root.point {
            return Err(form(
                Document::Root,
                "it is Intel's and no development root",
            ));
        }
        Ok(roots)
    }

    fn prepare(kind: Tee, pem: &str) -> Result<Self, TdxFailure> {
        if pem.len() > PEM_BYTES {
            return Err(form(Document::Root, "it is too long"));
        }
        let [der] = &chain(Document::Root, pem.as_bytes())?[..] else {
            return Err(form(Document::Root, "it is not one certificate"));
        };
        let root = Certificate::parse(Document::Root, der)?;
        root.issued_by(&root)?;
        let mut digest = Context::new(&SHA256);
        digest.update(kind.name().as_bytes());
        digest.update(&root.der);
        let mut bytes = [0; ROOTS_DIGEST_BYTES];
        bytes.copy_from_slice(digest.finish().as_ref());
        Ok(Self {
            kind,
            root,
            digest: bytes,
        })
    }

    /// The SHA-256 of its kind and certificate. What was prepared with this root may be kept under
    /// it, so that it is never found for another.
    #[must_use]
    pub fn digest(&self) -> &[u8; ROOTS_DIGEST_BYTES] {
        &self.digest
    }

    /// The kind of evidence that this root stands for.
    #[must_use]
    pub fn kind(&self) -> Tee {
        self.kind
    }
}
