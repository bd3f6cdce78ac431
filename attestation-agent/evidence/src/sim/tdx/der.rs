//! Certificates and lists of revoked ones in DER, as Intel writes them (RFC 5280, RFC 5758; Intel's
//! "SGX PCK Certificate and Certificate Revocation List Profile").

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use yasna::{DERWriter, DERWriterSeq, Tag, construct_der};

use super::{SimError, platform::Platform};
use crate::sim::x509::{BASIC_CONSTRAINTS, Validity, name, oid, utc};

/// Intel's arc for the extensions of PCK certificates.
const SGX: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];

const ECDSA_SHA256: &[u64] = &[1, 2, 840, 10_045, 4, 3, 2];
const EC: &[u64] = &[1, 2, 840, 10_045, 2, 1];
const P256: &[u64] = &[1, 2, 840, 10_045, 3, 1, 7];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const CRL_NUMBER: &[u64] = &[2, 5, 29, 20];

/// Bits of KeyUsage, the first as the highest.
const CERT_AND_CRL_SIGN: u8 = 0b0000_0110;
const DIGITAL_SIGNATURE: u8 = 0b1100_0000;

pub(super) struct Certificate<'a> {
    pub(super) serial: u64,
    pub(super) issuer: &'a str,
    pub(super) subject: &'a str,
    pub(super) validity: Validity,
    /// An uncompressed point on P-256.
    pub(super) key: &'a [u8],
    pub(super) authority: bool,
    /// The platform that the key is of, where it is one's.
    pub(super) platform: Option<&'a Platform>,
}

impl Certificate<'_> {
    pub(super) fn sign(&self, pkcs8: &[u8]) -> Result<Vec<u8>, SimError> {
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
                w.next().write_sequence(|w| {
                    w.next().write_sequence(|w| {
                        oid(w.next(), EC);
                        oid(w.next(), P256);
                    });
                    w.next().write_bitvec_bytes(self.key, self.key.len() * 8);
                });
                w.next().write_tagged(Tag::context(3), |w| {
                    w.write_sequence(|w| self.extensions(w));
                });
            });
        });
        signed(&body, pkcs8)
    }

    fn extensions(&self, w: &mut DERWriterSeq<'_>) {
        let usage = if self.authority {
            CERT_AND_CRL_SIGN
        } else {
            DIGITAL_SIGNATURE
        };
        let bits = 8 - usize::try_from(usage.trailing_zeros()).unwrap_or(0);
        extension(w.next(), KEY_USAGE, true, |w| {
            w.write_bitvec_bytes(&[usage], bits);
        });
        extension(w.next(), BASIC_CONSTRAINTS, true, |w| {
            w.write_sequence(|w| {
                if self.authority {
                    w.next().write_bool(true);
                }
            });
        });
        if let Some(platform) = self.platform {
            extension(w.next(), &SGX, false, |w| sgx(w, platform));
        }
    }
}

/// The extension that tells which platform the key is of, and at which security versions.
fn sgx(w: DERWriter<'_>, platform: &Platform) {
    w.write_sequence(|w| {
        member(w.next(), &[1], |w| w.write_bytes(&platform.ppid));
        member(w.next(), &[2], |w| tcb(w, platform));
        member(w.next(), &[3], |w| w.write_bytes(&[0, 0]));
        member(w.next(), &[4], |w| w.write_bytes(&platform.fmspc));
        member(w.next(), &[5], |w| w.write_enum(platform.sgx_type.into()));
        if let Some(instance) = &platform.instance {
            member(w.next(), &[6], |w| w.write_bytes(instance));
            member(w.next(), &[7], |w| {
                w.write_sequence(|w| {
                    for (at, value) in (1..).zip([true, true, false]) {
                        member(w.next(), &[7, at], |w| w.write_bool(value));
                    }
                });
            });
        }
    });
}

fn tcb(w: DERWriter<'_>, platform: &Platform) {
    w.write_sequence(|w| {
        for (at, svn) in (1..).zip(platform.cpu_svn) {
            member(w.next(), &[2, at], |w| w.write_u8(svn));
        }
        member(w.next(), &[2, 17], |w| w.write_u16(platform.pce_svn));
        member(w.next(), &[2, 18], |w| w.write_bytes(&platform.cpu_svn));
    });
}

fn member(w: DERWriter<'_>, id: &[u64], value: impl FnOnce(DERWriter<'_>)) {
    w.write_sequence(|w| {
        oid(w.next(), &[&SGX[..], id].concat());
        value(w.next());
    });
}

fn extension(w: DERWriter<'_>, id: &[u64], critical: bool, value: impl FnOnce(DERWriter<'_>)) {
    w.write_sequence(|w| {
        oid(w.next(), id);
        if critical {
            w.next().write_bool(true);
        }
        w.next().write_bytes(&construct_der(value));
    });
}

/// A list of revoked certificates by their serial numbers.
pub(super) fn crl(
    issuer: &str,
    validity: Validity,
    serials: &[u64],
    pkcs8: &[u8],
) -> Result<Vec<u8>, SimError> {
    let Validity { from, until } = validity;
    let from = utc(from).ok_or(SimError::Date(from))?;
    let until = utc(until).ok_or(SimError::Date(until))?;
    let body = construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_u8(1);
            algorithm(w.next());
            name(w.next(), issuer);
            w.next().write_utctime(&from);
            w.next().write_utctime(&until);
            if !serials.is_empty() {
                w.next().write_sequence(|w| {
                    for serial in serials {
                        w.next().write_sequence(|w| {
                            w.next().write_u64(*serial);
                            w.next().write_utctime(&from);
                        });
                    }
                });
            }
            w.next().write_tagged(Tag::context(0), |w| {
                w.write_sequence(|w| extension(w.next(), CRL_NUMBER, false, |w| w.write_u8(1)));
            });
        });
    });
    signed(&body, pkcs8)
}

fn signed(body: &[u8], pkcs8: &[u8]) -> Result<Vec<u8>, SimError> {
    let random = SystemRandom::new();
    let signature = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &random)
        .map_err(|error| SimError::Key(error.to_string()))?
        .sign(&random, body)
        .map_err(|_| SimError::Sign)?;
    let signature = signature.as_ref();
    Ok(construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_der(body);
            algorithm(w.next());
            w.next().write_bitvec_bytes(signature, signature.len() * 8);
        });
    }))
}

fn algorithm(w: DERWriter<'_>) {
    w.write_sequence(|w| oid(w.next(), ECDSA_SHA256));
}
