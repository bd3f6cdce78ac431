//! Signed bundles: what one broker collected serves another that may ask nobody, and nothing else does.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use evidence::snp::{Generation, Product};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use kbs::collateral::{BundleError, Collateral, Config, Imported};
use serde_json::{Value, json};

use crate::{
    development,
    intel::{self, NEEDS},
    lab::{Lab, Machine, around, later, list},
    tdx_development,
};

/// A pair of keys in files.
struct Keys {
    private: PathBuf,
    public: PathBuf,
}

impl Keys {
    fn new(dir: &Path, name: &str) -> Self {
        let (private, public) = kbs::token::new_key().unwrap();
        Self::write(dir, name, &private, &public)
    }

    fn write(dir: &Path, name: &str, private: &str, public: &str) -> Self {
        let keys = Self {
            private: dir.join(format!("{name}.key")),
            public: dir.join(format!("{name}.pub")),
        };
        fs::write(&keys.private, private).unwrap();
        fs::write(&keys.public, public).unwrap();
        keys
    }

    fn sign(&self, head: &Value, contents: &Value) -> Vec<u8> {
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let (head, payload) = (encode(head), encode(contents));
        let key = EncodingKey::from_ec_pem(&fs::read(&self.private).unwrap()).unwrap();
        let signed = format!("{head}.{payload}");
        let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::ES256).unwrap();
        let jws = json!({"payload": payload, "protected": head, "signature": signature});
        jws.to_string().into_bytes()
    }
}

/// A broker that collected collateral, and its keys.
struct Collected {
    lab: Lab,
    machine: Machine,
    keys: Keys,
    bundle: Vec<u8>,
}

impl Collected {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let machine = Machine::new(Generation::Milan, 1);
        lab.knows(&machine);
        let collateral = open(&lab.config());
        machine.asks(&collateral).await.unwrap();
        let offer = intel::dated(0);
        let parts = tdx_development::parts(&tdx_development::ROOT, &offer);
        intel::serve(&lab, &parts);
        let now = SystemTime::now();
        let set = collateral.tdx(&tdx_development::ROOTS, &NEEDS, now).await;
        set.unwrap();
        let keys = Keys::new(lab.dir.path(), "signer");
        let (bundle, summary) = collateral.export(&keys.private, now).await.unwrap();
        assert_eq!(summary.documents.len(), 6);
        assert!(summary.left_out.is_empty());
        assert_eq!(summary.expires, offer.tcb_info.until);
        Self {
            lab,
            machine,
            keys,
            bundle,
        }
    }

    /// The bundle's contents, to be signed anew.
    fn contents(&self) -> Value {
        let jws: Value = serde_json::from_slice(&self.bundle).unwrap();
        let payload = jws["payload"].as_str().unwrap();
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap();
        serde_json::from_slice(&payload).unwrap()
    }
}

/// A broker that may ask nobody.
struct Alone {
    dir: tempfile::TempDir,
    collateral: Collateral,
}

impl Alone {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            directory: dir.path().join("cache"),
            fetch: false,
            ..Config::default()
        };
        let collateral = open(&config);
        Self { dir, collateral }
    }

    async fn takes(&self, bundle: &[u8], keys: &[&Keys]) -> Result<Imported, BundleError> {
        let keys: Vec<_> = keys.iter().map(|keys| keys.public.clone()).collect();
        self.collateral
            .import(bundle, &keys, SystemTime::now())
            .await
    }

    fn is_empty(&self) -> bool {
        !self.dir.path().join("cache").exists()
    }
}

fn open(config: &Config) -> Collateral {
    Collateral::open(config)
        .unwrap()
        .with_snp_roots(&development::ROOTS)
        .with_tdx_roots(&tdx_development::ROOTS)
}

fn head() -> Value {
    json!({"alg": "ES256", "typ": "cloister-collateral+json"})
}

#[tokio::test]
async fn what_one_broker_collected_serves_another_that_may_ask_nobody() {
    let collected = Collected::new().await;
    let alone = Alone::new();
    let before = collected.machine.asks(&alone.collateral).await;
    assert!(!before.unwrap_err().retry_helps());
    let imported = alone
        .takes(&collected.bundle, &[&collected.keys])
        .await
        .unwrap();
    assert_eq!((imported.taken.len(), imported.refused.len()), (6, 0));
    let set = collected.machine.asks(&alone.collateral).await.unwrap();
    collected.machine.verify(&set).unwrap();
    let roots = &tdx_development::ROOTS;
    let set = alone.collateral.tdx(roots, &NEEDS, SystemTime::now()).await;
    assert_eq!(set.unwrap().needs(), NEEDS);
    let again = alone
        .takes(&collected.bundle, &[&collected.keys])
        .await
        .unwrap();
    assert_eq!((again.taken.len(), again.known.len()), (0, 6));
    let listed = alone.collateral.list().await.unwrap();
    assert!(listed.iter().all(|file| file.state.is_ok()) && listed.len() == 6);
}

