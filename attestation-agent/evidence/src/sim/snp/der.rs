//! Certificates and lists of revoked ones in DER, as AMD writes them (RFC 5280, RFC 4055).

use ring::{
    rand::SystemRandom,
    signature::{RSA_PSS_SHA384, RsaKeyPair},
};
use yasna::{DERWriter, DERWriterSeq, Tag, construct_der};

use super::SimError;
use crate::sim::x509::{BASIC_CONSTRAINTS, Validity, name, oid, utc};

/// AMD's arc for the extensions of VCEK and VLEK.
pub(super) const AMD: [u64; 8] = [1, 3, 6, 1, 4, 1, 3704, 1];

const SHA384: &[u64] = &[2, 16, 840, 1, 101, 3, 4, 2, 2];
const MGF1: &[u64] = &[1, 2, 840, 113_549, 1, 1, 8];
const RSASSA_PSS: &[u64] = &[1, 2, 840, 113_549, 1, 1, 10];
const RSA: &[u64] = &[1, 2, 840, 113_549, 1, 1, 1];
const EC: &[u64] = &[1, 2, 840, 10_045, 2, 1];
const P384: &[u64] = &[1, 3, 132, 0, 34];

pub(super) struct Certificate<'a> {
    pub(super) serial: u64,
    pub(super) issuer: &'a str,
    pub(super) subject: &'a str,
    pub(super) validity: Validity,
    pub(super) key: Key<'a>,
    /// Beyond AMD's arc, with the DER of the value.
    pub(super) extensions: &'a [(Vec<u64>, Vec<u8>)],
}

pub(super) enum Key<'a> {
    /// PKCS #1; the certificate is an authority's.
    Rsa(&'a [u8]),
    /// An uncompressed point on P-384.
    P384(&'a [u8]),
}

impl Certificate<'_> {
    pub(super) fn sign(&self, with: &RsaKeyPair) -> Result<Vec<u8>, SimError> {
        let Validity { from, until } = self.validity;
        let from = utc(from).ok_or(SimError::Date(from))?;
        let until = utc(until).ok_or(SimError::Date(until))?;
        let body = construct_der(|w| {
            w.write_sequence(|w| {
                w.next().write_tagged(Tag::context(0), |w| w.write_u8(2));
                w.next().write_u64(self.serial);
                algorithm(w.next());
                name(w.next(), self.issuer);
                w.next().write_sequence(|w| {
                    w.next().write_utctime(&from);
                    w.next().write_utctime(&until);
                });
                name(w.next(), self.subject);
                self.key.write(w.next());
                w.next().write_tagged(Tag::context(3), |w| {
                    w.write_sequence(|w| self.extensions(w));
                });
            });
        });
        signed(&body, with)
    }

    fn extensions(&self, w: &mut DERWriterSeq<'_>) {
        if matches!(self.key, Key::Rsa(_)) {
            let authority = construct_der(|w| w.write_sequence(|w| w.next().write_bool(true)));
            w.next().write_sequence(|w| {
                oid(w.next(), BASIC_CONSTRAINTS);
                w.next().write_bool(true);
                w.next().write_bytes(&authority);
            });
        }
        for (id, value) in self.extensions {
            w.next().write_sequence(|w| {
                let id: Vec<_> = AMD.iter().chain(id).copied().collect();
                oid(w.next(), &id);
                w.next().write_bytes(value);
            });
        }
    }
}

impl Key<'_> {
    fn write(&self, w: DERWriter<'_>) {
        let bits = |w: DERWriter<'_>, bytes: &[u8]| w.write_bitvec_bytes(bytes, bytes.len() * 8);
        w.write_sequence(|w| match self {
            Self::Rsa(key) => {
                w.next().write_sequence(|w| {
                    oid(w.next(), RSA);
                    w.next().write_null();
                });
                bits(w.next(), key);
            }
            Self::P384(point) => {
                w.next().write_sequence(|w| {
                    oid(w.next(), EC);
                    oid(w.next(), P384);
                });
                bits(w.next(), point);
            }
        });
    }
}

/// A list of revoked certificates by their serial numbers.
pub(super) fn crl(
    issuer: &str,
    validity: Validity,
    serials: &[u64],
    with: &RsaKeyPair,
) -> Result<Vec<u8>, SimError> {
    let from = utc(validity.from).ok_or(SimError::Date(validity.from))?;
    let until = utc(validity.until).ok_or(SimError::Date(validity.until))?;
    let body = construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_u8(1);
            algorithm(w.next());
            name(w.next(), issuer);
            w.next().write_utctime(&from);
            w.next().write_utctime(&until);
            if serials.is_empty() {
                return;
            }
            w.next().write_sequence(|w| {
                for serial in serials {
                    w.next().write_sequence(|w| {
                        w.next().write_u64(*serial);
                        w.next().write_utctime(&from);
                    });
                }
            });
        });
    });
    signed(&body, with)
}

fn signed(body: &[u8], with: &RsaKeyPair) -> Result<Vec<u8>, SimError> {
    let mut signature = vec![0; with.public().modulus_len()];
    with.sign(&RSA_PSS_SHA384, &SystemRandom::new(), body, &mut signature)
        .map_err(|_| SimError::Sign)?;
    Ok(construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_der(body);
            algorithm(w.next());
            w.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
    }))
}

/// RSASSA-PSS with SHA-384 and a salt of 48 bytes.
fn algorithm(w: DERWriter<'_>) {
    let hash = |w: DERWriter<'_>| {
        w.write_sequence(|w| {
            oid(w.next(), SHA384);
            w.next().write_null();
        });
    };
    w.write_sequence(|w| {
        oid(w.next(), RSASSA_PSS);
        w.next().write_sequence(|w| {
            w.next().write_tagged(Tag::context(0), hash);
            w.next().write_tagged(Tag::context(1), |w| {
                w.write_sequence(|w| {
                    oid(w.next(), MGF1);
                    hash(w.next());
                });
            });
            w.next().write_tagged(Tag::context(2), |w| w.write_u8(48));
            w.next().write_tagged(Tag::context(3), |w| w.write_u8(1));
        });
    });
}
