//! Finds current documents for a want: in memory, on the disk, and at the services.
//!
//! What does not verify is never kept, and nothing replaces a good copy but a newer one that verifies.
//! While a good copy still holds, a failure to renew it is told to the operator and to nobody else.

use std::{sync::Arc, time::Instant};

use super::{
    CollateralError,
    error::show,
    keeper::{Keeper, Outcome},
    proof::{Kept, Trust, Want},
    stored::Held,
};

/// Documents on their way to a want.
struct Search<'a> {
    keeper: &'a Arc<Keeper>,
    want: &'a Want,
    trust: &'a Trust,
    now: i64,
    /// One for each document of the want.
    parts: Vec<Option<Held>>,
    /// Which of them were fetched in this search.
    fetched: Vec<bool>,
    /// What verified before.
    known: Option<Arc<Kept>>,
}

pub(super) async fn renew(
    keeper: &Arc<Keeper>,
    want: &Want,
    trust: &Trust,
    known: Option<Arc<Kept>>,
    now: i64,
) -> Outcome {
    let mut search = Search::start(keeper, want, trust, known, now).await;
    match search.complete().await {
        Ok(kept) => Ok(kept),
        Err(error) => match search.known.filter(|known| known.is_current(now)) {
            Some(known) => {
                tracing::warn!(%error, "collateral is not renewed; the kept copy still holds");
                Ok(known)
            }
            None => Err(error),
        },
    }
}

impl<'a> Search<'a> {
    /// Takes the newest copies that are here, and verifies them if all are there.
    async fn start(
        keeper: &'a Arc<Keeper>,
        want: &'a Want,
        trust: &'a Trust,
        known: Option<Arc<Kept>>,
        now: i64,
    ) -> Self {
        let mut parts = keeper.copies(want).await;
        let here = local(trust, want, known, &mut parts);
        let fetched = vec![false; parts.len()];
        Self {
            keeper,
            want,
            trust,
            now,
            parts,
            fetched,
            known: here,
        }
    }

    async fn complete(&mut self) -> Outcome {
        let mut missing: Vec<usize> = (0..self.parts.len())
            .filter(|at| self.is_needed(*at))
            .collect();
        if let (true, Some(known)) = (missing.is_empty(), &self.known) {
            return Ok(Arc::clone(known));
        }
        self.may_ask(&missing)?;
        loop {
            self.fetch(&missing).await?;
            match self.prepare() {
                Ok(ready) => return self.keep(ready).await,
                Err(cause) => {
                    // A copy that nothing verified may be what does not fit.
                    missing = (0..self.parts.len())
                        .filter(|at| !self.fetched[*at])
                        .collect();
                    if self.known.is_some() || missing.is_empty() {
                        return Err(self.refuse_fetched(&cause));
                    }
                }
            }
        }
    }

    /// Whether to ask for a document: always if there is none that holds, and if it is due where
    /// somebody can be asked.
    fn is_needed(&self, at: usize) -> bool {
        let Some(part) = self.parts[at].as_ref() else {
            return true;
        };
        let can_ask = || self.keeper.fetcher.place(part.document()).is_some();
        // Who signed a document may end before it does.
        let ended = || {
            let known = self.known.as_ref();
            known.is_some_and(|known| !known.is_current(self.now))
        };
        !part.is_current(self.now) || ((part.is_due(self.now) || ended()) && can_ask())
    }

    /// That there is somebody to ask, if anything is missing.
    fn may_ask(&self, missing: &[usize]) -> Result<(), CollateralError> {
        for document in missing.iter().map(|at| &self.want.documents()[*at]) {
            if self.keeper.fetcher.place(document).is_some() {
                continue;
            }
            let document = document.clone();
            let ended = self.known.as_ref().and_then(|known| {
                let part = known.parts.iter().find(|p| *p.document() == document)?;
                (!part.is_current(self.now)).then_some(part.until)
            });
            return Err(match ended {
                Some(until) => CollateralError::Expired { document, until },
                None => CollateralError::Absent { document },
            });
        }
        Ok(())
    }