#[tokio::test]
async fn a_bundle_that_is_not_signed_as_it_is_by_a_named_key_is_refused_whole() {
    let collected = Collected::new().await;
    let keys = &collected.keys;
    let other = Keys::new(collected.lab.dir.path(), "other");
    let alone = Alone::new();
    for at in (0..collected.bundle.len()).step_by(101) {
        let mut changed = collected.bundle.clone();
        changed[at] ^= 1;
        assert!(alone.takes(&changed, &[keys]).await.is_err(), "byte {at}");
    }
    let mut unsigned: Value = serde_json::from_slice(&collected.bundle).unwrap();
    unsigned["signature"] = "".into();
    let unsigned = unsigned.to_string().into_bytes();
    let contents = collected.contents();
    let none = keys.sign(&json!({"alg": "none", "typ": head()["typ"]}), &contents);
    let token = keys.sign(&json!({"alg": "ES256", "typ": "JWT"}), &contents);
    let foreign = other.sign(&head(), &contents);
    let half = collected.bundle[..collected.bundle.len() / 2].to_vec();
    let plain = contents.to_string().into_bytes();
    for (name, text) in [
        ("unsigned", unsigned),
        ("none", none),
        ("another purpose", token),
        ("another key", foreign),
        ("half", half),
        ("plain", plain),
        ("empty", Vec::new()),
    ] {
        assert!(alone.takes(&text, &[keys]).await.is_err(), "{name}");
    }
    let refused = alone.takes(&collected.bundle, &[&other]).await;
    assert!(
        matches!(refused, Err(BundleError::Signature)),
        "{refused:?}"
    );
    let refused = alone.takes(&collected.bundle, &[]).await;
    assert!(matches!(refused, Err(BundleError::NoKeys)), "{refused:?}");
    assert!(alone.is_empty());
    // Not because of something else.
    let taken = alone
        .takes(&collected.bundle, &[&other, keys])
        .await
        .unwrap();
    assert_eq!(taken.taken.len(), 6);
}

#[tokio::test]
async fn a_signer_cannot_vouch_for_what_the_vendor_did_not_sign() {
    let collected = Collected::new().await;
    let change = |name: &str, change: fn(&mut Value)| {
        let mut contents = collected.contents();
        let documents = contents["documents"].as_array_mut().unwrap();
        let document = documents.iter_mut().find(|d| d["document"] == name);
        change(document.unwrap());
        collected.keys.sign(&head(), &contents)
    };
    fn last_letter(document: &mut Value) {
        let body = document["body"].as_str().unwrap();
        let at = body.len() - 40;
        let other = if &body[at..=at] == "A" { "B" } else { "A" };
        document["body"] = format!("{}{other}{}", &body[..at], &body[at + 1..]).into();
    }
    for (bundle, name, refused) in [
        (
            change("sim-snp.crl.Milan", last_letter),
            "a changed list",
            1,
        ),
        (
            change("sim-snp.crl.Milan", |d| {
                d["document"] = "snp.crl.Milan".into()
            }),
            "a simulated list as AMD's",
            1,
        ),
        (
            change("sim-tdx.root-crl", |d| {
                d["document"] = "tdx.root-crl".into()
            }),
            "a simulated list as Intel's",
            4,
        ),
        (
            change("sim-tdx.root-crl", last_letter),
            "a changed list of the root",
            4,
        ),
        (
            change("sim-tdx.qe-identity", |d| d["issuer_chain"] = "none".into()),
            "a changed chain",
            4,
        ),
    ] {
        let alone = Alone::new();
        let imported = alone.takes(&bundle, &[&collected.keys]).await.unwrap();
        assert_eq!(imported.refused.len(), refused, "{name}: {imported:?}");
        assert_eq!(imported.taken.len(), 6 - refused, "{name}: {imported:?}");
    }
    let alone = Alone::new();
    let mut twice = collected.contents();
    let documents = twice["documents"].as_array_mut().unwrap();
    documents.push(documents[0].clone());
    let mut early = collected.contents();
    early["made_at"] = json!(early["made_at"].as_i64().unwrap() + 3600);
    let mut versioned = collected.contents();
    versioned["version"] = json!(2);
    let mut more = collected.contents();
    more["trusted"] = json!(true);
    for contents in [twice, early, versioned, more] {
        let bundle = collected.keys.sign(&head(), &contents);
        assert!(alone.takes(&bundle, &[&collected.keys]).await.is_err());
    }
    assert!(alone.is_empty());
}

#[tokio::test]
async fn an_old_bundle_replaces_nothing_that_is_newer_or_has_ended() {
    let collected = Collected::new().await;
    // The broker has a newer list by now.
    let path = crate::lab::list_path(Product::Milan);
    collected.lab.service.give(&path, list(around(1, 31), &[2]));
    let config = collected.lab.config();
    let collateral = open(&config);
    collateral.look_after(later(2)).await;
    let file = config.directory.join("sim-snp.crl.Milan.json");
    let newer = fs::read(&file).unwrap();
    let keys = [collected.keys.public.clone()];
    let now = SystemTime::now();
    let imported = collateral
        .import(&collected.bundle, &keys, now)
        .await
        .unwrap();
    let names: Vec<_> = imported
        .refused
        .iter()
        .map(|(d, _)| d.to_string())
        .collect();
    assert_eq!(names, ["sim-snp.crl.Milan"]);
    assert_eq!(fs::read(&file).unwrap(), newer);
    let alone = Alone::new();
    let late = alone
        .collateral
        .import(&collected.bundle, &keys, later(40))
        .await;
    let late = late.unwrap();
    // The chip's certificate holds for years, lists and statements have ended.
    assert_eq!((late.taken.len(), late.refused.len()), (1, 5));
}

#[tokio::test]
async fn ed25519_keys_sign_bundles_too() {
    // RFC 8032, section 7.1, test 1.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    let collected = Collected::new().await;
    let keys = Keys::write(collected.lab.dir.path(), "ed", PRIVATE, PUBLIC);
    let collateral = open(&collected.lab.config());
    let now = SystemTime::now();
    let (bundle, _) = collateral.export(&keys.private, now).await.unwrap();
    let imported = Alone::new().takes(&bundle, &[&keys]).await.unwrap();
    assert_eq!(imported.taken.len(), 6);
    let empty = Alone::new().collateral.export(&keys.private, now).await;
    assert!(matches!(empty, Err(BundleError::Empty)), "{empty:?}");
}
