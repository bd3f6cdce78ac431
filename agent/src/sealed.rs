//! Opens sealed secrets in what the host sends: environment variables of containers and files of volumes.
//!
//! The policy has seen the sealed form, and nobody outside the guest sees the other. A secret that does not open stops
//! the container; the error names the variable or the file, and nothing of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent_api::content::ContentFile;
use agent_api::{ErrorCode, GuestError, limit};
use attestation_agent::sealed::{SealedError, is_sealed};
use attestation_agent::{Hub, HubError};
use tokio::task::JoinSet;
use zeroize::{Zeroize, Zeroizing};

use crate::content::lease::{Given, Lender, Loan};
use crate::fault::{OrFail, invalid};
use crate::image::fault::of_named;

const PHASE: &str = "unseal";
/// Sealed secrets of one container's environment, or of one request with files.
const MAX_SECRETS: usize = 256;

/// An environment variable that was sealed.
#[derive(Clone)]
pub struct Variable {
    /// `NAME=sealed.…`, as the host knows it.
    sealed: String,
    /// `NAME=value`.
    open: Zeroizing<String>,
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Variable").finish_non_exhaustive()
    }
}

/// Opens the sealed variables of an environment. What is in `known` is not fetched again: a further process of a
/// container has most of the first one's.
///
/// # Errors
///
/// Names the variable.
pub async fn open_environment(
    hub: &Arc<Hub>,
    environment: &mut [String],
    known: &[Variable],
) -> Result<Vec<Variable>, GuestError> {
    let mut opening = JoinSet::new();
    for (index, entry) in environment.iter_mut().enumerate() {
        let Some((name, value)) = entry.split_once('=') else {
            continue;
        };
        if !is_ours(hub, value.as_bytes()) {
            continue;
        }
        if let Some(variable) = known.iter().find(|variable| variable.sealed == *entry) {
            variable.open.as_str().clone_into(entry);
            continue;
        }
        if opening.len() >= MAX_SECRETS {
            return Err(too_many());
        }
        let (hub, name, value) = (Arc::clone(hub), name.to_owned(), value.to_owned());
        opening.spawn(async move {
            let opened = open_variable(&hub, &name, &value).await;
            opened.map(|value| (index, Zeroizing::new(format!("{name}={}", *value))))
        });
    }
    let mut opened = Vec::new();
    while let Some(one) = opening.join_next().await {
        let (index, open) = one.or_internal(PHASE, "the task ended")??;
        let sealed = std::mem::replace(&mut environment[index], open.to_string());
        opened.push(Variable { sealed, open });
    }
    Ok(opened)
}

async fn open_variable(
    hub: &Hub,
    name: &str,
    value: &str,
) -> Result<Zeroizing<String>, GuestError> {
    let what = format!("environment variable {name}");
    let opened = hub.unseal(value, Some(name)).await;
    let opened = opened.map_err(|error| fault(&what, &error))?;
    if opened.lease.is_some() {
        return Err(fault(&what, &SealedError::Lease.into()));
    }
    let text = String::from_utf8(opened.secret.expose().to_vec()).map(Zeroizing::new);
    let text = text.ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| invalid(PHASE, format!("{what}: the secret is no text without NUL")))
}

/// Opens the files that are sealed secrets. Those that are lent leave `files`, and are answered.
///
/// # Errors
///
/// Names the file.
pub async fn open_files(
    hub: &Arc<Hub>,
    files: &mut Vec<ContentFile>,
) -> Result<Vec<Loan>, GuestError> {
    let mut opening = JoinSet::new();
    for (index, file) in files.iter_mut().enumerate() {
        if !is_ours(hub, &file.data) {
            continue;
        }
        if opening.len() >= MAX_SECRETS {
            return Err(too_many());
        }
        let (hub, path) = (Arc::clone(hub), file.path.clone());
        let sealed = std::mem::take(&mut file.data);
        opening.spawn(async move {
            let opened = open_file(&hub, path, &sealed).await;
            opened.map(|opened| (index, opened))
        });
    }
    // Nothing is in the request, which nobody wipes, before all have come.
    let mut opened = BTreeMap::new();
    while let Some(one) = opening.join_next().await {
        let (index, one) = one.or_internal(PHASE, "the task ended")??;
        opened.insert(index, one);
    }
    let mut loans = Vec::new();
    for (index, (given, sealed)) in opened.into_iter().rev() {
        match given.term {
            Some(term) => loans.push(Loan {
                file: files.remove(index),
                sealed,
                secret: given.secret,
                term,
            }),
            None => files[index].data = given.secret.expose().to_vec(),
        }
    }
    Ok(loans)
}

