//! From the words of a requirement to the requirement: exactly one source of keys, and keys that are keys.

use super::error::PolicyError;
use super::identity::Identity;
use super::value::{Location, Value, Values};
use super::wire::{WireFulcio, WirePki, WireRequirement, WireSignedBy, WireSigstore};
use crate::signature::{
    Author, CertificateAuthority, Keyring, PublicKey, Requirement, SignedBy, SigstoreSigned,
    Subject,
};

/// Cap on the keys of one requirement.
const KEYS_MAX: usize = 64;

/// A requirement whose keys have not been fetched.
#[derive(Debug)]
pub(super) enum Draft {
    Accept,
    Reject,
    BaseLayer,
    SignedBy {
        keys: Vec<Value>,
        identity: Identity,
    },
    Sigstore {
        author: DraftAuthor,
        rekor: Vec<Value>,
        identity: Identity,
    },
}

/// Who signs.
#[derive(Debug)]
pub(super) enum DraftAuthor {
    Keys(Vec<Value>),
    Fulcio {
        roots: Value,
        issuer: String,
        subject: Subject,
        ct: Option<Value>,
    },
    Pki {
        roots: Value,
        intermediates: Option<Value>,
        subjects: Vec<Subject>,
    },
}

impl Draft {
    pub(super) fn new(wire: WireRequirement) -> Result<Self, String> {
        match wire {
            WireRequirement::Accept {} => Ok(Self::Accept),
            WireRequirement::Reject {} => Ok(Self::Reject),
            WireRequirement::BaseLayer {
                base_layer_identity,
            } => Identity::new(Some(base_layer_identity)).map(|_| Self::BaseLayer),
            WireRequirement::SignedBy(wire) => signed_by(wire),
            WireRequirement::Sigstore(wire) => sigstore(*wire),
        }
    }

    /// Every value that is not inline.
    pub(super) fn locations(&self) -> impl Iterator<Item = &Location> {
        let values: Vec<&Value> = match self {
            Self::Accept | Self::Reject | Self::BaseLayer => Vec::new(),
            Self::SignedBy { keys, .. } => keys.iter().collect(),
            Self::Sigstore { author, rekor, .. } => {
                let author: Vec<&Value> = match author {
                    DraftAuthor::Keys(keys) => keys.iter().collect(),
                    DraftAuthor::Fulcio { roots, ct, .. } => {
                        [roots].into_iter().chain(ct).collect()
                    }
                    DraftAuthor::Pki {
                        roots,
                        intermediates,
                        ..
                    } => [roots].into_iter().chain(intermediates).collect(),
                };
                author.into_iter().chain(rekor).collect()
            }
        };
        values.into_iter().filter_map(|value| match value {
            Value::At(location) => Some(location),
            Value::Inline(_) => None,
        })
    }

    pub(super) fn build(self, scope: &str, values: &Values) -> Result<Requirement, PolicyError> {
        Ok(match self {
            Self::Accept => Requirement::Accept,
            Self::Reject => Requirement::Reject,
            Self::BaseLayer => Requirement::BaseLayer,
            Self::SignedBy { keys, identity } => {
                let mut rings = Vec::new();
                for value in &keys {
                    rings.push(values.of(value)?);
                }
                let keyring = Keyring::new(&rings)
                    .map_err(|reason| PolicyError::invalid(scope, format!("signedBy: {reason}")))?;
                Requirement::SignedBy(SignedBy { keyring, identity })
            }
            Self::Sigstore {
                author,
                rekor,
                identity,
            } => Requirement::Sigstore(Box::new(SigstoreSigned {
                author: author.build(scope, values)?,
                rekor: public_keys(scope, "rekorPublicKey", &rekor, values)?,
                identity,
            })),
        })
    }
}

impl DraftAuthor {
    fn build(self, scope: &str, values: &Values) -> Result<Author, PolicyError> {
        let bad = |what: &str, reason: String| {
            PolicyError::invalid(scope, format!("sigstoreSigned, {what}: {reason}"))
        };
        match self {
            Self::Keys(keys) => Ok(Author::Keys(public_keys(scope, "key", &keys, values)?)),
            Self::Fulcio {
                roots,
                issuer,
                subject,
                ct,
            } => {
                let authority = CertificateAuthority::new(values.of(&roots)?, None)
                    .map_err(|reason| bad("fulcio", reason))?;
                let ct: Vec<Value> = ct.into_iter().collect();
                Ok(Author::Fulcio {
                    authority,
                    issuer,
                    subject,
                    ct: public_keys(scope, "fulcio.ctPublicKey", &ct, values)?,
                })
            }
            Self::Pki {
                roots,
                intermediates,
                subjects,
            } => {
                let intermediates = intermediates.as_ref().map(|it| values.of(it)).transpose()?;
                let authority = CertificateAuthority::new(values.of(&roots)?, intermediates)
                    .map_err(|reason| bad("pki", reason))?;
                Ok(Author::Pki {
                    authority,
                    subjects,
                })
            }
        }
    }
}

fn public_keys(
    scope: &str,
    what: &str,
    keys: &[Value],
    values: &Values,
) -> Result<Vec<PublicKey>, PolicyError> {
    let mut parsed = Vec::new();
    for value in keys {
        let key = PublicKey::from_pem(values.of(value)?).map_err(|reason| {
            PolicyError::invalid(scope, format!("sigstoreSigned, {what}: {reason}"))
        })?;
        parsed.push(key);
    }
    Ok(parsed)
}

