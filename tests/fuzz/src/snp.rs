//! What the broker and the guest read of SEV-SNP: reports, and the host's table of certificates.

use evidence::snp::{
    CERTIFICATE_BYTES, CERTIFICATES, Certificate, CertificateKind, Generation, Report,
};

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

/// Entries may lie over each other: what is copied is no more than the caps say.
fn table(data: &[u8]) {
    if let Ok(certificates) = Certificate::table(data) {
        assert!(certificates.len() <= CERTIFICATES);
        let mut lengths = certificates.iter().map(|one| one.data.len());
        assert!(lengths.all(|length| length <= CERTIFICATE_BYTES));
    }
}

fn tables() -> Vec<Vec<u8>> {
    let all = [
        (CertificateKind::Vcek, &b"vcek"[..]),
        (CertificateKind::Ask, b"ask"),
        (CertificateKind::Ark, b"the root"),
    ];
    let all = all.map(|(kind, data)| Certificate {
        kind,
        data: data.to_vec(),
    });
    let mut page = Certificate::to_table(&all);
    page.resize(4096, 0);
    vec![
        Certificate::to_table(&all),
        page,
        Certificate::to_table(&[]),
    ]
}
