//! Whom to believe: Intel's published root, or a development root for simulated evidence.

use evidence::Tee;

use super::{
    TdxFailure,
    certificate::{Certificate, chain, form},
    document::Document,
};

/// The most bytes of a development root in PEM.
const PEM_BYTES: usize = 16 * 1024;

const INTEL: &str = include_str!("../../roots/intel-sgx.pem");

/// A prepared root of one kind of evidence. Intel's stands for [`Tee::Tdx`] and nothing else does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    kind: Tee,
    pub(super) root: Certificate,
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
        Ok(Self { kind, root })
    }

    /// The kind of evidence that this root stands for.
    #[must_use]
    pub fn kind(&self) -> Tee {
        self.kind
    }
}
