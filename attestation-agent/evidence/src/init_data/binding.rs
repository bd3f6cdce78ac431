//! Where a launch binds init-data.
//!
//! A launch binds it by its digest: the host passes it to the TEE, which keeps it in a field of
//! its report that the guest cannot change. The field has a fixed width, so the digest is cut at its
//! end, or padded with zeros there.
//!
//! Rule: <https://github.com/confidential-containers/trustee/blob/main/kbs/docs/initdata.md>.

use std::fmt;

use super::InitDataDigest;
use crate::Tee;

/// Bytes of `HOST_DATA` in an SNP report.
pub const HOST_DATA_BYTES: usize = 32;

/// Bytes of `MRCONFIGID` in a TD report.
pub const MRCONFIGID_BYTES: usize = 48;

/// `HOST_DATA` of an SNP guest that is launched with init-data.
#[must_use]
pub fn host_data(digest: &InitDataDigest) -> [u8; HOST_DATA_BYTES] {
    fit(digest.as_bytes())
}

/// `MRCONFIGID` of a TD that is launched with init-data.
#[must_use]
pub fn mrconfigid(digest: &InitDataDigest) -> [u8; MRCONFIGID_BYTES] {
    fit(digest.as_bytes())
}

/// What evidence holds of the init-data that a launch bound.
#[derive(Clone, PartialEq, Eq)]
pub struct Binding {
    field: &'static str,
    bytes: Vec<u8>,
}

impl Binding {
    /// What a guest of this kind will report, when it is launched with init-data of this digest, or
    /// with none. Sample evidence has no width of its own: it holds the whole digest, or nothing.
    #[must_use]
    pub fn of(tee: Tee, digest: Option<&InitDataDigest>) -> Self {
        let bytes_or_zeros = |fitted: Option<Vec<u8>>, width| fitted.unwrap_or(vec![0; width]);
        match tee {
            Tee::Snp | Tee::SimSnp => Self {
                field: "host_data",
                bytes: bytes_or_zeros(digest.map(|d| host_data(d).to_vec()), HOST_DATA_BYTES),
            },
            Tee::Tdx | Tee::SimTdx => Self {
                field: "mr_config_id",
                bytes: bytes_or_zeros(digest.map(|d| mrconfigid(d).to_vec()), MRCONFIGID_BYTES),
            },
            Tee::Sample => Self {
                field: "init_data",
                bytes: digest.map_or(Vec::new(), |d| d.as_bytes().to_vec()),
            },
        }
    }

    /// The name of the field in the evidence and in an appraisal's claims.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The bytes of the field.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes in hex.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes)
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.field, self.hex())
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Binding({self})")
    }
}

fn fit<const WIDTH: usize>(digest: &[u8]) -> [u8; WIDTH] {
    let mut field = [0; WIDTH];
    let used = digest.len().min(WIDTH);
    field[..used].copy_from_slice(&digest[..used]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init_data::Algorithm;

    /// FIPS 180-4's digests of "abc".
    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const SHA384: &str = "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7";
    const SHA512: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn a_digest_is_cut_or_padded_at_its_end() {
        let zeros = "00".repeat(16);
        for (algorithm, snp, tdx) in [
            (Algorithm::Sha256, SHA256, format!("{SHA256}{zeros}")),
            (Algorithm::Sha384, &SHA384[..64], SHA384.to_owned()),
            (Algorithm::Sha512, &SHA512[..64], SHA512[..96].to_owned()),
        ] {
            let digest = algorithm.digest(b"abc");
            assert_eq!(hex::encode(host_data(&digest)), snp);
            assert_eq!(hex::encode(mrconfigid(&digest)), tdx);
        }
    }

    #[test]
    fn each_kind_reports_in_its_own_field() {
        let digest = Algorithm::Sha384.digest(b"abc");
        let of = |tee| Binding::of(tee, Some(&digest)).to_string();
        assert_eq!(of(Tee::Snp), format!("host_data={}", &SHA384[..64]));
        assert_eq!(of(Tee::SimTdx), format!("mr_config_id={SHA384}"));
        assert_eq!(of(Tee::Sample), format!("init_data={SHA384}"));
    }

    #[test]
    fn no_init_data_is_zeros_and_never_a_digest() {
        assert_eq!(Binding::of(Tee::Snp, None).as_bytes(), [0; 32]);
        assert_eq!(Binding::of(Tee::Tdx, None).as_bytes(), [0; 48]);
        assert!(Binding::of(Tee::Sample, None).as_bytes().is_empty());
    }
}
