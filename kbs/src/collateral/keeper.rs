//! Holds verified documents in memory, and has them found when they are not there.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use evidence::Tee;
use tokio::{task::spawn_blocking, time::timeout};
use verifier::{snp, tdx};

use super::{
    CollateralError,
    config::Config,
    disk::{Disk, Entry},
    document::Document,
    fetch::Fetcher,
    flight::{Arrival, Flights},
    proof::{Digest, Kept, Trust, Want},
    renew::renew,
    shelf::Shelf,
    stored::Held,
};

/// How long a guest waits for what is not in the cache.
pub(super) const WAIT: Duration = Duration::from_secs(10);
/// Sets of verified documents in memory.
const READY: usize = 1024;
/// Sets, and documents, that are being looked for at once.
const FLIGHTS: usize = 512;
/// Fetched documents that others are waited for to be verified with.
const ARRIVED: usize = 16;

/// What was found for a want, or why not.
pub(super) type Outcome = Result<Arc<Kept>, CollateralError>;

/// A want, and the roots by which it was verified: what one root signed is nothing for another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) want: Want,
    roots: Digest,
}

/// Memory, disk and network, in this order.
pub(super) struct Keeper {
    pub(super) disk: Disk,
    pub(super) fetcher: Fetcher,
    ready: Shelf<Key, Arc<Kept>>,
    /// What could not be had, and in which second of the epoch: a thousand guests of one second are
    /// not a thousand looks at the disk.
    missed: Shelf<Key, (i64, CollateralError)>,
    renewals: Arc<Flights<Key, Outcome>>,
    fetches: Arc<Flights<Document, Result<Held, CollateralError>>>,
    /// Fetched, and waiting for others to be verified with.
    pub(super) arrived: Shelf<Document, Held>,
    trusted: Mutex<HashMap<Tee, Trust>>,
}

impl Keeper {
    pub(super) fn open(config: &Config) -> Result<Self, CollateralError> {
        let intel = tdx::Roots::intel();
        let intel = intel.map_err(|error| CollateralError::Config(error.to_string()))?;
        let vendors = [
            Trust::Snp(Arc::new(snp::Roots::amd()?)),
            Trust::Tdx(Arc::new(intel)),
        ];
        Ok(Self {
            disk: Disk::new(config.directory.clone()),
            fetcher: Fetcher::new(config)?,
            ready: Shelf::new(READY),
            missed: Shelf::new(READY),
            renewals: Arc::new(Flights::new(FLIGHTS)),
            fetches: Arc::new(Flights::new(FLIGHTS)),
            arrived: Shelf::new(ARRIVED),
            trusted: Mutex::new(vendors.map(|trust| (trust.kind(), trust)).into()),
        })
    }

    /// The roots for a kind, where any are known.
    pub(super) fn trust(&self, kind: Tee) -> Option<Trust> {
        let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        trusted.get(&kind).cloned()
    }

    /// Shares the roots that an attestation came with, and knows them from then on.
    pub(super) fn share_snp(&self, roots: &snp::Roots) -> Trust {
        self.share(roots.kind(), roots.digest(), || {
            Trust::Snp(Arc::new(roots.clone()))
        })
    }

    /// The same for TDX.
    pub(super) fn share_tdx(&self, roots: &tdx::Roots) -> Trust {
        self.share(roots.kind(), roots.digest(), || {
            Trust::Tdx(Arc::new(roots.clone()))
        })
    }

    fn share(&self, kind: Tee, digest: &Digest, own: impl FnOnce() -> Trust) -> Trust {
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        match trusted.get(&kind) {
            Some(known) if known.digest() == digest => known.clone(),
            _ => {
                let trust = own();
                trusted.insert(kind, trust.clone());
                trust
            }
        }
    }