fn signed_by(wire: WireSignedBy) -> Result<Draft, String> {
    match wire.key_type.as_str() {
        "GPGKeys" => {}
        "signedByGPGKeys" | "X509Certificates" | "signedByX509CAs" => {
            return Err(format!(
                "signedBy with keyType {:?} is not supported: use GPGKeys",
                wire.key_type
            ));
        }
        other => return Err(format!("signedBy has an unknown keyType {other:?}")),
    }
    let keys = sources(wire.key_path, wire.key_paths, wire.key_data, None)?;
    let keys = keys.ok_or("signedBy needs exactly one of keyPath, keyPaths and keyData")?;
    Ok(Draft::SignedBy {
        keys,
        identity: Identity::new(wire.signed_identity)?,
    })
}

fn sigstore(wire: WireSigstore) -> Result<Draft, String> {
    let rekor = sources(
        wire.rekor_public_key_path,
        wire.rekor_public_key_paths,
        wire.rekor_public_key_data,
        wire.rekor_public_key_datas,
    )
    .map_err(|reason| format!("sigstoreSigned, rekorPublicKey: {reason}"))?;
    let keys = sources(wire.key_path, wire.key_paths, wire.key_data, wire.key_datas)
        .map_err(|reason| format!("sigstoreSigned: {reason}"))?;
    let author = match (keys, wire.fulcio, wire.pki) {
        (Some(keys), None, None) => DraftAuthor::Keys(keys),
        (None, Some(fulcio), None) => {
            if rekor.is_none() {
                return Err(
                    "sigstoreSigned with fulcio needs a rekorPublicKey: a certificate is \
                            judged at the time that Rekor saw it"
                        .to_owned(),
                );
            }
            draft_fulcio(fulcio)?
        }
        (None, None, Some(pki)) => draft_pki(pki)?,
        _ => {
            return Err(
                "sigstoreSigned needs exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio \
                 and pki"
                    .to_owned(),
            );
        }
    };
    Ok(Draft::Sigstore {
        author,
        rekor: rekor.unwrap_or_default(),
        identity: Identity::new(wire.signed_identity)?,
    })
}

fn draft_fulcio(wire: WireFulcio) -> Result<DraftAuthor, String> {
    if wire.oidc_issuer.is_empty() {
        return Err("fulcio needs an oidcIssuer".to_owned());
    }
    let subject = match (wire.subject_email, wire.subject_uri) {
        (Some(email), None) if !email.is_empty() => Subject::Email(email),
        (None, Some(uri)) if !uri.is_empty() => Subject::Uri(uri),
        _ => return Err("fulcio needs exactly one of subjectEmail and subjectURI".to_owned()),
    };
    Ok(DraftAuthor::Fulcio {
        roots: one(wire.ca_path, wire.ca_data)?
            .ok_or("fulcio needs exactly one of caPath and caData")?,
        issuer: wire.oidc_issuer,
        subject,
        ct: one(wire.ct_public_key_path, wire.ct_public_key_data)?,
    })
}

fn draft_pki(wire: WirePki) -> Result<DraftAuthor, String> {
    let email = wire.subject_email.map(Subject::Email);
    let subjects: Vec<Subject> = email
        .into_iter()
        .chain(wire.subject_hostname.map(Subject::Host))
        .collect();
    if subjects.is_empty() {
        return Err("pki needs a subjectEmail or a subjectHostname".to_owned());
    }
    Ok(DraftAuthor::Pki {
        roots: one(wire.ca_roots_path, wire.ca_roots_data)?
            .ok_or("pki needs exactly one of caRootsPath and caRootsData")?,
        intermediates: one(wire.ca_intermediates_path, wire.ca_intermediates_data)?,
        subjects,
    })
}

/// The one source of keys that is given; `None` where none is.
fn sources(
    path: Option<String>,
    paths: Option<Vec<String>>,
    data: Option<String>,
    datas: Option<Vec<String>>,
) -> Result<Option<Vec<Value>>, String> {
    let given = [
        path.is_some(),
        paths.is_some(),
        data.is_some(),
        datas.is_some(),
    ];
    if given.into_iter().filter(|given| *given).count() > 1 {
        return Err("more than one source of keys is given".to_owned());
    }
    let paths = path.map(|path| vec![path]).or(paths);
    let datas = data.map(|data| vec![data]).or(datas);
    let values: Vec<Value> = match (paths, datas) {
        (Some(paths), _) => paths
            .iter()
            .map(|path| Value::at(path))
            .collect::<Result<_, _>>()?,
        (None, Some(datas)) => datas
            .iter()
            .map(|data| Value::inline(data))
            .collect::<Result<_, _>>()?,
        (None, None) => return Ok(None),
    };
    if values.is_empty() {
        return Err("the list of keys is empty".to_owned());
    }
    if values.len() > KEYS_MAX {
        return Err(format!("more than {KEYS_MAX} keys"));
    }
    Ok(Some(values))
}

fn one(path: Option<String>, data: Option<String>) -> Result<Option<Value>, String> {
    let values = sources(path, None, data, None)?;
    Ok(values.and_then(|values| values.into_iter().next()))
}
