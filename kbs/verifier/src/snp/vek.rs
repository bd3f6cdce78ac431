//! The certificate of the key that signs reports (AMD 57230, "VCEK and VLEK certificates").
//!
//! Its extensions say for which chip and for which firmware versions the key was derived.

use evidence::snp::{Certificate, CertificateKind, Product, SigningKey, SnpEvidence, Tcb};
use x509_parser::certificate::X509Certificate;

use super::{
    Roots, SnpFailure,
    role::{Role, Standing, form, parse},
    roots::to_der,
};

/// 1.3.6.1.4.1.3704.1, AMD's arc for these certificates.
const ARC: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x9c, 0x78, 0x01];
const BOOTLOADER: &[u8] = &[3, 1];
const TEE: &[u8] = &[3, 2];
const SNP: &[u8] = &[3, 3];
const MICROCODE: &[u8] = &[3, 8];
const FMC: &[u8] = &[3, 9];
const HARDWARE: &[u8] = &[4];

/// 1.3.132.0.34, P-384 (RFC 5480), with its tag and length.
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
/// An uncompressed point on P-384 (SEC 1).
const POINT_BYTES: usize = 97;

/// A VCEK or VLEK whose issuer's signature was checked. Dates and revocation are judged in each
/// verification, so this may be kept for as long as the roots it was prepared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vek {
    pub(super) standing: Standing,
    pub(super) product: Product,
    pub(super) point: [u8; POINT_BYTES],
    pub(super) tcb: Tcb,
    pub(super) hardware: Option<Vec<u8>>,
}

impl Vek {
    /// Reads a certificate in DER or PEM and checks that the product's ASK or ASVK signed it.
    ///
    /// # Errors
    /// When it is no VCEK or VLEK, lacks an extension, or was signed by another key.
    pub fn prepare(
        roots: &Roots,
        product: Product,
        certificate: &[u8],
    ) -> Result<Self, SnpFailure> {
        let der = to_der(certificate)?;
        let certificate = parse(Role::Vcek, &der)?;
        let role = role(&certificate)?;
        roots
            .line(product)?
            .issuer(role)
            .check_certificate(role, &der, &certificate)?;
        let key = certificate.public_key();
        let on_p384 = key
            .algorithm
            .parameters
            .as_ref()
            .is_some_and(|parameters| parameters.data == P384);
        let point = <[u8; POINT_BYTES]>::try_from(&*key.subject_public_key.data);
        let (true, Ok(point)) = (on_p384, point) else {
            return Err(form(role, "its key is not on P-384"));
        };
        Ok(Self {
            standing: Standing::of(role, &certificate),
            product,
            point,
            tcb: tcb(role, &certificate)?,
            hardware: hardware(role, &certificate)?,
        })
    }

    /// The key that the evidence brings.
    ///
    /// # Errors
    /// When there is none, and as in [`brought`](Self::brought) and
    /// [`from_certificate`](Self::from_certificate).
    pub fn from_evidence(
        roots: &Roots,
        product: Product,
        evidence: &SnpEvidence,
    ) -> Result<Self, SnpFailure> {
        let certificate = Self::brought(roots, product, evidence)?.ok_or(SnpFailure::NoKey)?;
        Self::from_certificate(roots, product, certificate)
    }

    /// The certificate of a key that the evidence brings, as it is: nothing checked it yet.
    ///
    /// # Errors
    /// When there is more than one, or when an ARK, ASK or ASVK beside it is not the prepared one.
    pub fn brought<'a>(
        roots: &Roots,
        product: Product,
        evidence: &'a SnpEvidence,
    ) -> Result<Option<&'a Certificate>, SnpFailure> {
        let line = roots.line(product)?;
        let mut keys = Vec::new();
        for certificate in evidence.certificates() {
            let (known, role): (&[_], _) = match certificate.kind {
                CertificateKind::Vcek | CertificateKind::Vlek => {
                    keys.push(certificate);
                    continue;
                }
                CertificateKind::Ark => (&[&line.ark], Role::Ark),
                CertificateKind::Ask
                    if evidence.report().key_info.signing_key() == SigningKey::Vlek =>
                {
                    (&[&line.asvk], Role::Asvk)
                }
                CertificateKind::Ask => (&[&line.ask], Role::Ask),
                CertificateKind::Empty | CertificateKind::Crl | CertificateKind::Other(_) => {
                    continue;
                }
            };
            let der = to_der(&certificate.data)?;
            if !known.iter().any(|issuer| issuer.der == der) {
                return Err(SnpFailure::ForeignIssuer { role });
            }
        }
        match keys[..] {
            [] => Ok(None),
            [key] => Ok(Some(key)),
            [..] => Err(SnpFailure::ManyKeys),
        }
    }

    /// The key in a certificate from the host's table.
    ///
    /// # Errors
    /// When it is another kind of key than the host says, or as in [`prepare`](Self::prepare).
    pub fn from_certificate(
        roots: &Roots,
        product: Product,
        certificate: &Certificate,
    ) -> Result<Self, SnpFailure> {
        let vek = Self::prepare(roots, product, &certificate.data)?;
        let said = match certificate.kind {
            CertificateKind::Vlek => Role::Vlek,
            _ => Role::Vcek,
        };
        if vek.role() != said {
            return Err(form(said, "its name is of another kind of key"));
        }
        Ok(vek)
    }

    /// Whether it is a chip's key or a loaded one.
    #[must_use]
    pub fn role(&self) -> Role {
        self.standing.role
    }

    /// The firmware versions it was derived for.
    #[must_use]
    pub fn tcb(&self) -> Tcb {
        self.tcb
    }

    /// The chip's identity; a loaded key has none.
    #[must_use]
    pub fn hardware_id(&self) -> Option<&[u8]> {
        self.hardware.as_deref()
    }
}

