//! The guest's network: loopback, and the cards that the host gives the VM, set up as the host says and
//! the owner's policy allows.
//!
//! ```text
//!   UpdateInterface ─► wire: checked ─► the card with this hardware address: name, MTU, addresses, up
//!   UpdateRoutes    ─► wire: checked ─► the routes that the host may set are exactly these
//!   AddARPNeighbors ─► wire: checked ─► neighbours that need not be asked for
//! ```
//!
//! The host carries every packet anyway, so what it says here is believed as far as a packet is: nothing in
//! the guest trusts an address. What it must not reach is the loopback, on which the workload API and the
//! workload's own parts listen.

mod loopback;
mod wire;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::{ErrorCode, GuestError, agent, types};
use netlink::{Address, Change, Destination, Link, Mac, Route, Socket};

pub use loopback::bring_up_loopback;

use crate::fault::OrFail;
use crate::gate::Allowed;
use wire::{Card, PHASE};

/// How long a card may take to appear: its driver has found it by then, also one that is plugged into an emulated guest.
const CARD_TIMEOUT: Duration = Duration::from_secs(10);
const CARD_POLL: Duration = Duration::from_millis(20);

/// The guest's network. One request changes it at a time.
#[derive(Debug, Default)]
pub struct Network {
    turn: Mutex<()>,
}

