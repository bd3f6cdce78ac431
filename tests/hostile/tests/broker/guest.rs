//! Honest guests of each kind: what they say is what gets mutated.

use std::sync::LazyLock;

use evidence::{
    Tee,
    eventlog::EventKind,
    init_data::{InitData, InitDataDigest},
    sample::SampleEvidence,
    sim::{snp, tdx},
    snp::{Generation, Report},
    tdx::{Body, Header},
};
use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, InitData as Sent, Jwe, KeyKind, PREFIX, RuntimeData,
    TeeEvidence, TeeKeyPair, TokenResponse, report_data,
};
use serde_json::{Value, json};

use crate::http::{Connection, Request};
use crate::served::{RESOURCE, SECRET};

const FROM: i64 = 1_700_000_000;
const UNTIL: i64 = 2_400_000_000;
const SNP_VALIDITY: snp::Validity = snp::Validity {
    from: FROM,
    until: UNTIL,
};
const TDX_VALIDITY: tdx::Validity = tdx::Validity {
    from: FROM,
    until: UNTIL,
};

/// The kinds, one slice each in turn.
pub(crate) const KINDS: [Tee; 3] = [Tee::Sample, Tee::SimSnp, Tee::SimTdx];

pub(crate) static SNP_ROOT: LazyLock<snp::DevelopmentRoot> =
    LazyLock::new(|| snp::DevelopmentRoot::generate(SNP_VALIDITY).unwrap());
pub(crate) static TD_ROOT: LazyLock<tdx::DevelopmentRoot> =
    LazyLock::new(|| tdx::DevelopmentRoot::generate(TDX_VALIDITY).unwrap());

/// A guest that attested.
pub(crate) struct Guest {
    pub(crate) kind: Tee,
    pub(crate) cookie: String,
    pub(crate) request: AttestRequest,
    pub(crate) body: Vec<u8>,
    pub(crate) token: String,
    key: TeeKeyPair,
}

impl Guest {
    /// Asks for a challenge and answers it. The number makes its launch differ from the other's.
    pub(crate) fn attested(connection: &mut Connection, kind: Tee, number: u8) -> Self {
        let auth = serde_json::to_vec(&AuthRequest::new(kind.name())).unwrap();
        let ask = Request::new("POST", &format!("{PREFIX}/auth")).body(auth);
        let answer = connection.ask(&ask).unwrap();
        let challenge: AuthResponse = serde_json::from_slice(&answer.body).unwrap();
        let key = TeeKeyPair::generate(KeyKind::P256).unwrap();
        let runtime_data = RuntimeData {
            nonce: challenge.nonce,
            tee_pubkey: key.public(),
        };
        let algorithm = if kind == Tee::SimSnp {
            "sha256"
        } else {
            "sha384"
        };
        let init_data = format!(
            "version = \"0.1.0\"\nalgorithm = \"{algorithm}\"\n\n[data]\n\
             \"policy.rego\" = \"package agent_policy # {number}\"\n\
             \"aa.toml\" = \"url = 'http://broker'\"\n"
        );
        let digest = InitData::parse(init_data.as_bytes()).unwrap().digest();
        let bound = report_data(&runtime_data.nonce, &runtime_data.tee_pubkey, "");
        let request = AttestRequest {
            init_data: Some(Sent::toml(init_data)),
            runtime_data,
            tee_evidence: TeeEvidence {
                primary_evidence: evidence(kind, number, &bound, &digest),
                additional_evidence: String::new(),
            },
            resource: None,
        };
        let mut guest = Self {
            kind,
            cookie: answer.cookie().unwrap().to_owned(),
            body: serde_json::to_vec(&request).unwrap(),
            request,
            token: String::new(),
            key,
        };
        guest.token = guest.attest(connection);
        guest
    }

