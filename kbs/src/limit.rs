//! How often one client may ask and how many connections it may have, so that none takes the broker from
//! the others: a bucket of tokens for each address, in a table of bounded size, and a count.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::HeaderMap;

use crate::{config::Limits, route::Rooms};

/// Addresses that are remembered. What does not fit shares one bucket.
const ADDRESSES: usize = 65_536;
/// Between two looks for buckets that can go, which takes time.
const SWEEP: Duration = Duration::from_secs(1);
/// A client with IPv6 has a network of its own and not one address.
const PREFIX_BITS: u32 = 64;

/// The buckets.
pub(crate) struct Limiter {
    config: Limits,
    table: Mutex<Table>,
    /// Of those who ask as administrators and are none: guests of the same address keep no
    /// administrator out.
    strangers: Mutex<Table>,
    /// For the bodies of all clients.
    pub(crate) rooms: Rooms,
}

#[derive(Default)]
struct Table {
    buckets: HashMap<IpAddr, Bucket>,
    others: Option<Bucket>,
    swept: Option<Instant>,
    /// How many were refused since that was asked, and the last of them.
    refused: Option<(u64, IpAddr)>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(burst: f64, now: Instant) -> Self {
        Self {
            tokens: burst,
            filled: now,
        }
    }

    fn fill(&mut self, rate: f64, burst: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        self.tokens = passed.as_secs_f64().mul_add(rate, self.tokens).min(burst);
        self.filled = now;
    }
}

impl Limiter {
    pub(crate) fn new(config: &Limits) -> Self {
        Self {
            config: config.clone(),
            table: Mutex::default(),
            strangers: Mutex::default(),
            rooms: Rooms::default(),
        }
    }

    /// Lets a request in, or says after how many seconds to come again.
    pub(crate) fn admit(&self, client: IpAddr, now: Instant) -> Result<(), u64> {
        self.take(&self.table, client, 1.0, now)
    }

    /// The same for who asked as an administrator and is none.
    pub(crate) fn admit_stranger(&self, client: IpAddr, now: Instant) -> Result<(), u64> {
        self.take(&self.strangers, client, 1.0, now)
    }

    /// Whether such a one would be let in; it is not counted.
    pub(crate) fn look_stranger(&self, client: IpAddr, now: Instant) -> Result<(), u64> {
        self.take(&self.strangers, client, 0.0, now)
    }

    fn take(
        &self,
        table: &Mutex<Table>,
        client: IpAddr,
        tokens: f64,
        now: Instant,
    ) -> Result<(), u64> {
        let (rate, burst) = (
            f64::from(self.config.requests_per_second),
            f64::from(self.config.burst),
        );
        if self.config.requests_per_second == 0 || self.is_exempt(client) {
            return Ok(());
        }
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = table.bucket(network(client), rate, burst, now);
        bucket.fill(rate, burst, now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= tokens;
            return Ok(());
        }
        let wait = ((1.0 - bucket.tokens) / rate).ceil();
        let refused = table.refused.map_or(0, |(count, _)| count);
        table.refused = Some((refused + 1, client));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 0 and 1"
        )]
        Err((wait as u64).max(1))
    }

    /// How many requests were not let in since it was asked last, and of whom the last one was.
    pub(crate) fn refused(&self) -> Option<(u64, IpAddr)> {
        let taken = |table: &Mutex<Table>| {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.refused.take()
        };
        match (taken(&self.table), taken(&self.strangers)) {
            (Some((one, _)), Some((other, last))) => Some((one + other, last)),
            (one, other) => one.or(other),
        }
    }

    fn is_exempt(&self, client: IpAddr) -> bool {
        self.config.exempt_loopback && client.to_canonical().is_loopback()
    }

    /// Who has a share of what all clients share, or nothing where an address is many clients: a proxy,
    /// which answers for its own, or one that is not counted.
    pub(crate) fn whose(&self, client: IpAddr) -> Option<IpAddr> {
        let proxy = self.config.proxies.contains(&client.to_canonical());
        (!proxy && !self.is_exempt(client)).then(|| network(client))
    }

    /// A connection's share of a port, or nothing where its address has its share already. Those of a
    /// proxy are many clients', and its own business.
    pub(crate) fn share(&self, shares: &Shares, peer: IpAddr) -> Option<Share> {
        match self.whose(peer).filter(|_| shares.cap > 0) {
            Some(client) => shares.take(client),
            None => Some(Share(None)),
        }
    }

    /// Whose request it is: the peer's, or where the peer is a known proxy, the one's that it names.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        client(&self.config.proxies, peer, headers)
    }
}