    /// Fetches these, all at once.
    async fn fetch(&mut self, missing: &[usize]) -> Result<(), CollateralError> {
        let start = |at: &usize| (*at, self.keeper.fetch(&self.want.documents()[*at]));
        let arrivals: Vec<_> = missing.iter().map(start).collect();
        for (at, arrival) in arrivals {
            let document = self.want.documents()[at].clone();
            let arrived = match arrival {
                Some(arrival) => arrival.wait().await,
                None => None,
            };
            let held = arrived.ok_or(CollateralError::Busy { document })??;
            if let Err(cause) = self.replaces(at, &held) {
                return Err(self.refuse(at, cause));
            }
            self.parts[at] = Some(held);
            self.fetched[at] = true;
        }
        Ok(())
    }

    /// Whether a fetched document may stand where another one did.
    fn replaces(&self, at: usize, held: &Held) -> Result<(), String> {
        let now = self.now;
        if !held.is_current(now) {
            return Err(format!(
                "it holds from {} until {}, and it is {}",
                show(held.from),
                show(held.until),
                show(now)
            ));
        }
        match self.known.as_ref().and_then(|known| known.parts.get(at)) {
            Some(known) if held.from < known.from => Err(format!(
                "it is of {}, and the one in the cache of {}",
                show(held.from),
                show(known.from)
            )),
            _ => Ok(()),
        }
    }

    fn prepare(&self) -> Result<Kept, String> {
        let parts = self.parts.iter().flatten().cloned().collect();
        self.trust.prepare(self.want, parts)
    }

    async fn keep(&self, kept: Kept) -> Outcome {
        for (part, fetched) in kept.parts.iter().zip(&self.fetched) {
            if !fetched {
                continue;
            }
            let document = part.document();
            self.keeper.fetcher.holds.taken(document);
            self.keeper.arrived.remove(document);
            tracing::info!(%document, until = show(part.until), "fetched");
            if let Err(error) = self.keeper.write(part.clone()).await {
                let path = self.keeper.disk.path(document);
                tracing::error!(%error, path = %path.display(), "the cache cannot be written");
            }
        }
        Ok(Arc::new(kept))
    }

    /// None of what was fetched is to be asked for again soon: which of it is wrong cannot be told.
    fn refuse_fetched(&self, cause: &str) -> CollateralError {
        let mut error = CollateralError::Absent {
            document: self.want.first().clone(),
        };
        for at in (0..self.parts.len()).filter(|at| self.fetched[*at]) {
            error = self.refuse(at, cause.to_owned());
        }
        error
    }

    /// Remembers that the service's answer is no good.
    fn refuse(&self, at: usize, cause: String) -> CollateralError {
        let document = &self.want.documents()[at];
        let error = CollateralError::Refused {
            document: document.clone(),
            host: self.keeper.host(document),
            cause,
        };
        self.keeper.arrived.remove(document);
        let holds = &self.keeper.fetcher.holds;
        holds.failed(error.clone(), document, Instant::now());
        error
    }
}

/// The newest verified copies that are here. Copies that do not verify together are dropped; while
/// some are missing, `parts` keeps what there is.
pub(super) fn local(
    trust: &Trust,
    want: &Want,
    known: Option<Arc<Kept>>,
    parts: &mut [Option<Held>],
) -> Option<Arc<Kept>> {
    if let Some(known) = &known {
        let newer = parts.iter().zip(&known.parts);
        let newer = newer
            .filter(|(copy, part)| copy.as_ref().is_some_and(|copy| copy.is_newer_than(part)))
            .count();
        if newer == 0 {
            fill(parts, known);
            return Some(Arc::clone(known));
        }
        for (copy, part) in parts.iter_mut().zip(&known.parts) {
            if copy.as_ref().is_none_or(|copy| part.is_newer_than(copy)) {
                *copy = Some(part.clone());
            }
        }
    }
    let all: Option<Vec<_>> = parts.iter().cloned().collect();
    let all = all?;
    match trust.prepare(want, all) {
        Ok(kept) => Some(Arc::new(kept)),
        Err(cause) => {
            tracing::warn!(document = %want.first(), cause, "files of the cache do not verify");
            match &known {
                Some(known) => fill(parts, known),
                None => parts.fill(None),
            }
            known
        }
    }
}

fn fill(parts: &mut [Option<Held>], known: &Kept) {
    for (copy, part) in parts.iter_mut().zip(&known.parts) {
        *copy = Some(part.clone());
    }
}