    pub(crate) fn ask(&self) -> Request {
        Request::new("POST", &format!("{PREFIX}/attest"))
            .with("cookie", self.cookie.clone())
            .with("content-type", "application/json")
            .body(self.body.clone())
    }

    fn attest(&self, connection: &mut Connection) -> String {
        let answer = connection.ask(&self.ask()).unwrap();
        assert_eq!(answer.status, 200, "{:?}: {answer:?}", self.kind);
        let token: TokenResponse = serde_json::from_slice(&answer.body).unwrap();
        token.token
    }

    pub(crate) fn fetch(&self) -> Request {
        Request::new("GET", &format!("{PREFIX}/resource/{RESOURCE}"))
            .with("authorization", format!("Bearer {}", self.token))
    }

    /// Whether the secret is in this answer, for this guest.
    pub(crate) fn opens(&self, body: &[u8]) -> bool {
        let jwe = serde_json::from_slice::<Jwe>(body);
        let opened = jwe.ok().and_then(|jwe| self.key.open(&jwe).ok());
        opened.is_some_and(|secret| secret.expose() == SECRET.as_bytes())
    }

    /// That it is still served.
    pub(crate) fn is_served(&self, connection: &mut Connection) {
        self.attest(connection);
        let answer = connection.ask(&self.fetch()).unwrap();
        assert!(self.opens(&answer.body), "{:?}: {answer:?}", self.kind);
    }
}

fn evidence(kind: Tee, number: u8, bound: &[u8], init_data: &InitDataDigest) -> Value {
    match kind {
        Tee::SimSnp => of_snp(number, bound, init_data),
        Tee::SimTdx => of_td(number, bound, init_data),
        _ => serde_json::to_value(SampleEvidence::new(bound, Some(init_data))).unwrap(),
    }
}

fn of_snp(number: u8, bound: &[u8], init_data: &InitDataDigest) -> Value {
    static CHIP: LazyLock<snp::ChipKey> = LazyLock::new(|| {
        let report = Report::simulated(3, Generation::Genoa);
        let chip = snp::Chip::of(&report, Generation::Genoa, SNP_VALIDITY);
        SNP_ROOT.chip(&chip).unwrap()
    });
    let mut report = Report {
        measurement: [number; 48],
        ..Report::simulated(3, Generation::Genoa)
    };
    report.report_data[..bound.len()].copy_from_slice(bound);
    let digest = init_data.as_bytes();
    report.host_data.copy_from_slice(&digest[..32]);
    serde_json::to_value(CHIP.evidence(report).unwrap()).unwrap()
}

fn of_td(number: u8, bound: &[u8], init_data: &InitDataDigest) -> Value {
    let log = tdx::LogBuilder::new()
        .event(1, EventKind::Separator, &[0; 4])
        .event(2, EventKind::EfiPlatformFirmwareBlob2, &[number; 8])
        .event(3, EventKind::EventTag, b"quiet")
        .aael("coco.com", "pull", r#"{"image":"busybox"}"#);
    let mut body = Body {
        mr_td: [number; 48],
        ..Body::simulated(log.registers())
    };
    body.report_data[..bound.len()].copy_from_slice(bound);
    let digest = init_data.as_bytes();
    body.mr_config_id[..digest.len()].copy_from_slice(digest);
    let platform = TD_ROOT
        .platform(&tdx::Platform::simulated(TDX_VALIDITY))
        .unwrap();
    let enclave = platform.enclave(&tdx::Enclave::default()).unwrap();
    let evidence = enclave
        .evidence(Header::simulated(4), body, Some(log.finish()))
        .unwrap();
    serde_json::to_value(evidence).unwrap()
}

/// What the development root signed beside evidence, as a broker reads it.
pub(crate) fn collateral() -> Value {
    let offer = tdx::Offer::simulated(TDX_VALIDITY);
    let set = serde_json::to_value(TD_ROOT.collateral(&offer).unwrap()).unwrap();
    json!({"crls": [], "tdx": [set]})
}
