//! What the broker and the guest read of SEV-SNP: reports, and the host's table of certificates.

use evidence::snp::{Certificate, CertificateKind, Generation, Report};

use crate::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "snp_report",
        run: report,
        seeds: reports,
    },
    Target {
        name: "snp_table",
        run: table,
        seeds: tables,
    },
];

fn report(data: &[u8]) {
    if let Ok(report) = Report::parse(data) {
        let written = report.to_bytes();
        let again = written.map(|bytes| Report::parse(&bytes));
        assert!(
            matches!(&again, Ok(Ok(again)) if *again == report),
            "{again:?}"
        );
    }
}

fn reports() -> Vec<Vec<u8>> {
    let generations = [Generation::Milan, Generation::Genoa, Generation::Turin];
    let bytes = |generation| Report::simulated(3, generation).to_bytes().ok();
    let bytes = generations.into_iter().filter_map(bytes);
    bytes.map(|report| report.to_vec()).collect()
}

/// What is read is within what was given, however the entries lie.
fn table(data: &[u8]) {
    if let Ok(certificates) = Certificate::table(data) {
        for certificate in certificates {
            assert!(certificate.data.len() <= data.len());
        }
    }
}

fn tables() -> Vec<Vec<u8>> {
    let certificate = |kind, data: &[u8]| Certificate {
        kind,
        data: data.to_vec(),
    };
    let all = [
        certificate(CertificateKind::Vcek, b"vcek"),
        certificate(CertificateKind::Ask, b"ask"),
        certificate(CertificateKind::Ark, b"the root"),
    ];
    let mut page = Certificate::to_table(&all);
    page.resize(4096, 0);
    vec![
        Certificate::to_table(&all),
        page,
        Certificate::to_table(&[]),
    ]
}