    /// Verified documents that hold now. A guest waits for its own and for no other's.
    pub(super) async fn get(
        self: &Arc<Self>,
        want: Want,
        roots: &Digest,
        share: impl FnOnce() -> Trust,
        now: i64,
    ) -> Outcome {
        let key = Key {
            want,
            roots: *roots,
        };
        if let Some(kept) = self.ready.get(&key).filter(|kept| kept.is_current(now)) {
            return Ok(kept);
        }
        if let Some((_, error)) = self.missed.get(&key).filter(|(second, _)| *second == now) {
            return Err(error);
        }
        let document = key.want.first().clone();
        let Some(arrival) = self.renewal(&key, share(), now) else {
            return Err(CollateralError::Busy { document });
        };
        match timeout(WAIT, arrival.wait()).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(CollateralError::Busy { document }),
            Err(_) => Err(CollateralError::TooSlow {
                host: self.host(&document),
                document,
                seconds: WAIT.as_secs(),
            }),
        }
    }

    /// The same, and waits for as long as it takes.
    pub(super) async fn have(self: &Arc<Self>, want: &Want, trust: Trust, now: i64) -> Outcome {
        let roots = *trust.digest();
        let want = want.clone();
        let document = want.first().clone();
        let arrival = self.renewal(&Key { want, roots }, trust, now);
        let outcome = match arrival {
            Some(arrival) => arrival.wait().await,
            None => None,
        };
        outcome.unwrap_or(Err(CollateralError::Busy { document }))
    }

    /// Joins or starts the search for newer documents.
    pub(super) fn renewal(
        self: &Arc<Self>,
        key: &Key,
        trust: Trust,
        now: i64,
    ) -> Option<Arrival<Outcome>> {
        let mut documents = key.want.documents().iter();
        let is_one_of_few = !documents.any(Document::is_named_by_guests);
        self.renewals.join(key, is_one_of_few, || {
            let (keeper, key) = (Arc::clone(self), key.clone());
            async move {
                let known = keeper.ready.get(&key);
                let outcome = renew(&keeper, &key.want, &trust, known, now).await;
                match &outcome {
                    Ok(kept) => keeper.ready.insert(key, Arc::clone(kept)),
                    Err(error) => keeper.missed.insert(key, (now, error.clone())),
                }
                outcome
            }
        })
    }

    /// The document as its service gives it; one fetch for all who ask.
    pub(super) fn fetch(
        self: &Arc<Self>,
        document: &Document,
    ) -> Option<Arrival<Result<Held, CollateralError>>> {
        self.fetches
            .join(document, !document.is_named_by_guests(), || {
                let (keeper, document) = (Arc::clone(self), document.clone());
                async move {
                    if let Some(arrived) = keeper.arrived.get(&document) {
                        return Ok(arrived);
                    }
                    let held = keeper.fetcher.get(&document).await?;
                    keeper.arrived.insert(document, held.clone());
                    Ok(held)
                }
            })
    }

    /// Copies of documents on the disk, whose form is right and which nothing verified yet.
    pub(super) async fn copies(&self, want: &Want) -> Vec<Option<Held>> {
        let (disk, documents) = (self.disk.clone(), want.documents().to_vec());
        let nothing = vec![None; documents.len()];
        let read = move || {
            let copies = documents.iter().map(|document| disk.read(document));
            copies.collect()
        };
        spawn_blocking(read).await.unwrap_or(nothing)
    }

    /// Writes a verified document.
    pub(super) async fn write(&self, held: Held) -> io::Result<()> {
        let disk = self.disk.clone();
        let written = spawn_blocking(move || disk.write(&held)).await;
        self.missed.clear();
        written.map_err(io::Error::other)?
    }

    /// All files of the cache.
    pub(super) async fn list(&self) -> io::Result<Vec<Entry>> {
        let disk = self.disk.clone();
        spawn_blocking(move || disk.list())
            .await
            .map_err(io::Error::other)?
    }

    /// What should be looked after: all that is in memory, and what is on the disk and has roots.
    pub(super) async fn wants(&self) -> Vec<Want> {
        let disk = self.disk.clone();
        let on_disk = spawn_blocking(move || disk.documents()).await;
        let reissued = on_disk.ok().and_then(Result::ok).unwrap_or_default();
        let reissued: Vec<_> = reissued.into_iter().filter(Document::is_reissued).collect();
        let mut wants = Want::all_of(&reissued);
        for (key, _) in self.ready.all() {
            if !wants.contains(&key.want) {
                wants.push(key.want);
            }
        }
        wants
    }

    /// Looks for newer documents where those that are kept will end, one want after the other.
    pub(super) async fn look_after(self: &Arc<Self>, want: Want, now: i64) {
        let Some(trust) = self.trust(want.first().kind()) else {
            return;
        };
        let key = Key {
            want,
            roots: *trust.digest(),
        };
        // A list may have been imported; a chip's certificate is the same for years.
        let kept = self.ready.get(&key).filter(|kept| kept.is_current(now));
        if kept.is_some() && !key.want.first().is_reissued() {
            return;
        }
        let Some(arrival) = self.renewal(&key, trust, now) else {
            return;
        };
        match arrival.wait().await {
            Some(Ok(kept)) => {
                let until = super::error::show(kept.until);
                tracing::debug!(document = %key.want.first(), until, "looked after");
            }
            Some(Err(error)) => tracing::warn!(%error, "collateral cannot be renewed"),
            None => {}
        }
    }

    pub(super) fn host(&self, document: &Document) -> String {
        let place = self.fetcher.place(document);
        place.map_or_else(|| "the cache".to_owned(), |place| place.host)
    }
}