type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// How many connections each address has. No more addresses are in it than there are connections.
pub(crate) struct Shares {
    cap: usize,
    taken: Counts,
}

impl Shares {
    /// So many for each; 0 for no limit.
    pub(crate) fn new(cap: u32) -> Self {
        Self {
            cap: usize::try_from(cap).unwrap_or(usize::MAX),
            taken: Arc::default(),
        }
    }

    fn take(&self, client: IpAddr) -> Option<Share> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(client).or_insert(0);
        if *count >= self.cap {
            return None;
        }
        *count += 1;
        Some(Share(Some((Arc::clone(&self.taken), client))))
    }
}

/// One connection, for as long as it is there; `None` where nobody counts it.
pub(crate) struct Share(Option<(Counts, IpAddr)>);

impl Drop for Share {
    fn drop(&mut self) {
        let Some((taken, client)) = self.0.take() else {
            return;
        };
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let left = taken
            .get(&client)
            .map_or(0, |count| count.saturating_sub(1));
        match left {
            0 => taken.remove(&client),
            left => taken.insert(client, left),
        };
    }
}

impl Table {
    fn bucket(&mut self, client: IpAddr, rate: f64, burst: f64, now: Instant) -> &mut Bucket {
        let full = self.buckets.len() >= ADDRESSES && !self.buckets.contains_key(&client);
        let swept = |at: Instant| now.saturating_duration_since(at) < SWEEP;
        if full && !self.swept.is_some_and(swept) {
            self.swept = Some(now);
            // A full bucket is as good as none.
            self.buckets.retain(|_, bucket| {
                bucket.fill(rate, burst, now);
                bucket.tokens < burst
            });
        }
        if self.buckets.len() >= ADDRESSES && !self.buckets.contains_key(&client) {
            return self.others.get_or_insert_with(|| Bucket::new(burst, now));
        }
        let fresh = || Bucket::new(burst, now);
        self.buckets.entry(client).or_insert_with(fresh)
    }
}

fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (128 - PREFIX_BITS);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

fn client(proxies: &BTreeSet<IpAddr>, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let peer = peer.to_canonical();
    if !proxies.contains(&peer) {
        return peer;
    }
    // Each proxy writes who it has it from at the end; what stands before may be made up.
    let lines: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|line| line.to_str().ok())
        .collect();
    lines
        .iter()
        .rev()
        .flat_map(|line| line.rsplit(','))
        .map_while(|text| address(text.trim()))
        .find(|address| !proxies.contains(address))
        .unwrap_or(peer)
}

