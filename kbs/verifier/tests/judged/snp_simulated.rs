//! Simulated SEV-SNP evidence: valid evidence of every kind is accepted, and each single fault is
//! refused by its own name.

use crate::development;

use development::{Case, NOW, ROOT, ROOTS, VALIDITY, crl, platforms};
use evidence::{
    Tee,
    init_data::Algorithm,
    sim::snp::Validity,
    snp::{
        Certificate, CertificateKind, Generation, KeyInfo, Product, SIGNED_BYTES, SigningKey,
        SnpEvidence,
    },
};
use verifier::{
    Failure,
    snp::{self, Collateral, CrlRule, Role, Roots, SnpFailure, Vek},
};

#[test]
fn every_generation_and_version_is_accepted() {
    for (version, generation) in platforms() {
        let case = Case::new(version, generation);
        let claims = case.verify().unwrap();
        assert_eq!(claims.kind, Tee::SimSnp);
        let claim = |name: &str| claims.evidence[name].clone();
        assert_eq!(claim("generation"), generation.name());
        assert_eq!(claim("version"), version);
        assert_eq!(claim("reported_tcb_microcode"), 213);
        assert_eq!(claim("policy_debug_allowed"), false);
        assert_eq!(claim("signing_key"), "vcek");
        assert_eq!(claim("crl"), "checked");
        assert_eq!(claim("measurement"), "03".repeat(48));
        let fmc = generation.has_fmc().then_some(1);
        assert_eq!(claim("reported_tcb_fmc"), serde_json::json!(fmc));
        let vector = (version == 5).then_some(3);
        assert_eq!(claim("launch_mit_vector"), serde_json::json!(vector));
        assert_eq!(claims.init_data, Some(hex::encode(case.report.host_data)));
    }
}

#[test]
fn a_loaded_key_needs_no_chip() {
    let mut case = Case::new(3, Generation::Milan);
    case.chip.key = SigningKey::Vlek;
    case.report.key_info = KeyInfo(1 << 2);
    case.report.chip_id = [0; 64];
    assert_eq!(case.verify().unwrap().evidence["signing_key"], "vlek");
}

#[test]
fn debug_and_migration_are_claims() {
    let mut case = Case::new(3, Generation::Genoa);
    case.report.policy.0 |= 1 << 19 | 1 << 18;
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims["policy_debug_allowed"], true);
    assert_eq!(claims["policy_migrate_ma"], true);
}

type Fault = (&'static str, fn(&mut Case), &'static str);

const FAULTS: [Fault; 26] = [
    ("version", |c| version_2(c), "Version2"),
    ("VMPL", |c| c.report.vmpl = 1, "Vmpl"),
    ("nonce", |c| c.bindings.report_data[0] ^= 1, "ReportData"),
    (
        "report data",
        |c| c.report.report_data[0] ^= 1,
        "ReportData",
    ),
    ("padding", |c| c.report.report_data[63] = 1, "ReportData"),
    (
        "init-data",
        |c| c.bindings.init_data = Some(Algorithm::Sha384.digest(b"other")),
        "InitData",
    ),
    ("host data", |c| c.report.host_data[31] ^= 1, "InitData"),
    ("no host data", |c| c.report.host_data = [0; 32], "InitData"),
    ("chip", |c| c.report.chip_id[0] ^= 1, "ChipId"),
    ("chip's padding", |c| c.report.chip_id[63] ^= 1, "ChipId"),
    ("masked chip", |c| c.report.chip_id = [0; 64], "ChipMasked"),
    ("certificate's chip", |c| c.chip.chip_id[1] ^= 1, "ChipId"),
    (
        "FMC",
        |c| c.report.reported_tcb.fmc = Some(2),
        "reported_tcb_fmc",
    ),
    ("no FMC", |c| c.chip.tcb.fmc = None, "reported_tcb_fmc"),
    (
        "boot loader",
        |c| c.report.reported_tcb.bootloader -= 1,
        "reported_tcb_bootloader",
    ),
    (
        "TEE",
        |c| c.report.reported_tcb.tee -= 1,
        "reported_tcb_tee",
    ),
    (
        "SNP",
        |c| c.report.reported_tcb.snp -= 1,
        "reported_tcb_snp",
    ),
    (
        "microcode",
        |c| c.chip.tcb.microcode += 1,
        "reported_tcb_microcode",
    ),
    ("masked key", |c| c.report.key_info = KeyInfo(2), "Unsigned"),
    (
        "no key",
        |c| c.report.key_info = KeyInfo(7 << 2),
        "Unsigned",
    ),
    (
        "VLEK said",
        |c| c.report.key_info = KeyInfo(1 << 2),
        "SigningKey",
    ),
    (
        "VLEK brought",
        |c| c.chip.key = SigningKey::Vlek,
        "SigningKey",
    ),
    ("clock behind", |c| c.now = 1_600_000_000, "NotYetValid"),
    ("clock ahead", |c| c.now = 2_100_000_000, "Expired"),
    (
        "old key",
        |c| c.chip.validity.until = 1_750_000_000,
        "Expired",
    ),
    ("no list", |c| c.crls.clear(), "CrlAbsent"),
];

