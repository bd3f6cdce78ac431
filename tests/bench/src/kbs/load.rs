//! Load: as fast as it goes, or at a rate.
//!
//! All guests run in one thread that never sleeps: a thread that the broker's answer had to wake would
//! be the broker's work, and a guest elsewhere is none.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use tokio::task::yield_now;

use super::broker::Broker;
use super::guest::{Guest, Work};

/// What a load did.
#[derive(Debug, Default)]
pub struct Done {
    /// How often the work was done.
    pub count: u32,
    /// How long it went on.
    pub took: Duration,
    /// The broker's time on the processor.
    pub cpu: Duration,
    /// Seconds from when a request was due to its answer, sorted.
    pub latencies: Vec<f64>,
}

impl Done {
    /// The broker's microseconds on the processor for one.
    #[must_use]
    pub fn micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / f64::from(self.count.max(1))
    }

    /// How many a second by the clock.
    #[must_use]
    pub fn rate(&self) -> f64 {
        f64::from(self.count) / self.took.as_secs_f64()
    }

    /// The latency that a share of all stays below.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a count of latencies"
        )]
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).copied().unwrap_or(0.0)
    }
}

/// Each guest works without a pause.
///
/// # Errors
/// When one of them is refused.
pub async fn saturate(
    broker: &Broker,
    guests: &mut [Guest],
    work: Work,
    time: Duration,
) -> Result<Done> {
    run(broker, guests, work, time, None).await
}

/// All guests together work at this rate a second, each in turn.
///
/// # Errors
/// When one of them is refused.
pub async fn pace(
    broker: &Broker,
    guests: &mut [Guest],
    work: Work,
    time: Duration,
    rate: f64,
) -> Result<Done> {
    run(broker, guests, work, time, Some(rate)).await
}

async fn run(
    broker: &Broker,
    guests: &mut [Guest],
    work: Work,
    time: Duration,
    rate: Option<f64>,
) -> Result<Done> {
    for guest in &mut *guests {
        guest.reconnect().await?;
    }
    let (before, start) = (broker.cpu()?, Instant::now());
    let end = start + time;
    let count = f64::from(u32::try_from(guests.len())?);
    let turn = rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let period = rate.map(|rate| Duration::from_secs_f64(count / rate));
    let mut due = start;
    let toiling = guests.iter_mut().map(|guest| {
        let first = due;
        due += turn.unwrap_or_default();
        toil(guest, work, first, end, period)
    });
    let awake = async {
        loop {
            yield_now().await;
        }
    };
    let results = tokio::select! {
        results = try_join_all(toiling) => results.context("a guest failed")?,
        () = awake => Vec::new(),
    };
    let cpu = broker.cpu()?.saturating_sub(before);
    let mut latencies = results.concat();
    latencies.sort_by(f64::total_cmp);
    Ok(Done {
        count: u32::try_from(latencies.len())?,
        took: start.elapsed(),
        cpu,
        latencies,
    })
}

/// One guest's requests. A request that is late counts from when it was due, since a real guest
/// would have waited from then on.
async fn toil(
    guest: &mut Guest,
    work: Work,
    mut due: Instant,
    end: Instant,
    period: Option<Duration>,
) -> Result<Vec<f64>> {
    let mut latencies = Vec::new();
    loop {
        match period {
            None => due = Instant::now(),
            Some(_) => {
                while Instant::now() < due {
                    yield_now().await;
                }
            }
        }
        if due >= end {
            return Ok(latencies);
        }
        guest.work(work).await?;
        latencies.push(due.elapsed().as_secs_f64());
        due += period.unwrap_or_default();
    }
}
