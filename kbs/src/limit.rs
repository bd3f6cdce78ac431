//! How often one client may ask, so that none takes the broker from the others: a bucket of tokens for
//! each address, in a table of bounded size.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
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
    /// For the bodies of all clients.
    pub(crate) rooms: Rooms,
}

#[derive(Default)]
struct Table {
    buckets: HashMap<IpAddr, Bucket>,
    others: Option<Bucket>,
    swept: Option<Instant>,
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
            rooms: Rooms::default(),
        }
    }

    /// Lets a request in, or says after how many seconds to come again.
    pub(crate) fn admit(&self, client: IpAddr, now: Instant) -> Result<(), u64> {
        let (rate, burst) = (
            f64::from(self.config.requests_per_second),
            f64::from(self.config.burst),
        );
        if self.config.requests_per_second == 0
            || (self.config.exempt_loopback && client.is_loopback())
        {
            return Ok(());
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = table.bucket(network(client), rate, burst, now);
        bucket.fill(rate, burst, now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let wait = ((1.0 - bucket.tokens) / rate).ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 0 and 1"
        )]
        Err((wait as u64).max(1))
    }

    /// Whose request it is: the peer's, or where the peer is a known proxy, the one's that it names.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        client(&self.config.proxies, peer, headers)
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
        .map_while(|text| text.trim().parse::<IpAddr>().ok())
        .find(|address| !proxies.contains(address))
        .unwrap_or(peer)
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
    fn addresses_of_one_network_are_one_client() {
        let address = |text: &str| network(text.parse().unwrap());
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }
}
