//! Every refusal has to name its cause: good evidence and good requests with one fault each, and what
//! `kbs explain` says of them. The score is the share that is named exactly.
#![allow(clippy::unwrap_used)]

mod corpus;
mod deployment;
mod platform;

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use corpus::{Case, Fault, Release, launch, message, reference, references, release, td};
use deployment::{Answer, Deployment, Guest, SECRET};
use http::{Method, StatusCode};
use kbs_protocol::ErrorInformation;
use platform::{Platform, broker, td::Td};
use serde_json::{Map, Value, json};

pub(crate) const DEFAULT_APPRAISAL: &str = policies::appraisal::DEFAULT;
const PATH: &str = "resource/default/key/1";
const INIT_DATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n";
/// Releases to whom the appraisal affirms, simulated or not.
const AFFIRMED: &str = r#"package policy
default allow := false
allow if {
	count(input.submods) > 0
	count(reasons) == 0
}
reasons contains {
	"claim": sprintf("submods.%s.ear.status", [name]),
	"expected": "affirming",
	"found": submod["ear.status"],
	"fix": "register reference values",
} if {
	some name, submod in input.submods
	submod["ear.status"] != "affirming"
}
"#;
/// What a score has to reach, in percent.
const GOAL: usize = 95;

/// The default appraisal, which here takes simulated SEV-SNP for the real one.
fn appraisal() -> String {
    let text = ["sim-snp", "sim-tdx"]
        .iter()
        .fold(DEFAULT_APPRAISAL.to_owned(), |text, kind| {
            text.replace(&format!("[simulated(\"{kind}\")]"), "[]")
        });
    assert_ne!(
        text, DEFAULT_APPRAISAL,
        "the default policy was rewritten: adapt the corpus"
    );
    text
}

struct Owner {
    broker: Deployment,
    token: String,
}

impl Owner {
    fn new() -> Self {
        let broker = broker(&[]);
        let token = broker.admin_token();
        let secret = broker.write("secret", SECRET);
        broker.own(&["resource", "set", "default/key/1", "--file", &secret]);
        Self { broker, token }
    }