/// Wipes what was opened into files.
pub fn wipe(files: &mut [ContentFile]) {
    for file in files {
        file.data.zeroize();
    }
}

/// What a file has in it, and its sealed form.
async fn open_file(hub: &Hub, path: String, sealed: &[u8]) -> Result<(Given, String), GuestError> {
    let what = match path.as_str() {
        "" => "a file".to_owned(),
        path => format!("file {path}"),
    };
    let text = std::str::from_utf8(sealed);
    let text = text.map_err(|_| fault(&what, &SealedError::Form.into()))?;
    let given = hub.give(text, &path).await;
    let given = given.map_err(|error| fault(&what, &error))?;
    if given.term.is_some() && path.is_empty() {
        return Err(fault(&what, &SealedError::Lease.into()));
    }
    if given.secret.expose().len() > limit::MAX_CONTENT_FILE {
        let most = limit::MAX_CONTENT_FILE;
        let message = format!("{what}: the secret has more than {most} bytes");
        return Err(GuestError::new(
            ErrorCode::ResourceExhausted,
            PHASE,
            message,
        ));
    }
    Ok((given, text.to_owned()))
}

/// Whether a text is for us to open. Where there is a broker, whatever begins so is; elsewhere it is other people's
/// text unless it has the whole form, and then it cannot be opened.
fn is_ours(hub: &Hub, text: &[u8]) -> bool {
    /// How JSON begins in base64url.
    const JSON: [&str; 2] = ["ey", "ew"];
    if !is_sealed(text) || hub.has_broker() {
        return is_sealed(text);
    }
    let parts: Vec<_> = text.splitn(5, |byte| *byte == b'.').collect();
    parts.len() == 4
        && JSON
            .iter()
            .any(|json| parts[2].starts_with(json.as_bytes()))
}

/// What is told of a secret that did not open. The cause at the broker stays behind its ticket, and what a key is that
/// verifies nothing stays here: the host may name any resource as one.
pub(crate) fn fault(what: &str, error: &HubError) -> GuestError {
    let message = |text: &str| format!("{what}: {text}");
    if let Some(broker) = error.broker() {
        let told = of_named(broker);
        return GuestError {
            message: message(&told.message),
            phase: PHASE.to_owned(),
            ..told
        };
    }
    let code = match error {
        HubError::Evidence(_) | HubError::NoTee => ErrorCode::AttestationFailed,
        HubError::NoBroker
        | HubError::Broker(_)
        | HubError::Sealed(_)
        | HubError::VerificationKey { .. }
        | HubError::Name(_)
        | HubError::Packet(_) => ErrorCode::SecretNotOpened,
    };
    let told = match error {
        HubError::VerificationKey { cause } if matches!(**cause, HubError::Sealed(_)) => {
            "what the broker gives as the key that verifies it is none: set there what `attestation-agent seal-key` prints"
                .to_owned()
        }
        error => error.to_string(),
    };
    GuestError::new(code, PHASE, message(&told))
}

fn too_many() -> GuestError {
    let message = format!("more than {MAX_SECRETS} sealed secrets at once");
    GuestError::new(ErrorCode::ResourceExhausted, PHASE, message)
}

#[cfg(test)]
mod tests {
    use attestation_agent::sealed::{SealKey, Sealer, Terms, VerifyingKey};
    use attestation_agent::{BrokerError, Detail, ResourceUri};
    use evidence::init_data::content::SealedSecrets;

    use super::*;

