//! `kbs policy`: what releases and appraisals are decided by, for each scope.

use std::{fs, path::PathBuf};

use anyhow::Context;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use evidence::{Tee, init_data::InitDataDigest};
use http::Method;
use measure::Binding;
use policies::{
    release::pin_init_data,
    scopes::{Prefix, Selector},
};

use super::{
    Connection,
    out::{self, say},
    read_capped,
};
use crate::{
    route::PolicyMessage,
    scope::{RELEASE_POLICY, Scope},
    store::PolicyVersion,
};

const RELEASE: &str = RELEASE_POLICY;
const APPRAISAL: &str = "attestation-policy";

/// Which policy; without either, the release policy of all paths.
#[derive(Debug, Args)]
pub(super) struct ScopeArgs {
    /// The release policy of what is below a path prefix: repository/type/tag, or a beginning of it.
    #[arg(long, value_name = "PREFIX", conflicts_with = "appraisal")]
    scope: Option<Prefix>,
    /// The appraisal policy of this name and class of evidence.
    #[arg(long, value_name = "NAME_CLASS", num_args = 0..=1, default_missing_value = "default_cpu")]
    appraisal: Option<Selector>,
}

impl ScopeArgs {
    fn scope(self) -> Scope {
        match (self.scope, self.appraisal) {
            (_, Some(selector)) => Scope::Appraisal(selector),
            (scope, None) => Scope::Release(scope.unwrap_or_default()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Decide by a Rego file from now on.
    Set {
        #[command(flatten)]
        scope: ScopeArgs,
        /// The Rego text; standard input where absent.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Print a Rego text: the one in force, or another version.
    #[command(visible_alias = "show")]
    Get {
        #[command(flatten)]
        scope: ScopeArgs,
        /// The number of a version; 0 is what is built in.
        #[arg(long)]
        version: Option<i64>,
        /// Write it to a file.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// List the policies in force by their ids.
    List,
    /// Decide by the next wider scope, or by what is built in, from now on.
    Delete {
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Show the versions that are kept of a policy, the oldest first.
    History {
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Release only to guests of one kind that were launched with one init-data.
    Pin {
        /// Hex of the init-data's digest, whole: it is cut or padded as the kind reports it.
        #[arg(long)]
        init_data_digest: String,
        /// The kind of TEE, by name.
        #[arg(long)]
        tee: String,
        /// Only what is below a path prefix.
        #[arg(long, value_name = "PREFIX")]
        scope: Option<Prefix>,
        /// Print the policy, and leave the one in force.
        #[arg(long)]
        print: bool,
    },
}

impl Policy {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        match self {
            Self::Set { scope, file } => {
                let text = read_capped(file.as_deref())?;
                set(connection, &scope.scope(), &text).await
            }
            Self::Get {
                scope,
                version,
                file,
            } => {
                let text = get(connection, &scope.scope(), version).await?;
                match file {
                    Some(path) => {
                        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
                    }
                    None => out::bytes(&text),
                }
            }
            Self::List => {
                for endpoint in [RELEASE, APPRAISAL] {
                    let answer = connection.ask(Method::GET, endpoint, "").await?;
                    let ids: Vec<String> =
                        serde_json::from_slice(&answer).context("read the answer")?;
                    for id in &ids {
                        say!("{id}");
                    }
                }
                Ok(())
            }
            Self::Delete { scope } => {
                let path = address(&scope.scope());
                connection.ask(Method::DELETE, &path, "").await?;
                Ok(())
            }
            Self::History { scope } => {
                let path = named(&scope.scope(), "-history");
                let answer = connection.ask(Method::GET, &path, "").await?;
                let versions: Vec<PolicyVersion> =
                    serde_json::from_slice(&answer).context("read the answer")?;
                for version in &versions {
                    say!("{}", serde_json::to_string(version)?);
                }
                Ok(())
            }
            Self::Pin {
                init_data_digest,
                tee,
                scope,
                print,
            } => {
                let text = pin_init_data(&reported(&init_data_digest, &tee), &tee)?;
                if print {
                    return out::bytes(text.as_bytes());
                }
                let scope = Scope::Release(scope.unwrap_or_default());
                set(connection, &scope, text.as_bytes()).await
            }
        }
    }
}

/// The digest as a guest of this kind reports it.
fn reported(digest: &str, tee: &str) -> String {
    match (InitDataDigest::from_hex(digest), tee.parse::<Tee>()) {
        (Ok(digest), Ok(tee)) => Binding::of(tee, Some(&digest)).hex(),
        // The policy's own check says what is wrong, and knows kinds of devices.
        _ => digest.to_owned(),
    }
}

async fn set(connection: &Connection, scope: &Scope, rego: &[u8]) -> anyhow::Result<()> {
    let message = PolicyMessage {
        policy: BASE64_URL_SAFE_NO_PAD.encode(rego),
        policy_id: Some(scope.to_string()),
        kind: Some("rego".to_owned()),
    };
    let body = serde_json::to_vec(&message).context("make the request")?;
    let path = match scope {
        Scope::Release(_) => address(scope),
        // Its id is in the message, as Trustee has it.
        Scope::Appraisal(_) => APPRAISAL.to_owned(),
    };
    connection.ask(Method::POST, &path, body).await?;
    Ok(())
}

async fn get(
    connection: &Connection,
    scope: &Scope,
    version: Option<i64>,
) -> anyhow::Result<Vec<u8>> {
    let query = version.map_or_else(String::new, |number| format!("?version={number}"));
    let path = format!("{}{query}", named(scope, ""));
    let answer = connection.ask(Method::GET, &path, "").await?;
    let message: PolicyMessage = serde_json::from_slice(&answer).context("read the answer")?;
    BASE64_URL_SAFE_NO_PAD
        .decode(message.policy)
        .context("read the answer")
}

/// Where a policy is changed.
fn address(scope: &Scope) -> String {
    match scope {
        Scope::Release(_) => scope.to_string(),
        Scope::Appraisal(_) => named(scope, ""),
    }
}

/// Where it is read: the policy of all paths too has a name behind the endpoint's.
fn named(scope: &Scope, what: &str) -> String {
    match scope {
        Scope::Release(prefix) if *prefix == Prefix::default() => {
            format!("{RELEASE}{what}/{RELEASE}")
        }
        Scope::Release(prefix) => format!("{RELEASE}{what}/{prefix}"),
        Scope::Appraisal(selector) => format!("{APPRAISAL}{what}/{selector}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_pinned_as_wide_as_the_kind_reports_it() {
        let (short, long) = ("ab".repeat(32), "AB".repeat(48));
        for (digest, tee, pinned) in [
            (&short, "snp", short.clone()),
            (&long, "sim-snp", short.clone()),
            (&short, "tdx", format!("{short}{}", "00".repeat(16))),
            (&long, "sample", "ab".repeat(48)),
            (&short, "sampledevice", short.clone()),
        ] {
            assert_eq!(reported(digest, tee), pinned, "{tee}");
        }
        assert_eq!(reported("abc", "snp"), "abc");
    }
}
