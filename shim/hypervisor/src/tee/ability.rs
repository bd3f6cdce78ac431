//! What a QEMU can do for confidential guests. It is asked over its control socket, without a machine, so
//! that what it lacks is named with its version before a guest is launched, and is not mistaken for what
//! the host lacks.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Confidential, Kind};
use crate::qemu::confidential;
use crate::qmp::{Qmp, QmpError, Version};
use crate::supervise::{Launch, spawn};

/// How long QEMU may take to answer. It takes 50 ms; a host that swaps takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Objects and models of one QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Ability {
    version: Version,
    /// The properties of its object; `None` where it has no such object.
    properties: Option<BTreeSet<String>>,
    /// Whether it has the CPU model.
    has_model: bool,
    /// The properties of its object for IGVM files, as above; empty where none is needed.
    igvm: Option<BTreeSet<String>>,
}

/// Why a guest is not launched with this QEMU.
#[derive(Debug, Error)]
pub enum Unable {
    /// It does not start.
    #[error("start of {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It runs and does not answer.
    #[error("{program} does not answer: {source}")]
    Ask {
        /// The program.
        program: String,
        /// What went wrong.
        source: QmpError,
    },
    /// It runs and says nothing.
    #[error("{program} did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent {
        /// The program.
        program: String,
    },
    /// It is too old, or was built without.
    #[error("QEMU {}.{}.{} has no {lacking}: use {since} or newer, built with it", version.major, version.minor, version.micro)]
    Lacks {
        /// Its version.
        version: Version,
        /// The object, property or model.
        lacking: String,
        /// The first version that has it.
        since: &'static str,
    },
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Asks a QEMU whether it can launch such a guest.
///
/// # Errors
/// [`Unable`] names what it lacks, or why it could not be asked.
pub(crate) async fn check(
    program: &Path,
    wanted: &Confidential,
    has_igvm: bool,
) -> Result<(), Unable> {
    match timeout(ANSWER_TIMEOUT, ask(program, wanted, has_igvm)).await {
        Ok(answer) => answer?.check(wanted, has_igvm),
        Err(_) => Err(Unable::Silent {
            program: program.display().to_string(),
        }),
    }
}

async fn ask(program: &Path, wanted: &Confidential, has_igvm: bool) -> Result<Ability, Unable> {
    let name = program.display().to_string();
    let not_started = |source| Unable::Spawn {
        program: name.clone(),
        source,
    };
    let (ours, theirs) = StdUnixStream::pair().map_err(not_started)?;
    ours.set_nonblocking(true).map_err(not_started)?;
    let stream = UnixStream::from_std(ours).map_err(not_started)?;
    // Ends with its process when this function does.
    let started = spawn(Launch {
        program: program.to_owned(),
        arguments: arguments(&theirs).into_iter().map(Into::into).collect(),
        directory: "/".into(),
        descriptors: vec![theirs.into()],
        without_network: false,
    });
    let _started = started.await.map_err(not_started)?;
    let answer = async {
        let (qmp, version, _events) = Qmp::connect(stream).await?;
        let has_model = match wanted {
            Confidential::Snp(snp) => {
                let name = format!("{}-x86_64-cpu", snp.cpu_model);
                properties(&qmp, &name).await?.is_some()
            }
            // The host's own.
            Confidential::Tdx(_) => true,
        };
        Ok(Ability {
            version,
            properties: properties(&qmp, object(wanted.kind())).await?,
            has_model,
            igvm: match has_igvm {
                true => properties(&qmp, confidential::IGVM).await?,
                false => Some(BTreeSet::new()),
            },
        })
    };
    answer.await.map_err(|source| Unable::Ask {
        program: name.clone(),
        source,
    })
}

fn arguments(control: &StdUnixStream) -> Vec<String> {
    let chardev = format!("socket,id=qmp,fd={}", control.as_raw_fd());
    let words =
        "-machine none -nodefaults -no-user-config -display none -mon chardev=qmp,mode=control";
    let words = words.split(' ').chain(["-chardev", &chardev]);
    words.map(str::to_owned).collect()
}

/// The properties of a class; `None` where there is no such class.
async fn properties(qmp: &Qmp, class: &str) -> Result<Option<BTreeSet<String>>, QmpError> {
    let command = "qom-list-properties";
    let list = match qmp.ask(command, json!({ "typename": class })).await {
        Ok(list) => list,
        Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => return Ok(None),
        Err(error) => return Err(error),
    };
    let list: Vec<Named> = serde_json::from_value(list)
        .map_err(|_| QmpError::Unknown(format!("the answer to {command}")))?;
    Ok(Some(list.into_iter().map(|named| named.name).collect()))
}

fn object(kind: Kind) -> &'static str {
    match kind {
        Kind::Snp => "sev-snp-guest",
        Kind::Tdx => "tdx-guest",
    }
}

impl Ability {
    /// Whether all that a launch needs is there.
    pub(crate) fn check(&self, wanted: &Confidential, has_igvm: bool) -> Result<(), Unable> {
        let lacks = |lacking, since| {
            Err(Unable::Lacks {
                version: self.version,
                lacking,
                since,
            })
        };
        let kind = wanted.kind();
        let object = object(kind);
        let since = match kind {
            Kind::Snp => "9.1",
            Kind::Tdx => "10.1",
        };
        let Some(properties) = &self.properties else {
            return lacks(format!("object {object}"), since);
        };
        let mut needed = confidential::properties(wanted, has_igvm);
        if let Some(property) = needed.find(|name| !properties.contains(name)) {
            return lacks(format!("property {property} of {object}"), since);
        }
        // Also a new one may lack it: it is built in where its library was there.
        match &self.igvm {
            None => return lacks(format!("object {}", confidential::IGVM), "10.1"),
            Some(found) if has_igvm && !found.contains("file") => {
                return lacks(format!("property file of {}", confidential::IGVM), "10.1");
            }
            Some(_) => {}
        }
        match wanted {
            Confidential::Snp(snp) if !self.has_model => {
                let model = format!("CPU model {}", snp.cpu_model);
                lacks(model, model_since(&snp.cpu_model))
            }
            _ => Ok(()),
        }
    }
}

/// The first QEMU that has the models of a generation.
fn model_since(model: &str) -> &'static str {
    match model {
        _ if model.starts_with("EPYC-Turin") => "10.1",
        _ if model.starts_with("EPYC-Genoa") => "8.1",
        _ => "9.1",
    }
}
