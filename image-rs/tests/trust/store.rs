//! A repository in memory, and the question that every test asks of it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use image_rs::policy::{Policy, PolicyError};
use image_rs::registry::RegistryError;
use image_rs::signature::{self, Documents, Lookaside, Reason, Refusal, Signable, SignatureStore};
use image_rs::{Digest, Reference};
use serde_json::{Value, json};

use crate::maker::NOW;

/// What the tests pull.
pub(crate) const IMAGE: &str = "quay.io/team/app:v1";

/// A repository.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) manifests: HashMap<String, Bytes>,
    pub(crate) blobs: HashMap<Digest, Bytes>,
    pub(crate) referrers: HashMap<Digest, Bytes>,
    pub(crate) simple: HashMap<Digest, Bytes>,
    pub(crate) aside: HashMap<String, Bytes>,
    /// A request whose name contains this fails.
    pub(crate) broken: Option<&'static str>,
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Store {
    fn ask(&self, what: String) -> Result<(), RegistryError> {
        let broken = self.broken.is_some_and(|part| what.contains(part));
        self.asked.lock().unwrap().push(what.clone());
        if broken {
            let detail = "out of order".to_owned();
            return Err(RegistryError::Status {
                what,
                status: 500,
                detail,
            });
        }
        Ok(())
    }

    /// Puts an artifact with these layers under `name`; gives its digest.
    pub(crate) fn artifact(
        &mut self,
        name: &str,
        artifact_type: &str,
        layers: &[(&str, Vec<u8>, Value)],
    ) -> Digest {
        let mut descriptors = Vec::new();
        for (media_type, bytes, annotations) in layers {
            let digest = Digest::of(bytes);
            descriptors.push(json!({
                "mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations,
            }));
            self.blobs.insert(digest, bytes.clone().into());
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": artifact_type,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2},
            "layers": descriptors,
        });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let digest = Digest::of(&bytes);
        self.manifests.insert(name.to_owned(), bytes.clone().into());
        self.manifests.insert(digest.to_string(), bytes.into());
        digest
    }

    /// Lists artifacts as referrers of `subject`.
    pub(crate) fn refer(&mut self, subject: &Digest, artifacts: &[(&str, Digest)]) {
        self.referrers.insert(subject.clone(), index(artifacts));
    }

    /// Puts cosign's signatures of `document` under their tag.
    pub(crate) fn cosign(&mut self, document: &Signable, layers: &[(Vec<u8>, Value)]) {
        let tag = format!("sha256-{}.sig", document.digest.hex());
        let media_type = "application/vnd.dev.cosign.simplesigning.v1+json";
        let layers: Vec<_> = layers
            .iter()
            .map(|(payload, annotations)| (media_type, payload.clone(), annotations.clone()))
            .collect();
        self.artifact(&tag, "", &layers);
    }
}

/// A list of referrers.
pub(crate) fn index(artifacts: &[(&str, Digest)]) -> Bytes {
    let entry = |(kind, digest): &(&str, Digest)| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": kind,
               "digest": digest, "size": 1})
    };
    let entries: Vec<Value> = artifacts.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "manifests": entries});
    serde_json::to_vec(&index).unwrap().into()
}

#[async_trait]
impl SignatureStore for Store {
    async fn manifest(&self, name: &str) -> Result<Option<Bytes>, RegistryError> {
        self.ask(format!("manifest {name}"))?;
        Ok(self.manifests.get(name).cloned())
    }

    async fn blob(&self, digest: &Digest, _: usize) -> Result<Bytes, RegistryError> {
        self.ask(format!("blob {digest}"))?;
        Ok(self.blobs[digest].clone())
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Bytes>, RegistryError> {
        self.ask(format!("referrers {digest}"))?;
        Ok(self.referrers.get(digest).cloned())
    }

    async fn simple_signatures(&self, digest: &Digest) -> Result<Option<Bytes>, RegistryError> {
        self.ask(format!("simple {digest}"))?;
        Ok(self.simple.get(digest).cloned())
    }

    async fn aside(&self, url: &str, _: usize) -> Result<Option<Bytes>, RegistryError> {
        self.ask(format!("aside {url}"))?;
        Ok(self.aside.get(url).cloned())
    }
}

/// A manifest of an image.
pub(crate) fn manifest() -> Signable {
    let descriptor = |kind: &str| json!({"mediaType": kind, "digest": Digest::of(b"x"), "size": 1});
    signable(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar")],
    }))
}

pub(crate) fn signable(document: &Value) -> Signable {
    let bytes = serde_json::to_vec(document).unwrap();
    Signable {
        digest: Digest::of(&bytes),
        bytes: bytes.into(),
    }
}

/// A policy with this list of requirements for every image.
pub(crate) fn policy(requirements: &Value) -> Policy {
    let policy = json!({"default": requirements});
    Policy::from_json(&serde_json::to_vec(&policy).unwrap()).unwrap()
}

/// Whether the policy allows `IMAGE`, whose manifest is [`manifest`].
pub(crate) async fn check(policy: &Policy, store: &Store) -> Result<(), PolicyError> {
    let documents = Documents::new(manifest(), None).unwrap();
    check_as(policy, store, IMAGE, &documents).await
}

pub(crate) async fn check_as(
    policy: &Policy,
    store: &Store,
    image: &str,
    documents: &Documents,
) -> Result<(), PolicyError> {
    let lookaside = br#"{"default-docker": {"lookaside": "https://sigs.example"}}"#;
    let lookaside = Lookaside::from_json(lookaside).unwrap();
    ask(policy, store, image, documents, &lookaside).await
}

/// As [`check`], where no place beside the registry is known.
pub(crate) async fn check_without_lookaside(
    policy: &Policy,
    store: &Store,
) -> Result<(), PolicyError> {
    let documents = Documents::new(manifest(), None).unwrap();
    ask(policy, store, IMAGE, &documents, &Lookaside::default()).await
}

async fn ask(
    policy: &Policy,
    store: &Store,
    image: &str,
    documents: &Documents,
    lookaside: &Lookaside,
) -> Result<(), PolicyError> {
    let image: Reference = image.parse().unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let demand = policy.demand(&image)?;
    signature::check(&demand, &image, documents, store, lookaside, now).await
}

pub(crate) fn refusal(result: Result<(), PolicyError>) -> Refusal {
    match result.unwrap_err() {
        PolicyError::Unsigned(refusal) => *refusal,
        other => panic!("{other}"),
    }
}

/// The one reason of a refusal.
pub(crate) fn reason(result: Result<(), PolicyError>) -> Reason {
    let refusal = refusal(result);
    let [unmet] = refusal.unmet.as_slice() else {
        panic!("{refusal}")
    };
    let [(_, reason)] = unmet.reasons.as_slice() else {
        panic!("{refusal}")
    };
    reason.clone()
}
