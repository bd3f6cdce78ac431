//! Neighbours whose hardware addresses were set by somebody, not learnt.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Error, Mac, Socket};

/// A neighbour that stays until it is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The number of the interface behind which it is.
    pub index: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

impl Socket {
    /// Every permanent neighbour.
    ///
    /// # Errors
    /// [`Error`].
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, Error> {
        let wanted = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let objects = self.list("list the neighbours", &wanted)?;
        let neighbours = objects.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message),
            _ => None,
        });
        Ok(neighbours.collect())
    }

    /// Sets a neighbour, whatever was known of it.
    ///
    /// # Errors
    /// [`Error`] names it.
    pub fn set_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        let what = format!("set the neighbour {}", neighbour.ip);
        let message = RouteNetlinkMessage::NewNeighbour(message(neighbour));
        self.act(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
    }
}

fn message(neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = match neighbour.ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.ifindex = neighbour.index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour.ip.into()),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    message
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent
        || message.header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    Some(Neighbour {
        index: message.header.ifindex,
        ip: ip?,
        mac: mac?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> Neighbour {
        Neighbour {
            index: 2,
            ip: "169.254.1.1".parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        assert_eq!(neighbour(&message(&gateway())), Some(gateway()));
    }

    #[test]
    fn what_was_only_learnt_is_left_out() {
        let mut learnt = message(&gateway());
        learnt.header.state = NeighbourState::Reachable;
        assert_eq!(neighbour(&learnt), None);
    }
}
