//! AMD's lists of revoked certificates (RFC 5280, section 5).

use std::collections::HashSet;

use evidence::snp::Product;

use super::{
    Roots, SnpFailure,
    role::{Role, Signed, Standing},
};

/// The most bytes of a list.
pub const CRL_BYTES: usize = 1 << 20;

/// A list whose signature was checked. Its dates are judged in each verification.
#[derive(Debug, Clone)]
pub struct Crl {
    pub(super) product: Product,
    pub(super) issuer: Role,
    from: i64,
    until: i64,
    serials: HashSet<Vec<u8>>,
}

impl Crl {
    /// Reads a list in DER and checks that the product's ARK, ASK or ASVK signed it.
    ///
    /// # Errors
    /// When it is no such list, names no next update, or was signed by another key.
    pub fn prepare(roots: &Roots, product: Product, der: &[u8]) -> Result<Self, SnpFailure> {
        if der.len() > CRL_BYTES {
            return Err(SnpFailure::CrlForm("it is too long"));
        }
        let Ok(([], list)) = x509_parser::parse_x509_crl(der) else {
            return Err(SnpFailure::CrlForm("it is not a list in DER"));
        };
        let line = roots.line(product)?;
        let name = list.tbs_cert_list.issuer.as_raw();
        let issuer = [&line.ark, &line.ask, &line.asvk]
            .into_iter()
            .find(|issuer| issuer.name == name)
            .ok_or(SnpFailure::CrlForm(
                "its issuer is not in the product's chain",
            ))?;
        issuer.check(&Signed {
            what: "CRL",
            issuer: name,
            bytes: list.tbs_cert_list.as_ref(),
            whole: der,
            signature: &list.signature_value.data,
        })?;
        let until = list
            .next_update()
            .ok_or(SnpFailure::CrlForm("it names no next update"))?;
        Ok(Self {
            product,
            issuer: issuer.standing.role,
            from: list.last_update().timestamp(),
            until: until.timestamp(),
            serials: list
                .iter_revoked_certificates()
                .map(|revoked| revoked.raw_serial().to_vec())
                .collect(),
        })
    }

    /// Who revoked what is on it.
    #[must_use]
    pub fn issuer(&self) -> Role {
        self.issuer
    }

    /// That the list is current and that it does not have the certificate.
    pub(super) fn clears(&self, standing: &Standing, now: i64) -> Result<(), SnpFailure> {
        if !(self.from..=self.until).contains(&now) {
            let (from, until) = (self.from, self.until);
            return Err(SnpFailure::CrlStale { from, until, now });
        }
        if self.serials.contains(&standing.serial) {
            return Err(SnpFailure::Revoked {
                role: standing.role,
                serial: hex::encode(&standing.serial),
            });
        }
        Ok(())
    }
}
