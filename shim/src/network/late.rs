//! A network that is set up when the VM is there already: by who makes the namespace first and fills it between the
//! creation of the pod and its start. The namespace is looked at once more when the pod's sandbox container starts,
//! and when the first of its other containers does; what comes later is not the VM's.

use std::path::PathBuf;

use agent_api::GuestError;
use hypervisor::{HotNics, Nic};
use netlink::Socket;
use tokio::sync::Mutex;
use tracing::info;

use super::namespace::Namespace;
use super::record::Record;
use super::{Found, NetworkError, Told, USER, nic, plan, tell};
use crate::guest::Guest;
use crate::state_dir::StateDir;

/// What to do where a VM has no port for a card.
const NO_PORT: &str = "only a plain VM of the machine q35 whose network namespace was empty takes one: set up the network before the pod";

/// What a pod's VM knows of its network.
#[derive(Debug)]
pub struct Late {
    path: Option<PathBuf>,
    directory: StateDir,
    /// What the guest was told; none when it is told no more.
    told: Mutex<Option<Told>>,
}

/// What is new.
#[derive(Debug)]
pub(super) struct News {
    /// The names of the interfaces, and cards for them.
    pub(super) nics: Vec<(String, Nic)>,
    pub(super) told: Told,
}

impl Late {
    pub(crate) fn new(path: Option<PathBuf>, directory: StateDir, told: Told) -> Self {
        // Nobody changes the user network.
        let path = path.filter(|path| path.as_os_str() != USER);
        Self {
            path,
            directory,
            told: Mutex::new(Some(told)),
        }
    }

    /// Gives the guest what has come to the namespace since it was last looked at.
    ///
    /// # Errors
    /// [`NetworkError`] names the interface; or what the agent answers.
    pub async fn look_again(
        &self,
        guest: &Guest,
        hot: Option<&HotNics>,
        is_last: bool,
    ) -> Result<(), GuestError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let mut told = self.told.lock().await;
        let Some(known) = told.clone() else {
            return Ok(());
        };
        let namespace = Namespace::open(path)?;
        let (directory, may_add) = (self.directory.clone(), hot.is_some());
        let look = move || look(namespace, &directory, &known, may_add);
        let looked = tokio::task::spawn_blocking(look).await;
        let looked = looked.map_err(|error| failed(&error))??;
        let Some(news) = looked else {
            told.take_if(|_| is_last);
            return Ok(());
        };
        for (interface, nic) in &news.nics {
            if let Some(hot) = hot {
                let added = hot.attach(nic).await;
                added.map_err(|source| NetworkError::Add {
                    interface: interface.clone(),
                    source,
                })?;
            }
            info!(interface, "came after the VM");
        }
        tell(guest, news.told.clone()).await?;
        *told = Some(news.told).filter(|_| !is_last);
        Ok(())
    }
}

fn failed(error: &tokio::task::JoinError) -> GuestError {
    GuestError::new(agent_api::ErrorCode::Internal, super::PHASE, error)
}

/// Looks once more: what the guest does not know, and cards for what it has none for.
pub(super) fn look(
    namespace: Namespace,
    directory: &StateDir,
    known: &Told,
    may_add: bool,
) -> Result<Option<News>, NetworkError> {
    let record = Record::read(directory).unwrap_or_else(|| namespace.record());
    let (directory, known) = (directory.clone(), known.clone());
    namespace.inside(move || {
        let mut socket = Socket::open()?;
        let plan = plan(&Found::read(&mut socket)?)?;
        if plan.told == known {
            return Ok(None);
        }
        let wires = plan.wires.iter();
        let new: Vec<_> = wires
            .filter(|wire| !record.links.contains(&wire.index))
            .collect();
        if let Some(wire) = new.first().filter(|_| !may_add) {
            return Err(NetworkError::Late {
                interface: wire.name.clone(),
                why: NO_PORT,
            });
        }
        let links = new.iter().map(|wire| wire.index);
        let record = Record {
            links: record.links.iter().copied().chain(links).collect(),
            ..record
        };
        record.write(&directory)?;
        let nics = new.iter().map(|wire| {
            let card = nic(&mut socket, wire, &directory)?;
            Ok((wire.name.clone(), card))
        });
        Ok(Some(News {
            nics: nics.collect::<Result<_, NetworkError>>()?,
            told: plan.told,
        }))
    })
}
