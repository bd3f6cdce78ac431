//! A network that is set up when the VM is there already: by who makes the namespace first and fills it between the
//! creation of the pod and its start. The namespace is looked at once more when the pod's sandbox container starts,
//! and when the first of its other containers does; what comes later is not the VM's.

use std::collections::BTreeSet;
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
    /// None when the guest is told no more.
    known: Mutex<Option<Known>>,
}

/// What a guest has.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// What it was told.
    pub(super) told: Told,
    /// The interfaces that have a card. The record has those too for which one was begun.
    pub(super) cards: BTreeSet<u32>,
}

/// What is new.
#[derive(Debug)]
pub(super) struct News {
    /// Cards for interfaces that have none.
    pub(super) cards: Vec<Card>,
    pub(super) told: Told,
}

/// A card for an interface.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) interface: String,
    pub(super) index: u32,
    pub(super) nic: Nic,
}

impl Late {
    pub(crate) fn new(
        path: Option<PathBuf>,
        directory: StateDir,
        told: Told,
        cards: BTreeSet<u32>,
    ) -> Self {
        // Nobody changes the user network.
        let path = path.filter(|path| path.as_os_str() != USER);
        Self {
            path,
            directory,
            known: Mutex::new(Some(Known { told, cards })),
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
        let mut turn = self.known.lock().await;
        let Some(known) = &mut *turn else {
            return Ok(());
        };
        let namespace = Namespace::open(path)?;
        let (directory, has, may_add) = (self.directory.clone(), known.clone(), hot.is_some());
        let look = move || look(namespace, &directory, &has, may_add);
        let looked = tokio::task::spawn_blocking(look).await;
        let looked = looked.map_err(|error| failed(&error))??;
        if let Some(news) = looked {
            for card in news.cards {
                add(hot, card, known).await?;
            }
            tell(guest, news.told.clone()).await?;
            known.told = news.told;
        }
        turn.take_if(|_| is_last);
        Ok(())
    }
}

/// Gives the VM a card, and notes that it has it.
async fn add(hot: Option<&HotNics>, card: Card, known: &mut Known) -> Result<(), NetworkError> {
    let Card {
        interface,
        index,
        nic,
    } = card;
    if let Some(hot) = hot {
        let added = hot.attach(&nic).await;
        added.map_err(|source| NetworkError::Add {
            interface: interface.clone(),
            source,
        })?;
    }
    known.cards.insert(index);
    info!(interface, "came after the VM");
    Ok(())
}

fn failed(error: &tokio::task::JoinError) -> GuestError {
    GuestError::new(agent_api::ErrorCode::Internal, super::PHASE, error)
}

/// Looks once more: what the guest does not know, and cards for what it has none for.
pub(super) fn look(
    namespace: Namespace,
    directory: &StateDir,
    known: &Known,
    may_add: bool,
) -> Result<Option<News>, NetworkError> {
    let record = Record::read(directory).unwrap_or_else(|| namespace.record());
    let (directory, known) = (directory.clone(), known.clone());
    namespace.inside(move || {
        let mut socket = Socket::open()?;
        let plan = plan(&Found::read(&mut socket)?)?;
        if plan.told == known.told {
            return Ok(None);
        }
        let wires = plan.wires.iter();
        let new: Vec<_> = wires
            .filter(|wire| !known.cards.contains(&wire.index))
            .collect();
        if let Some(wire) = new.first().filter(|_| !may_add) {
            return Err(NetworkError::Late {
                interface: wire.name.clone(),
                why: NO_PORT,
            });
        }
        // One that failed before is on record already.
        let on_record = record.links.iter().copied();
        let links: BTreeSet<_> = on_record.chain(new.iter().map(|wire| wire.index)).collect();
        let record = Record {
            links: links.into_iter().collect(),
            ..record
        };
        record.write(&directory)?;
        let cards = new.iter().map(|wire| {
            Ok(Card {
                interface: wire.name.clone(),
                index: wire.index,
                nic: nic(&mut socket, wire, &directory)?,
            })
        });
        Ok(Some(News {
            cards: cards.collect::<Result<_, NetworkError>>()?,
            told: plan.told,
        }))
    })
}
