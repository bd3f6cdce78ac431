//! What stands between us and particular hosts: their certificates, a proxy, and how slow a body may be.

use std::{collections::BTreeMap, time::Duration};

use crate::{Proxies, Roots};

/// How hosts are reached that are not like the others. The default is that none is.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Whom to trust as a host, by `host` (each port of it) or `host:port`, which counts first.
    pub hosts: BTreeMap<String, Trust>,
    /// Who carries the connections.
    pub proxies: Proxies,
    /// How slow a body may be.
    pub pace: Option<Pace>,
}

/// Which certificates a host may show.
#[derive(Debug, Clone)]
pub enum Trust {
    /// One that chains to these.
    Roots(Roots),
    /// Any. Whoever is on the way can read and change everything.
    Unverified,
}

/// The least that a body must bring. Only the time counts in which we wait for it: a reader that takes its time
/// does not make the peer slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// So many bytes.
    pub bytes: u64,
    /// In each such span.
    pub within: Duration,
}
