//! The network of a namespace, read and changed through the kernel's rtnetlink(7), as plain data.
//!
//! ```text
//!   shim, in the pod's namespace:  links, addresses, routes, neighbours ─► what the guest is told
//!   agent, in the guest:           what the host tells ─► links, addresses, routes, neighbours
//! ```
//!
//! Both halves of Cloister link it, so that what one reads is what the other writes. A [`Socket`]
//! belongs to the namespace in which its thread was when it opened it. Every call waits for the
//! kernel's answer, which comes at once: rtnetlink does its work within the call. It decides nothing,
//! and knows neither pods nor policies.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod link;
mod mac;
mod neighbour;
mod route;
mod socket;

pub use address::Address;
pub use link::{Change, Link, MAX_NAME, is_name};
pub use mac::{Mac, ParseMacError};
pub use neighbour::Neighbour;
pub use netlink_packet_route as packet;
pub use route::{Destination, Prefix, Route};
pub use socket::{Error, Socket};
