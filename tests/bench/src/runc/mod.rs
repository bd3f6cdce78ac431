//! A second container of a pod and a further process, each against runc in the same guest, in turns.
//!
//! ```text
//! host:  bench ─ttRPC─► shim ─vsock─► agent ─► the container           from the request to its answer, events
//!                                                                      to containerd and output included
//! guest: a container with all rights ─► timer ─► runc ─► the container from its start to its end
//! ```
//!
//! runc is the distribution's, with its libraries. It is told the same specification that our agent ends up with:
//! the same root on the same virtio-fs, the same namespaces, capabilities, seccomp profile and mounts. Both run on
//! the same emulated processor in the same minute, so that the ratio says what ours costs however slow that is.

mod client;
mod place;
pub mod timer;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::pod::Settings;
use support::stage::Stage;

use self::client::Client;
use self::place::{Place, RUNC};
use self::timer::Timer;
use crate::figure::{Figure, median};

/// Not slower than runc.
const GOAL: f64 = 1.0;
/// The first ones fill the caches of both, and are not counted.
const WARM_UP: u32 = 2;
/// What a line of the timer may take under emulation.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a further process says.
const WORD: &str = "said";

/// Measures both in turns, `rounds` times.
///
/// # Errors
/// When the pod does not come up, or one of the two fails.
pub async fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let stage = Stage::plain()?;
    let config = Settings::plain().write(&stage.state, "runc.toml")?;
    let place = Place::start(&stage, &config)?;
    let client = Client::connect(&place.socket).await?;
    let timer = place.timer(&client).await?;
    let mut turns = Turns {
        place,
        client,
        timer,
        number: 0,
    };
    turns.runc_starts_the_target().await?;
    let (mut starts, mut execs) = (Pairs::default(), Pairs::default());
    for round in 0..rounds + WARM_UP {
        let (start, exec) = (turns.start().await?, turns.exec().await?);
        eprintln!(
            "round {round}: container {:.0} ms, runc {:.0} ms; exec {:.0} ms, runc {:.0} ms",
            start.0, start.1, exec.0, exec.1
        );
        if round >= WARM_UP {
            starts.add(start);
            execs.add(exec);
        }
    }
    let mut figures = starts.figures("container.second");
    figures.extend(execs.figures("exec"));
    Ok(figures)
}

/// Milliseconds of ours and of runc's, round by round.
#[derive(Default)]
struct Pairs {
    ours: Vec<f64>,
    runc: Vec<f64>,
}

impl Pairs {
    fn add(&mut self, (ours, runc): (f64, f64)) {
        self.ours.push(ours);
        self.runc.push(runc);
    }

    fn figures(&self, name: &str) -> Vec<Figure> {
        let pairs = self.ours.iter().zip(&self.runc);
        let ratios: Vec<_> = pairs.map(|(ours, runc)| ours / runc).collect();
        let named = |what: &str| match name.contains('.') {
            true => format!("{name}_{what}"),
            false => format!("{name}.{what}"),
        };
        vec![
            Figure::new(named("ms"), median(&self.ours), "ms"),
            Figure::new(named("runc_ms"), median(&self.runc), "ms"),
            Figure::new(named("over_runc"), median(&ratios), "ratio").at_most(GOAL),
        ]
    }
}

struct Turns<'a> {
    place: Place<'a>,
    client: Client,
    timer: Timer,
    number: u32,
}

impl Turns<'_> {
    /// A container of runc's in which `runc exec` has something to do.
    async fn runc_starts_the_target(&mut self) -> Result<()> {
        self.place.runc_bundle("target")?;
        self.runc_runs("target").await.map(drop)
    }

    /// Both start a container: until its program runs.
    async fn start(&mut self) -> Result<(f64, f64)> {
        self.number += 1;
        let id = format!("second{}", self.number);
        let bundle = self.place.bundle(&id)?;
        self.place.runc_bundle(&id)?;
        let ours = self.client.start(&id, &bundle).await?;
        self.client.remove(&id).await?;
        let runc = self.runc_runs(&id).await?;
        self.runc(&["delete", "--force", &id]).await?;
        Ok((ours, runc))
    }

    /// Both run a further process, from the request until its end is known and what it wrote is read.
    async fn exec(&mut self) -> Result<(f64, f64)> {
        self.number += 1;
        let id = format!("further{}", self.number);
        let (process, file) = self.place.process(&["/bin/busybox", "echo", WORD])?;
        let (ours, said) = self.client.exec("main", &id, &process).await?;
        ensure!(said.trim() == WORD, "our exec said {said:?}");
        let runc = self.runc(&["exec", "--process", &file, "target"]).await?;
        ensure!(runc.said.trim() == WORD, "runc's exec said {:?}", runc.said);
        Ok((ours, runc.ms))
    }

    async fn runc_runs(&mut self, id: &str) -> Result<f64> {
        let bundle = Place::inside(id);
        let words = ["run", "--detach", "--bundle", &bundle, id];
        Ok(self.runc(&words).await?.ms)
    }

    async fn runc(&mut self, words: &[&str]) -> Result<timer::Answer> {
        let words = [&[RUNC, "--root", place::RUNC_STATE], words].concat();
        let answer = tokio::time::timeout(PATIENCE, self.timer.run(&words))
            .await
            .with_context(|| format!("{words:?} did not end"))??;
        ensure!(answer.code == 0, "{words:?}: {answer:?}");
        Ok(answer)
    }
}
