//! The table of certificates that a host gives beside a report (AMD 56421, GHCB specification, section 4.1.8.1):
//! entries of a GUID, an offset and a length, ended by zeros, then what they point at.

use super::{CERTIFICATE_BYTES, CERTIFICATES, Certificate, CertificateKind};

/// Bytes of the whole table. Kernels take no more from a host.
pub const TABLE_BYTES: usize = 64 * 1024;
const ENTRY_BYTES: usize = 24;

/// GUIDs as they are in the table, and what they name.
const KINDS: [([u8; 16], CertificateKind); 5] = [
    (
        guid(0xc0b4_06a4, 0xa803, 0x4952, 0x9743_3fb6_014c_d0ae),
        CertificateKind::Ark,
    ),
    (
        guid(0x4ab7_b379, 0xbbac, 0x4fe4, 0xa02f_05ae_f327_c782),
        CertificateKind::Ask,
    ),
    (
        guid(0x63da_758d, 0xe664, 0x4564, 0xadc5_f4b9_3be8_accd),
        CertificateKind::Vcek,
    ),
    (
        guid(0xa807_4bc2, 0xa25a, 0x483e, 0xaae6_39c0_45a0_b8a1),
        CertificateKind::Vlek,
    ),
    (
        guid(0x92f8_1bc3, 0x5811, 0x4d3d, 0x97ff_d19f_88dc_67ea),
        CertificateKind::Crl,
    ),
];

/// A table that a host gave and that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Too long.
    #[error("the host's table of certificates has {0} bytes: at most {TABLE_BYTES} are read")]
    Length(usize),
    /// Too many.
    #[error("the host's table has more than {CERTIFICATES} certificates")]
    Entries,
    /// No entry of zeros before the end.
    #[error("the host's table of certificates does not end")]
    Open,
    /// It points out of the table, or at too much.
    #[error(
        "certificate {0} of the host's table is not within it, or has more than {CERTIFICATE_BYTES} bytes"
    )]
    Place(usize),
}

impl Certificate {
    /// Reads the table. An empty one has no certificate.
    ///
    /// # Errors
    /// When the table is longer than the caps, does not end, or points out of itself.
    pub fn table(bytes: &[u8]) -> Result<Vec<Self>, TableError> {
        if bytes.len() > TABLE_BYTES {
            return Err(TableError::Length(bytes.len()));
        }
        let mut certificates = Vec::new();
        if bytes.is_empty() {
            return Ok(certificates);
        }
        for (at, entry) in bytes.chunks_exact(ENTRY_BYTES).enumerate() {
            let (guid, place) = entry.split_at(16);
            if entry.iter().all(|byte| *byte == 0) {
                return Ok(certificates);
            }
            if at == CERTIFICATES {
                return Err(TableError::Entries);
            }
            let number = |at: usize| {
                let word = place.get(at..at + 4).and_then(|word| word.try_into().ok());
                word.map_or(usize::MAX, |word| {
                    usize::try_from(u32::from_le_bytes(word)).unwrap_or(usize::MAX)
                })
            };
            let (offset, length) = (number(0), number(4));
            let data = bytes
                .get(offset..offset.saturating_add(length))
                .filter(|data| data.len() <= CERTIFICATE_BYTES)
                .ok_or(TableError::Place(at))?;
            certificates.push(Self {
                kind: kind(guid),
                data: data.to_vec(),
            });
        }
        Err(TableError::Open)
    }

    /// Writes a table, as a host does.
    #[must_use]
    pub fn to_table(certificates: &[Self]) -> Vec<u8> {
        let mut offset = ENTRY_BYTES * (certificates.len() + 1);
        let mut table = Vec::new();
        for certificate in certificates {
            table.extend(guid_of(&certificate.kind));
            for number in [offset, certificate.data.len()] {
                table.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
            }
            offset += certificate.data.len();
        }
        table.extend([0; ENTRY_BYTES]);
        for certificate in certificates {
            table.extend(&certificate.data);
        }
        table
    }
}

fn kind(guid: &[u8]) -> CertificateKind {
    let known = KINDS.iter().find(|(known, _)| known == guid);
    known.map_or_else(
        || CertificateKind::Other(written(guid)),
        |(_, kind)| kind.clone(),
    )
}

fn guid_of(kind: &CertificateKind) -> [u8; 16] {
    let known = KINDS.iter().find(|(_, known)| known == kind);
    known.map_or([0xff; 16], |(guid, _)| *guid)
}

/// In the usual form; the bytes are in the order of RFC 4122, as the `sev` crate reads them.
fn written(guid: &[u8]) -> String {
    let text = hex::encode(guid);
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| text.get(part).unwrap_or_default());
    parts.join("-")
}

/// A GUID in the order of its text.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let value = ((a as u128) << 96) | ((b as u128) << 80) | ((c as u128) << 64) | d as u128;
    value.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(kind: CertificateKind, data: &[u8]) -> Certificate {
        Certificate {
            kind,
            data: data.to_vec(),
        }
    }

    #[test]
    fn a_table_is_read_back() {
        let all = [
            certificate(CertificateKind::Vcek, b"vcek"),
            certificate(CertificateKind::Ask, b"ask"),
            certificate(CertificateKind::Ark, b"the root"),
        ];
        let mut table = Certificate::to_table(&all);
        // Kernels give whole pages.
        table.resize(4096, 0);
        assert_eq!(Certificate::table(&table).unwrap(), all);
        // The VCEK's GUID as the specification writes it.
        assert_eq!(
            hex::encode(&table[..16]),
            "63da758de6644564adc5f4b93be8accd"
        );
        assert_eq!(Certificate::table(&[]), Ok(Vec::new()));
        table[0] = 0;
        let [other, ..] = &Certificate::table(&table).unwrap()[..] else {
            panic!()
        };
        let name = "00da758d-e664-4564-adc5-f4b93be8accd".to_owned();
        assert_eq!(other.kind, CertificateKind::Other(name));
    }

    #[test]
    fn what_is_no_table_is_refused_by_name() {
        let one = certificate(CertificateKind::Vcek, b"vcek");
        let table = Certificate::to_table(std::slice::from_ref(&one));
        let refused = |bytes: &[u8]| Certificate::table(bytes).unwrap_err();
        assert_eq!(refused(&table[..24]), TableError::Place(0));
        let mut open = table.clone();
        open.truncate(28);
        open[16..20].copy_from_slice(&24u32.to_le_bytes());
        assert_eq!(refused(&open), TableError::Open);
        let mut far = table.clone();
        far[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(refused(&far), TableError::Place(0));
        let many = vec![one; CERTIFICATES + 1];
        assert_eq!(refused(&Certificate::to_table(&many)), TableError::Entries);
        let long = vec![0; TABLE_BYTES + 1];
        assert_eq!(refused(&long), TableError::Length(long.len()));
    }
}