/// An address as proxies write it: some with the port, and then one of IPv6 in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse().ok().map(|socket: SocketAddr| socket.ip());
    let address = text.parse().ok().or_else(with_port);
    Some(address.or_else(bare)?.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(requests_per_second: u32, burst: u32) -> Limiter {
        Limiter::new(&Limits {
            requests_per_second,
            burst,
            ..Limits::default()
        })
    }

    #[test]
    fn a_client_has_its_burst_and_then_its_rate_whatever_others_do() {
        let limiter = limiter(2, 3);
        let now = Instant::now();
        let (one, two): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(limiter.admit(one, now), Ok(()));
        }
        assert_eq!(limiter.admit(one, now), Err(1));
        assert_eq!(limiter.admit(two, now), Ok(()));
        let later = now + Duration::from_millis(600);
        assert_eq!(limiter.admit(one, later), Ok(()));
        assert_eq!(limiter.admit(one, later), Err(1));
    }

    #[test]
    fn who_only_looks_is_not_counted_and_who_is_refused_is_told_of_once() {
        let limiter = limiter(1, 1);
        let (now, one) = (Instant::now(), "192.0.2.1".parse().unwrap());
        assert_eq!(limiter.look_stranger(one, now), Ok(()));
        assert_eq!(limiter.admit_stranger(one, now), Ok(()));
        assert_eq!(limiter.refused(), None);
        assert_eq!(limiter.look_stranger(one, now), Err(1));
        assert_eq!(limiter.admit(one, now), Ok(()), "guests have their own");
        assert_eq!(limiter.admit(one, now), Err(1));
        assert_eq!(limiter.refused(), Some((2, one)));
        assert_eq!(limiter.refused(), None);
    }

    #[test]
    fn the_table_is_bounded_and_who_does_not_fit_shares_a_bucket() {
        let limiter = limiter(1, 2);
        let now = Instant::now();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        for number in 0..u32::try_from(ADDRESSES).unwrap() + 2 {
            assert_eq!(limiter.admit(address(number), now), Ok(()));
        }
        assert_eq!(limiter.admit(address(u32::MAX), now), Err(1));
        assert_eq!(limiter.table.lock().unwrap().buckets.len(), ADDRESSES);
        let later = now + Duration::from_secs(5);
        assert_eq!(limiter.admit(address(u32::MAX), later), Ok(()));
        assert_eq!(limiter.table.lock().unwrap().buckets.len(), 1);
    }

    #[test]
    fn loopback_is_free_only_where_the_configuration_says_so() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let now = Instant::now();
        let strict = limiter(1, 1);
        assert!(strict.admit(here, now).is_ok() && strict.admit(here, now).is_err());
        let free = Limiter::new(&Limits {
            requests_per_second: 1,
            burst: 1,
            exempt_loopback: true,
            ..Limits::default()
        });
        assert!((0..10).all(|_| free.admit(here, now).is_ok()));
    }

    #[test]
    fn a_client_cannot_make_itself_another_by_a_header() {
        let proxies = BTreeSet::from(["192.0.2.9".parse().unwrap()]);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut headers = HeaderMap::new();
        headers.append(
            "x-forwarded-for",
            "203.0.113.7, 198.51.100.1".parse().unwrap(),
        );
        headers.append(
            "x-forwarded-for",
            "198.51.100.2, 192.0.2.9".parse().unwrap(),
        );
        assert_eq!(
            client(&proxies, address("198.51.100.9"), &headers),
            address("198.51.100.9")
        );
        assert_eq!(
            client(&proxies, address("192.0.2.9"), &headers),
            address("198.51.100.2")
        );
        assert_eq!(
            client(&proxies, address("192.0.2.9"), &HeaderMap::new()),
            address("192.0.2.9")
        );
    }

    #[test]
    fn an_address_with_its_port_is_the_same_address() {
        let proxies = BTreeSet::from(["192.0.2.9".parse().unwrap()]);
        for (text, expected) in [
            ("203.0.113.7:4711", "203.0.113.7"),
            ("203.0.113.7:4711, 192.0.2.9:80", "203.0.113.7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("2001:db8::7", "2001:db8::7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("unknown", "192.0.2.9"),
            ("203.0.113.7:99999", "192.0.2.9"),
        ] {
            let headers = [("x-forwarded-for", text)];
            let headers =
                headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let found = client(
                &proxies,
                "192.0.2.9".parse().unwrap(),
                &HeaderMap::from_iter(headers),
            );
            assert_eq!(found, expected.parse::<IpAddr>().unwrap(), "{text}");
        }
    }

    #[test]
    fn an_address_has_its_share_of_connections_and_no_more() {
        let limiter = Limiter::new(&Limits {
            exempt_loopback: true,
            proxies: BTreeSet::from(["192.0.2.9".parse().unwrap()]),
            ..Limits::default()
        });
        let shares = Shares::new(2);
        let share = |text: &str| limiter.share(&shares, text.parse().unwrap());
        let first = share("2001:db8::1").unwrap();
        let _second = share("2001:db8::2").unwrap();
        assert!(share("2001:db8::3").is_none());
        assert!(share("2001:db8:0:1::1").is_some());
        drop(first);
        let _third = share("2001:db8::3").unwrap();
        assert!(share("2001:db8::4").is_none());
        for free in ["127.0.0.1", "::ffff:127.0.0.1", "192.0.2.9"] {
            let many: Vec<_> = (0..9).map(|_| share(free)).collect();
            assert!(many.iter().all(Option::is_some), "{free}");
        }
        assert_eq!(shares.taken.lock().unwrap().len(), 1);
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let address = |text: &str| network(text.parse().unwrap());
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }
}
