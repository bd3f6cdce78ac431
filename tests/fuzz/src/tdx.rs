//! What the broker reads of a TDX guest and of Intel's provisioning service: quotes, event logs, the
//! JSON around them, and collateral.

use std::sync::LazyLock;

use evidence::{
    eventlog::{EventClaims, EventKind, EventLog},
    sim::tdx::{DevelopmentRoot, Enclave, LogBuilder, Offer, Platform, SimError, Validity},
    tdx::{Body, Header, Quote, TdxEvidence},
};
use verifier::{
    Bindings,
    tdx::{Collateral, Parts, Roots, needs, parse, verify},
};

use crate::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "tdx_event_log",
        run: event_log,
        seeds: logs,
    },
    Target {
        name: "tdx_quote",
        run: quote,
        seeds: quotes,
    },
    Target {
        name: "tdx_evidence",
        run: evidence,
        seeds: messages,
    },
    Target {
        name: "tdx_parts",
        run: parts,
        seeds: collaterals,
    },
];

const NOW: u64 = 1_790_000_000;
const VALIDITY: Validity = Validity {
    from: 1_700_000_000,
    until: 2_000_000_000,
};

/// A simulated platform with all that a verification of its evidence needs.
struct Simulated {
    evidence: TdxEvidence,
    collateral: Vec<u8>,
    roots: Roots,
    prepared: Collateral,
}

/// Nothing where the machine has no randomness.
static SIMULATED: LazyLock<Option<Simulated>> = LazyLock::new(simulate);

fn event_log(data: &[u8]) {
    let Ok(log) = EventLog::parse(data) else {
        return;
    };
    let claims: Vec<_> = log.events().iter().map(EventClaims::from).collect();
    assert!(serde_json::to_value(claims).is_ok());
    if let Ok(registers) = log.replay() {
        let extended: usize = registers.iter().map(|register| register.events).sum();
        assert!(extended <= log.events().len());
    }
}

fn quote(data: &[u8]) {
    if let Ok(quote) = Quote::parse(data) {
        let written = quote.to_bytes();
        assert!(data.starts_with(&written));
        assert_eq!(Quote::parse(&written).as_ref(), Ok(&quote));
    }
}

fn evidence(data: &[u8]) {
    let mut json = serde_json::Deserializer::from_slice(data);
    let Some(sim) = &*SIMULATED else {
        return;
    };
    let Ok(evidence) = parse(&sim.roots, &mut json) else {
        return;
    };
    let again = serde_json::to_value(&evidence).map(|sent| parse(&sim.roots, &sent));
    assert!(again.is_ok_and(|read| read.as_ref() == Ok(&evidence)));
    let _ = needs(&evidence);
    let bindings = Bindings {
        report_data: [7; 48],
        init_data: None,
    };
    let verdict = verify(&evidence, &sim.roots, &sim.prepared, &bindings, NOW);
    let signed = |evidence: &TdxEvidence| evidence.quote().signed_bytes();
    assert!(verdict.is_err() || signed(&evidence) == signed(&sim.evidence));
}

fn parts(data: &[u8]) {
    let (Some(sim), Ok(parts)) = (&*SIMULATED, serde_json::from_slice::<Parts>(data)) else {
        return;
    };
    let documents = (parts.tcb_info.clone(), parts.qe_identity.clone());
    if Collateral::prepare(&sim.roots, parts).is_ok() {
        let good = serde_json::from_slice::<Parts>(&sim.collateral);
        assert!(good.is_ok_and(|good| (good.tcb_info, good.qe_identity) == documents));
    }
}

fn log() -> LogBuilder {
    LogBuilder::new()
        .event(1, EventKind::Separator, &[0; 4])
        .event(2, EventKind::EfiAction, b"Exit Boot Services Invocation")
        .event(2, EventKind::NoAction, b"x")
        .event(3, EventKind::Ipl, b"grub_cmd: linux\0")
        .event(3, EventKind::EventTag, b"\0\0\0\0\x05\0\0\0quiet")
        .event(1, EventKind::EfiVariableBoot, &variable())
        .event(2, EventKind::EfiBootServicesApplication, &image())
        .aael("coco.com", "pull", r#"{"image":"busybox"}"#)
}

fn variable() -> Vec<u8> {
    let mut data = vec![0x61; 16];
    data.extend([2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    data.extend(b"d\0b\0\x01");
    data
}

fn image() -> Vec<u8> {
    const PATH: &[u8] = b"\x01\x01\x06\0\0\x01\x02\x01\x0c\0\xd0\x41\x03\x0a\0\0\0\0\
        \x04\x04\x08\0k\0\0\0\x7f\xff\x04\0";
    let mut data = vec![0; 24];
    data.extend((PATH.len() as u64).to_le_bytes());
    data.extend(PATH);
    data
}

fn logs() -> Vec<Vec<u8>> {
    vec![LogBuilder::new().finish(), log().finish()]
}

fn quotes() -> Vec<Vec<u8>> {
    let sim = SIMULATED.iter();
    sim.map(|sim| sim.evidence.bytes().to_vec()).collect()
}

fn messages() -> Vec<Vec<u8>> {
    let sim = SIMULATED.iter();
    sim.filter_map(|sim| serde_json::to_vec(&sim.evidence).ok())
        .collect()
}

fn collaterals() -> Vec<Vec<u8>> {
    let sim = SIMULATED.iter();
    sim.map(|sim| sim.collateral.clone()).collect()
}

fn simulate() -> Option<Simulated> {
    let root = DevelopmentRoot::generate(VALIDITY).ok()?;
    let collateral =
        serde_json::to_vec(&root.collateral(&Offer::simulated(VALIDITY)).ok()?).ok()?;
    let roots = Roots::development(&root.certificates_pem().ok()?).ok()?;
    let parts = serde_json::from_slice(&collateral).ok()?;
    Some(Simulated {
        evidence: guest(&root).ok()?,
        prepared: Collateral::prepare(&roots, parts).ok()?,
        collateral,
        roots,
    })
}

fn guest(root: &DevelopmentRoot) -> Result<TdxEvidence, SimError> {
    let platform = root.platform(&Platform::simulated(VALIDITY))?;
    let mut body = Body::simulated(log().registers());
    body.report_data[..48].fill(7);
    let enclave = platform.enclave(&Enclave::default())?;
    enclave.evidence(Header::simulated(5), body, Some(log().finish()))
}