fn role(certificate: &X509Certificate<'_>) -> Result<Role, SnpFailure> {
    let mut names = certificate.subject().iter_common_name();
    match (
        names.next().and_then(|name| name.as_str().ok()),
        names.next(),
    ) {
        (Some("SEV-VCEK"), None) => Ok(Role::Vcek),
        (Some("SEV-VLEK"), None) => Ok(Role::Vlek),
        _ => Err(form(Role::Vcek, "its name is not SEV-VCEK or SEV-VLEK")),
    }
}

fn tcb(role: Role, certificate: &X509Certificate<'_>) -> Result<Tcb, SnpFailure> {
    let part = |id| number(role, extension(role, certificate, id)?);
    let needed = |id| part(id)?.ok_or_else(|| form(role, "it lacks a part of the TCB"));
    Ok(Tcb {
        fmc: part(FMC)?,
        bootloader: needed(BOOTLOADER)?,
        tee: needed(TEE)?,
        snp: needed(SNP)?,
        microcode: needed(MICROCODE)?,
    })
}

/// A DER INTEGER of 0 to 255.
fn number(role: Role, value: Option<&[u8]>) -> Result<Option<u8>, SnpFailure> {
    match value {
        None => Ok(None),
        Some([2, 1, value @ 0..=0x7f] | [2, 2, 0, value @ 0x80..=0xff]) => Ok(Some(*value)),
        Some(_) => Err(form(role, "a part of its TCB is not a number of one byte")),
    }
}

/// AMD writes the identity bare; older test certificates wrap it in a DER OCTET STRING.
fn hardware(role: Role, certificate: &X509Certificate<'_>) -> Result<Option<Vec<u8>>, SnpFailure> {
    let Some(value) = extension(role, certificate, HARDWARE)? else {
        return match role {
            Role::Vlek => Ok(None),
            _ => Err(form(role, "it does not name its chip")),
        };
    };
    match value {
        [4, 64, id @ ..] if id.len() == 64 => Ok(Some(id.to_vec())),
        [4, 8, id @ ..] if id.len() == 8 => Ok(Some(id.to_vec())),
        id if matches!(id.len(), 8 | 64) => Ok(Some(id.to_vec())),
        _ => Err(form(role, "its chip's identity has another length")),
    }
}

fn extension<'a>(
    role: Role,
    certificate: &'a X509Certificate<'_>,
    id: &[u8],
) -> Result<Option<&'a [u8]>, SnpFailure> {
    let mut found = certificate
        .extensions()
        .iter()
        .filter(|extension| extension.oid.as_bytes().strip_prefix(ARC) == Some(id));
    match (found.next(), found.next()) {
        (first, None) => Ok(first.map(|extension| extension.value)),
        _ => Err(form(role, "it has an extension twice")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Certificates that were altered to carry the identity bare and wrapped.
    #[test]
    fn both_forms_of_the_chips_identity_are_read() {
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/snp");
        if !vectors.exists() {
            eprintln!("skipped: no vectors beside the workspace");
            return;
        }
        for name in ["vcek-invalid-legacy", "vcek-invalid-new", "vcek"] {
            let der = fs::read(vectors.join(format!("milan-v2-test-{name}.der"))).unwrap();
            let certificate = parse(Role::Vcek, &der).unwrap();
            let id = hardware(Role::Vcek, &certificate).unwrap().unwrap();
            assert_eq!(id.len(), 64, "{name}");
            assert!(tcb(Role::Vcek, &certificate).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_part_of_the_tcb_is_one_byte() {
        let read = |der: &[u8]| number(Role::Vcek, Some(der)).ok().flatten();
        assert_eq!(read(&[2, 1, 0x7f]), Some(0x7f));
        assert_eq!(read(&[2, 2, 0, 0xd5]), Some(0xd5));
        for wrong in [
            &[2, 1, 0x80][..],
            &[2, 2, 0, 1],
            &[2, 2, 1, 0],
            &[4, 1, 1],
            &[],
        ] {
            assert_eq!(read(wrong), None);
        }
    }
}
