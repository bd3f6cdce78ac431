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
        /// The object or model.
        lacking: String,
        /// The first version that has it.
        since: &'static str,
    },
    /// It has the object, and not all of it.
    #[error("QEMU {}.{}.{} has {object} without its property {property}, which came in {since}: use one of QEMU's own releases from {since} on", version.major, version.minor, version.micro)]
    Property {
        /// Its version.
        version: Version,
        /// The object.
        object: &'static str,
        /// The property.
        property: String,
        /// The first version that has it.
        since: &'static str,
    },
}

impl Unable {
    fn lacks(version: Version, lacking: String, since: &'static str) -> Self {
        Self::Lacks {
            version,
            lacking,
            since,
        }
    }
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
        let version = self.version;
        let lacks = |lacking, since| Err(Unable::lacks(version, lacking, since));
        let needed: Vec<String> = confidential::properties(wanted, has_igvm).collect();
        has(version, object(wanted.kind()), &self.properties, &needed)?;
        // Also a new one may lack it: it is built in where its library was there.
        let needed: Vec<String> = has_igvm.then(|| "file".to_owned()).into_iter().collect();
        has(version, confidential::IGVM, &self.igvm, &needed)?;
        match wanted {
            Confidential::Snp(snp) if !self.has_model => {
                let model = format!("CPU model {}", snp.cpu_model);
                lacks(model, model_since(&snp.cpu_model))
            }
            _ => Ok(()),
        }
    }
}

/// Whether an object is there with all properties that are needed.
fn has(
    version: Version,
    object: &'static str,
    properties: &Option<BTreeSet<String>>,
    needed: &[String],
) -> Result<(), Unable> {
    let Some(properties) = properties else {
        return Err(Unable::lacks(
            version,
            format!("object {object}"),
            object_since(object),
        ));
    };
    match needed.iter().find(|name| !properties.contains(*name)) {
        None => Ok(()),
        Some(property) => Err(Unable::Property {
            version,
            object,
            property: property.clone(),
            since: object_since(object),
        }),
    }
}

/// The first QEMU that has the object. All properties that are set here came with their objects (`Since` in
/// QEMU's `qapi/qom.json`); a QEMU that has an object without them was built from another source, as the ones
/// were from which the objects grew.
fn object_since(object: &str) -> &'static str {
    match object {
        "sev-snp-guest" => "9.1",
        _ => "10.1",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tee::{
        DEFAULT_CPU_MODEL, DEFAULT_POLICY, ID_AUTH_BYTES, IdBlock, QuoteService, Snp, Tdx,
    };

    fn snp() -> Confidential {
        Confidential::Snp(Snp {
            cpu_model: DEFAULT_CPU_MODEL.to_owned(),
            policy: DEFAULT_POLICY,
            host_data: [7; 32],
            id_block: IdBlock::new(&[0; 96], &[1; ID_AUTH_BYTES]).ok(),
            vcek_disabled: true,
        })
    }

    fn tdx() -> Confidential {
        Confidential::Tdx(Tdx {
            mrconfigid: [7; 48],
            mrowner: [8; 48],
            mrownerconfig: [9; 48],
            quotes: QuoteService::Vsock { port: 4050 },
        })
    }

    /// A QEMU that can launch the guest, from an IGVM file too.
    fn able(wanted: &Confidential) -> Ability {
        Ability {
            version: Version {
                major: 8,
                minor: 2,
                micro: 4,
            },
            properties: Some(confidential::properties(wanted, false).collect()),
            has_model: true,
            igvm: Some(BTreeSet::from(["file".to_owned()])),
        }
    }

    #[test]
    fn each_property_that_is_set_is_asked_for_and_named_where_it_lacks() {
        for (wanted, object, since, count) in [
            (snp(), "sev-snp-guest", "9.1", 9),
            (tdx(), "tdx-guest", "10.1", 5),
        ] {
            able(&wanted).check(&wanted, false).unwrap();
            let needed = able(&wanted).properties.unwrap();
            assert_eq!(needed.len(), count, "{needed:?}");
            for property in &needed {
                let mut old = able(&wanted);
                old.properties = Some(&needed - &BTreeSet::from([property.clone()]));
                let error = old.check(&wanted, false).unwrap_err().to_string();
                let expected = format!(
                    "QEMU 8.2.4 has {object} without its property {property}, which came in {since}: use one of QEMU's own releases from {since} on"
                );
                assert_eq!(error, expected);
            }
        }
    }

    #[test]
    fn an_object_or_a_model_that_lacks_is_named_with_its_first_version() {
        type Change = fn(&mut Ability);
        let changes: [(Change, &str); 4] = [
            (
                |qemu| qemu.properties = None,
                "object sev-snp-guest: use 9.1",
            ),
            (|qemu| qemu.has_model = false, "CPU model EPYC-v4: use 9.1"),
            (|qemu| qemu.igvm = None, "object igvm-cfg: use 10.1"),
            (
                |qemu| qemu.igvm = Some(BTreeSet::new()),
                "igvm-cfg without its property file",
            ),
        ];
        for (change, named) in changes {
            let mut old = able(&snp());
            change(&mut old);
            let error = old.check(&snp(), true).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let mut old = able(&tdx());
        old.properties = None;
        let error = old.check(&tdx(), false).unwrap_err().to_string();
        assert!(error.contains("object tdx-guest: use 10.1"), "{error}");
    }
}
