//! Serves a whole confidential VM, which has no containers: who may ask is said by user, and what by kind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use attestation_agent::api::{self, Abilities, Addresses, Ask, Authorize, Caller, Peer, Refused};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Error,
    guest::{Guest, Log, Services},
};

#[derive(clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    guest: Guest,
    /// What may be asked for: resource, token, evidence (with the event log), or all.
    #[arg(long, value_delimiter = ',', default_value = "resource")]
    allow: Vec<String>,
    /// The users, by number, who may ask; root where none is named.
    #[arg(long = "user", value_name = "UID")]
    users: Vec<u32>,
    /// The directory of the sockets.
    #[arg(long, default_value = Addresses::DIRECTORY)]
    directory: PathBuf,
    /// The address of REST, on the loopback.
    #[arg(long, default_value = "127.0.0.1:8006")]
    rest: SocketAddr,
}

/// What somebody may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Resource,
    Token,
    Evidence,
}

impl Serve {
    pub(super) async fn run(self) -> Result<(), Error> {
        let Services { hub, log } = self.guest.services(Log::Write)?;
        let hub = Arc::new(hub);
        tokio::spawn(hub.keep_fresh());
        let users = match self.users.is_empty() {
            true => vec![0],
            false => self.users,
        };
        let mut kinds = Vec::new();
        for word in &self.allow {
            kinds.extend(kinds_of(word)?);
        }
        let addresses = Addresses {
            attestation: self
                .directory
                .join("attestation-agent/attestation-agent.sock"),
            data_hub: self.directory.join("cdh.sock"),
            rest: Some(self.rest),
            ..Addresses::of_guest()
        };
        let machine = Arc::new(Machine { users, kinds });
        let abilities = Abilities {
            log: Some(log),
            volumes: None,
        };
        let _serving = api::serve(hub, machine, abilities, &addresses).await?;
        eprintln!(
            "attestation-agent: serving on {} and {}",
            self.directory.display(),
            self.rest
        );
        ended().await;
        for socket in [&addresses.attestation, &addresses.data_hub] {
            let _ = std::fs::remove_file(socket);
        }
        Ok(())
    }
}

/// Waits for SIGTERM or SIGINT.
async fn ended() {
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn kinds_of(word: &str) -> Result<Vec<Kind>, Error> {
    match word {
        "resource" => Ok(vec![Kind::Resource]),
        "token" => Ok(vec![Kind::Token]),
        "evidence" => Ok(vec![Kind::Evidence]),
        "all" => Ok(vec![Kind::Resource, Kind::Token, Kind::Evidence]),
        other => Err(Error::Allow(other.chars().take(32).collect())),
    }
}

struct Machine {
    users: Vec<u32>,
    kinds: Vec<Kind>,
}

#[async_trait]
impl Authorize for Machine {
    async fn identify(&self, peer: Peer) -> Result<Caller, Refused> {
        let user = peer.user.filter(|user| self.users.contains(user));
        let user = user.ok_or_else(|| Refused("this user may not ask".to_owned()))?;
        Ok(Caller {
            id: format!("user {user}"),
            annotations: BTreeMap::new(),
        })
    }

    fn allow(&self, _: &Caller, ask: &Ask<'_>) -> Result<(), Refused> {
        let kind = match ask {
            Ask::Resource { .. } => Some(Kind::Resource),
            Ask::Token => Some(Kind::Token),
            Ask::Evidence { .. } | Ask::Measure { .. } => Some(Kind::Evidence),
            Ask::Mount { .. } => None,
        };
        match kind {
            Some(kind) if self.kinds.contains(&kind) => Ok(()),
            _ => Err(Refused(format!("{} is not allowed here", ask.rule()))),
        }
    }
}