    async fn ask(&self, method: Method, path: &str, body: String) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("authorization", bearer.as_str())];
        let answer = self.broker.ask(method, path, &headers, body).await;
        assert!(answer.status.is_success(), "{path}: {:?}", answer.body);
        answer
    }

    async fn policy(&self, path: &str, id: &str, rego: &str) {
        let policy = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(rego);
        let body = json!({"type": "rego", "policy_id": id, "policy": policy});
        self.ask(Method::POST, path, body.to_string()).await;
    }

    async fn release(&self, rego: &str) {
        self.policy("resource-policy", "resource-policy", rego)
            .await;
    }

    async fn appraise(&self, rego: &str) {
        self.policy("attestation-policy", "default_cpu", rego).await;
    }

    /// Registers exactly these.
    async fn register(&self, values: &Map<String, Value>) {
        for name in references()
            .keys()
            .filter(|name| !values.contains_key(*name))
        {
            self.ask(
                Method::DELETE,
                &format!("reference-value/{name}"),
                String::new(),
            )
            .await;
        }
        let payload = BASE64_STANDARD.encode(Value::Object(values.clone()).to_string());
        let body = json!({"version": "0.1.0", "type": "sample", "payload": payload});
        self.ask(Method::POST, "reference-value", body.to_string())
            .await;
    }

    /// The first cause of a refusal: its claim, and what was expected and found.
    async fn told(&self, refused: &Answer) -> (String, String) {
        let error: ErrorInformation = serde_json::from_slice(&refused.body).unwrap();
        let kind = error
            .kind()
            .map_or(String::new(), |kind| kind.name().to_owned());
        let explained = match &error.ticket {
            Some(ticket) => {
                let bearer = format!("Bearer {}", self.token);
                let headers = [("authorization", bearer.as_str())];
                let path = format!("explain/{ticket}");
                self.broker.ask(Method::GET, &path, &headers, "").await
            }
            None => return (kind, error.detail),
        };
        if explained.status != StatusCode::OK {
            return (kind, error.detail);
        }
        let cause = &explained.json()["causes"][0];
        let text = |name: &str| cause[name].as_str().unwrap_or_default().to_owned();
        assert!(!text("fix").is_empty(), "{cause}");
        (
            text("claim"),
            format!("{} {}", text("expected"), text("found")),
        )
    }

    /// A guest that is good but for the fault.
    async fn guest(&self, fault: &Fault) -> Guest {
        if let Fault::Td(_) | Fault::TdMessage(_) = fault {
            let mut td = Td::new();
            if let Fault::Td(fault) = fault {
                fault(&mut td);
            }
            let mut guest = Guest::asked(&self.broker, "sim-tdx", Some(INIT_DATA)).await;
            td.prove(&mut guest.request);
            if let Fault::TdMessage(fault) = fault {
                fault(&mut guest.request);
            }
            return guest;
        }
        let mut platform = Platform::new();
        if let Fault::Launch(fault) = fault {
            fault(&mut platform);
        }
        let mut guest = platform.guest(&self.broker, Some(INIT_DATA)).await;
        if let Fault::Message(fault) = fault {
            fault(&mut guest.request);
        }
        guest
    }

    /// What the guest is refused with; nothing where it got the secret.
    async fn refusal(&self, case: &Case) -> Option<Answer> {
        let guest = self.guest(&case.fault).await;
        let attested = guest.attest(&self.broker).await;
        if attested.status != StatusCode::OK {
            return Some(attested);
        }
        let token = attested.json()["token"].as_str().unwrap().to_owned();
        let (path, token) = match &case.fault {
            Fault::Release(Release::Path(path)) => (*path, Some(token)),
            Fault::Release(Release::Token(change)) => (PATH, change(&token)),
            _ => (PATH, Some(token)),
        };
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer
            .iter()
            .map(|bearer| ("authorization", bearer.as_str()))
            .collect();
        let answer = self.broker.ask(Method::GET, path, &headers, "").await;
        (answer.status != StatusCode::OK).then_some(answer)
    }

    /// Puts the owner's side in order for a case.
    async fn prepare(&self, case: &Case) {
        match &case.fault {
            Fault::Reference(fault) => {
                let mut values = references();
                fault(&mut values);
                self.register(&values).await;
            }
            Fault::Release(Release::Policy(rego)) => self.release(rego).await,
            Fault::Release(Release::Appraisal(change)) => {
                self.appraise(&change(&appraisal())).await
            }
            _ => {}
        }
    }

    /// Makes everything good again.
    async fn restore(&self, case: &Case) {
        match &case.fault {
            Fault::Reference(_) => self.register(&references()).await,
            Fault::Release(Release::Policy(_)) => self.release(AFFIRMED).await,
            Fault::Release(Release::Appraisal(_)) => self.appraise(&appraisal()).await,
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_cause_of_a_refusal_is_named() {
    let owner = Owner::new();
    owner.release(AFFIRMED).await;
    owner.appraise(&appraisal()).await;
    owner.register(&references()).await;
    let good = corpus::case("nothing wrong", Fault::Message(|_| ()), "", "");
    if let Some(refused) = owner.refusal(&good).await {
        panic!(
            "the good guest is refused: {:?}",
            owner.told(&refused).await
        );
    }
    let cases: Vec<Case> = [
        launch::cases(),
        message::cases(),
        td::cases(),
        reference::cases(),
        release::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    assert!(cases.len() >= 100, "{} cases", cases.len());
    let mut missed = BTreeMap::new();
    for case in &cases {
        owner.prepare(case).await;
        let refused = owner.refusal(case).await;
        let Some(refused) = refused else {
            panic!("{}: the guest got the secret", case.name);
        };
        let (claim, text) = owner.told(&refused).await;
        if claim != case.claim || !text.contains(case.told) {
            missed.insert(case.name, (case.claim, case.told, claim, text));
        }
        owner.restore(case).await;
    }
    let exact = (cases.len() - missed.len()) * 100 / cases.len();
    println!(
        "{} of {} causes named exactly",
        cases.len() - missed.len(),
        cases.len()
    );
    println!("FIGURE kbs.explain.exact_percent {exact} percent >={GOAL}");
    for (name, missed) in &missed {
        println!("  {name}: {missed:?}");
    }
    assert!(exact >= GOAL, "{missed:#?}");
}