fn version_2(case: &mut Case) {
    case.report.version = 2;
    case.report.cpuid_fam_id = None;
    case.report.cpuid_mod_id = None;
    case.report.cpuid_step = None;
    case.report.launch_mit_vector = None;
    case.report.current_mit_vector = None;
}

#[test]
fn each_single_fault_has_its_own_name() {
    for (name, fault, expected) in FAULTS {
        let mut case = Case::new(5, Generation::Turin);
        fault(&mut case);
        let failure = case.verify().unwrap_err();
        let shown = format!("{failure:?}");
        assert!(shown.contains(expected), "{name}: {shown}");
        let explanation = failure.explain();
        assert!(
            !explanation.fix.is_empty() && explanation.expected != explanation.found,
            "{name}"
        );
    }
}

#[test]
fn each_signed_bit_counts() {
    let case = Case::new(3, Generation::Milan);
    let evidence = case.evidence();
    let vek = Vek::from_evidence(&ROOTS, Product::Milan, &evidence).unwrap();
    for at in 0..SIGNED_BYTES {
        let mut bytes = *evidence.bytes();
        bytes[at] ^= 1 << (at % 8);
        let Ok(changed) = SnpEvidence::new(&bytes, Vec::new()) else {
            continue;
        };
        let verdict = case.judge(&changed, Some(&vek));
        assert!(verdict.is_err(), "byte {at}");
    }
}