    fn plain() -> Arc<Hub> {
        Arc::new(Hub::new(None, None, SealedSecrets::default(), None))
    }

    fn sealed() -> String {
        let uri = "kbs:///default/secret/db".parse().unwrap();
        Sealer::new(&SealKey::generate(), "kbs:///default/key/signing")
            .vault(&uri, &Terms::default())
    }

    #[tokio::test]
    async fn a_secret_that_does_not_open_is_named_and_not_told() {
        let sealed = sealed();
        let mut environment = ["A=1".to_owned(), format!("DB_PASSWORD={sealed}")];
        let error = open_environment(&plain(), &mut environment, &[]).await;
        let error = error.unwrap_err();
        assert_eq!(error.code, ErrorCode::SecretNotOpened);
        assert!(error.message.contains("DB_PASSWORD"), "{error}");
        assert!(error.message.contains("no broker"), "{error}");
        assert!(!error.to_string().contains(&sealed[..20]), "{error}");
        let mut files = vec![ContentFile {
            path: "db/password".to_owned(),
            data: sealed.into_bytes(),
            ..Default::default()
        }];
        let error = open_files(&plain(), &mut files).await.unwrap_err();
        assert!(error.message.contains("db/password"), "{error}");
    }

    /// A sealed value's header names any resource, and whoever wrote the value sees the error.
    #[test]
    fn what_the_broker_does_not_have_is_told_as_what_it_does_not_release() {
        let resource: ResourceUri = "kbs:///default/secret/db".parse().unwrap();
        let detail = || Detail::from("of the owner's".to_owned());
        for ticket in [Some("T-1".to_owned()), None] {
            let denied = BrokerError::Denied {
                resource: resource.clone(),
                detail: detail(),
                ticket: ticket.clone(),
            };
            let missing = BrokerError::NotFound {
                resource: resource.clone(),
                detail: detail(),
                ticket: ticket.clone(),
            };
            let told = [denied, missing].map(|error| fault("variable P", &error.into()));
            assert_eq!(told[0], told[1]);
            assert_eq!(
                (told[0].code, &told[0].ticket),
                (ErrorCode::BrokerDenied, &ticket)
            );
            assert!(told[0].message.contains("variable P"), "{}", told[0]);
        }
    }

    #[test]
    fn nothing_is_told_of_what_a_key_is_that_verifies_nothing() {
        let told = [&b"hunter2"[..], br#"{"kty":"RSA","crv":"","x":"","y":""}"#].map(|content| {
            let error = VerifyingKey::from_jwk("kbs:///default/secret/db", content);
            let cause = Box::new(HubError::from(error.unwrap_err()));
            fault("variable P", &HubError::VerificationKey { cause })
        });
        assert_eq!(told[0], told[1]);
        assert_eq!(told[0].code, ErrorCode::SecretNotOpened);
    }

    #[tokio::test]
    async fn what_only_begins_so_stays_as_it_is_where_there_is_no_broker() {
        let before = [
            "HOST=sealed.www.example.com",
            "B=sealed.",
            "sealed.x",
            "C=x",
        ];
        let mut environment = before.map(str::to_owned);
        let opened = open_environment(&plain(), &mut environment, &[]).await;
        assert!(opened.unwrap().is_empty());
        assert_eq!(environment, before);
    }

    #[test]
    fn what_was_opened_is_wiped_where_nobody_else_wipes_it() {
        let mut files = [ContentFile {
            data: b"hunter2".to_vec(),
            ..Default::default()
        }];
        wipe(&mut files);
        assert!(files[0].data.is_empty());
    }

    #[tokio::test]
    async fn a_further_process_has_the_value_of_the_first() {
        let sealed = format!("P={}", sealed());
        let known = Variable {
            sealed: sealed.clone(),
            open: Zeroizing::new("P=hunter2".to_owned()),
        };
        let mut environment = [sealed];
        let opened = open_environment(&plain(), &mut environment, &[known]).await;
        assert!(opened.unwrap().is_empty());
        assert_eq!(environment, ["P=hunter2"]);
    }
}