impl Network {
    /// Sets up the card with the hardware address of the request, and answers what it has become.
    ///
    /// # Errors
    ///
    /// There is no such card, the request is malformed, or the kernel refuses.
    pub async fn update_interface(
        &self,
        request: Allowed<agent::UpdateInterfaceRequest>,
    ) -> Result<types::Interface, GuestError> {
        let card = wire::card(&request.interface)?;
        let deadline = tokio::time::Instant::now() + CARD_TIMEOUT;
        while find(&links()?, card.mac).is_none() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(CARD_POLL).await;
        }
        let _turn = self.turn();
        let mut socket = open()?;
        let links = links()?;
        let link = find(&links, card.mac).ok_or_else(|| {
            let message = format!(
                "interface {}: the guest has no card with the hardware address {}",
                card.name, card.mac
            );
            GuestError::new(ErrorCode::NotFound, PHASE, message)
        })?;
        set_up(&mut socket, &card, link, &links)
            .or_internal(PHASE, format!("interface {}", card.name))?;
        let set_up = list(&mut socket)?;
        let text = card.mac.to_string();
        let answer = set_up
            .into_iter()
            .find(|interface| interface.hwAddr == text);
        Ok(answer.unwrap_or_default())
    }

    /// Replaces the routes that a host may set, and answers all.
    ///
    /// # Errors
    ///
    /// The request is malformed, names a device that is none, or the kernel refuses.
    pub fn update_routes(
        &self,
        request: &Allowed<agent::UpdateRoutesRequest>,
    ) -> Result<agent::Routes, GuestError> {
        let _turn = self.turn();
        let mut socket = open()?;
        let links = socket
            .links()
            .or_internal(PHASE, "read the guest's network")?;
        let wanted = wire::routes(&request.routes.Routes, &cards(&links))?;
        replace(&mut socket, &wanted, &links).or_internal(PHASE, "routes")?;
        told_routes(&mut socket)
    }

    /// Sets neighbours.
    ///
    /// # Errors
    ///
    /// The request is malformed, names a device that is none, or the kernel refuses.
    pub fn add_neighbours(
        &self,
        request: &Allowed<agent::AddARPNeighborsRequest>,
    ) -> Result<(), GuestError> {
        let _turn = self.turn();
        let mut socket = open()?;
        let links = socket
            .links()
            .or_internal(PHASE, "read the guest's network")?;
        let wanted = wire::neighbours(&request.neighbors.ARPNeighbors, &cards(&links))?;
        wanted
            .iter()
            .try_for_each(|neighbour| socket.set_neighbour(neighbour))
            .or_internal(PHASE, "neighbours")
    }

    /// Every interface.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn interfaces(
        &self,
        _: &Allowed<agent::ListInterfacesRequest>,
    ) -> Result<agent::Interfaces, GuestError> {
        Ok(agent::Interfaces {
            Interfaces: list(&mut open()?)?,
            ..Default::default()
        })
    }

    /// Every route of the main table.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn routes(
        &self,
        _: &Allowed<agent::ListRoutesRequest>,
    ) -> Result<agent::Routes, GuestError> {
        told_routes(&mut open()?)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open() -> Result<Socket, GuestError> {
    Socket::open().or_internal(PHASE, "the guest's network")
}

fn links() -> Result<Vec<Link>, GuestError> {
    open()?
        .links()
        .or_internal(PHASE, "read the guest's network")
}

/// The card with a hardware address. The loopback is none.
fn find(links: &[Link], mac: Mac) -> Option<&Link> {
    links
        .iter()
        .find(|link| link.mac == Some(mac) && !link.is_loopback)
}

/// The numbers of the interfaces that a host may name.
fn cards(links: &[Link]) -> HashMap<&str, u32> {
    let cards = links.iter().filter(|link| !link.is_loopback);
    cards.map(|link| (link.name.as_str(), link.index)).collect()
}

fn set_up(
    socket: &mut Socket,
    card: &Card,
    link: &Link,
    links: &[Link],
) -> Result<(), netlink::Error> {
    if link.name != card.name {
        let down = Change {
            up: Some(false),
            ..Change::default()
        };
        if let Some(other) = links.iter().find(|other| other.name == card.name) {
            // It has the name by chance, until its own turn comes.
            let renamed = Change {
                name: Some(format!("card{}", other.index)),
                ..Change::default()
            };
            socket.change_link(other, &down)?;
            socket.change_link(other, &renamed)?;
        }
        socket.change_link(link, &down)?;
        let renamed = Change {
            name: Some(card.name.clone()),
            ..Change::default()
        };
        socket.change_link(link, &renamed)?;
    }
    let shaped = Change {
        mtu: card.mtu,
        noarp: Some(card.noarp),
        ..Change::default()
    };
    socket.change_link(link, &shaped)?;
    let wanted: Vec<Address> = card.addresses(link.index).collect();
    for old in socket.addresses()? {
        let stays = wanted
            .iter()
            .any(|address| address.ip == old.ip && address.prefix == old.prefix);
        // The kernel's own come and go with the link.
        if old.index == link.index && old.is_permanent && !old.is_link_local && !stays {
            socket.remove_address(&old)?;
        }
    }
    for address in &wanted {
        socket.add_address(address)?;
    }
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    socket.change_link(link, &up)
}

/// Makes the routes of cards that are nobody else's exactly these. Those that hold go on holding.
fn replace(socket: &mut Socket, wanted: &[Route], links: &[Link]) -> Result<(), netlink::Error> {
    let of_the_host = |route: &Route| {
        let by_card = links
            .iter()
            .any(|link| route.by == Destination::Link(link.index) && !link.is_loopback);
        by_card && ![Route::BY_KERNEL, Route::BY_ROUTER].contains(&route.protocol)
    };
    let same = |one: &Route, other: &Route| {
        let other = Route {
            protocol: one.protocol,
            ..other.clone()
        };
        *one == other
    };
    let mut present = socket.routes()?;
    present.retain(of_the_host);
    for old in &present {
        if !wanted.iter().any(|route| same(route, old)) {
            socket.remove_route(old)?;
        }
    }
    for route in wanted {
        if !present.iter().any(|old| same(route, old)) {
            socket.add_route(route)?;
        }
    }
    Ok(())
}

fn list(socket: &mut Socket) -> Result<Vec<types::Interface>, GuestError> {
    let read = || "read the guest's network";
    let links = socket.links().or_internal(PHASE, read())?;
    let addresses = socket.addresses().or_internal(PHASE, read())?;
    let told = links.iter().map(|link| wire::told_link(link, &addresses));
    Ok(told.collect())
}

fn told_routes(socket: &mut Socket) -> Result<agent::Routes, GuestError> {
    let read = || "read the guest's network";
    let links = socket.links().or_internal(PHASE, read())?;
    let routes = socket.routes().or_internal(PHASE, read())?;
    let told = routes.iter().map(|route| wire::told_route(route, &links));
    Ok(agent::Routes {
        Routes: told.collect(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests;