fn refused(case: &Case) -> SnpFailure {
    match case.verify() {
        Err(Failure::Snp(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn revocation_is_obeyed() {
    let mut case = Case::new(3, Generation::Milan);
    case.chip.serial = 41;
    case.crls = vec![crl(0, Product::Milan, &[2], VALIDITY)];
    assert!(matches!(
        refused(&case),
        SnpFailure::Revoked {
            role: Role::Ask,
            ..
        }
    ));

    case.crls = vec![
        crl(0, Product::Milan, &[], VALIDITY),
        crl(1, Product::Milan, &[41], VALIDITY),
    ];
    assert!(matches!(
        refused(&case),
        SnpFailure::Revoked {
            role: Role::Vcek,
            ..
        }
    ));

    let past = Validity {
        from: VALIDITY.from,
        until: VALIDITY.from + 1,
    };
    case.crls = vec![crl(0, Product::Milan, &[], past)];
    assert!(matches!(refused(&case), SnpFailure::CrlStale { .. }));

    case.crls = vec![crl(0, Product::Turin, &[], VALIDITY)];
    assert!(matches!(refused(&case), SnpFailure::CrlAbsent { .. }));

    case.crls.clear();
    case.rules.crl = CrlRule::MayBeAbsent;
    assert_eq!(case.verify().unwrap().evidence["crl"], "absent");
}

#[test]
fn certificates_beside_the_report_are_checked() {
    let case = Case::new(3, Generation::Milan);
    let evidence = case.evidence();
    let with = |certificates| {
        case.judge(
            &SnpEvidence::new(evidence.bytes(), certificates).unwrap(),
            None,
        )
        .map_err(|failure| failure.to_string())
    };
    let key = evidence.certificates()[0].clone();
    let [ark, ask, asvk] = ROOT.certificates().map(<[u8]>::to_vec);
    let entry = |kind, data| Certificate { kind, data };
    with(vec![
        key.clone(),
        entry(CertificateKind::Ask, ask.clone()),
        entry(CertificateKind::Ark, ark.clone()),
    ])
    .unwrap();
    let foreign = "brings an ASK that is not the prepared one";
    let swapped = vec![key.clone(), entry(CertificateKind::Ask, asvk)];
    assert!(with(swapped).unwrap_err().contains(foreign));
    assert!(
        with(Vec::new())
            .unwrap_err()
            .contains("no certificate of the key")
    );
    assert!(
        with(vec![key.clone(), key.clone()])
            .unwrap_err()
            .contains("more than one")
    );
    let relabelled = vec![entry(CertificateKind::Vlek, key.data)];
    assert!(
        with(relabelled)
            .unwrap_err()
            .contains("another kind of key")
    );
    let authority = vec![entry(CertificateKind::Vcek, ask)];
    assert!(with(authority).unwrap_err().contains("SEV-VCEK"));
}

#[test]
fn amd_does_not_answer_for_the_simulator() {
    let amd = Roots::amd().unwrap();
    assert_eq!(amd.kind(), Tee::Snp);
    for generation in Generation::ALL {
        let case = Case::new(3, generation);
        let collateral = Collateral::default();
        let verdict = snp::verify(
            &case.evidence(),
            &amd,
            collateral,
            &case.rules,
            &case.bindings,
            NOW,
        );
        assert!(matches!(
            verdict,
            Err(Failure::Snp(SnpFailure::Chain { what: "VCEK", .. }))
        ));
    }
}

#[test]
fn a_development_root_is_three_certificates() {
    let pem = ROOT.certificates_pem().unwrap();
    assert!(Roots::development("").is_err());
    assert!(Roots::development(&format!("{pem}{pem}")).is_err());
    assert!(Roots::development(&ROOT.to_pem().unwrap()).is_err());
}

/// As hardware's evidence a development root's is worth nothing, however it is varied, and under its own name
/// a broker that does not list it knows no such kind.
#[test]
fn none_of_5000_development_proofs_passes_a_broker_for_hardware() {
    let amd = Roots::amd().unwrap();
    let hardware = [Tee::Snp, Tee::Tdx].into();
    for kind in [Tee::SimSnp, Tee::SimTdx, Tee::Sample] {
        assert!(verifier::accept(kind.name(), &hardware).is_err());
    }
    let platforms: Vec<_> = platforms().collect();
    let keys: Vec<_> = platforms
        .iter()
        .map(|&(version, generation)| ROOT.chip(&Case::new(version, generation).chip).unwrap())
        .collect();
    let chain: Vec<_> = [CertificateKind::Ark, CertificateKind::Ask]
        .into_iter()
        .zip(ROOT.certificates())
        .map(|(kind, data)| Certificate {
            kind,
            data: data.to_vec(),
        })
        .collect();
    let mut passed = 0;
    for number in 0..5000_usize {
        let at = number % platforms.len();
        let (version, generation) = platforms[at];
        let mut case = Case::new(version, generation);
        case.report.measurement[number % 48] ^= 1 << (number % 8);
        case.report.host_data[number % 32] ^= u8::try_from(number % 3).unwrap();
        case.report.policy.0 ^= [0, 1 << 19, 1 << 16][number % 3];
        case.bindings.init_data = None;
        case.rules.crl = [CrlRule::Required, CrlRule::MayBeAbsent][number % 2];
        let evidence = keys[at].evidence(case.report.clone()).unwrap();
        // With and without the development chain beside the chip's key.
        let mut certificates = evidence.certificates().to_vec();
        certificates.extend(chain.iter().take(number % 3).cloned());
        let evidence = SnpEvidence::new(evidence.bytes(), certificates).unwrap();
        let raw = [serde_json::to_value(&evidence).unwrap(), evidence.raw()];
        let Ok(read) = snp::parse(&amd, &raw[number % 2]) else {
            continue;
        };
        let collateral = Collateral {
            vek: None,
            crls: &case.crls,
        };
        let verdict = snp::verify(&read, &amd, collateral, &case.rules, &case.bindings, NOW);
        passed += usize::from(verdict.is_ok());
        if number < platforms.len() {
            // What is refused there is sound under its own root.
            assert!(case.judge(&read, None).is_ok());
        }
    }
    assert_eq!(passed, 0);
}
