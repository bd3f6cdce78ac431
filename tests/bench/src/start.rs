//! The start of a guest: the bare one and ours in turns, in the same VM on the same kernel.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_api::HostLine;
use anyhow::{Context, Result, bail};
use hypervisor::{Machine, Vm, VmSpec};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{sleep, timeout};

use crate::bare;
use crate::figure::{Figure, median};

/// Longest wait for a guest under emulation on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the console is looked at. It bounds the error of a bare start.
const POLL: Duration = Duration::from_millis(1);

/// What is started.
#[derive(Debug)]
pub struct Subject {
    kernel: PathBuf,
    agent: PathBuf,
    bare: PathBuf,
    machine: Machine,
    dir: tempfile::TempDir,
}

/// Milliseconds of one start of our guest.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    total: f64,
    kernel: f64,
    agent: f64,
}

impl Subject {
    /// The guest in an image's directory, and the bare one with the same kernel.
    ///
    /// # Errors
    /// When the bare one's initramfs cannot be written.
    pub fn new(image: &Path, machine: Machine) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let bare = dir.path().join("bare.cpio");
        std::fs::write(&bare, bare::initramfs()?)?;
        Ok(Self {
            kernel: image.join(guest_image::image::VMLINUX),
            agent: image.join(guest_image::image::INITRAMFS),
            bare,
            machine,
            dir,
        })
    }

    /// Starts both in turns, and says what ours takes beyond the bare one: its initramfs, its
    /// modules, its devices and its own first steps, until the host has its `READY`.
    ///
    /// # Errors
    /// When a guest does not come up.
    pub async fn measure(&self, rounds: u32) -> Result<Vec<Figure>> {
        let (mut bare, mut own) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            bare.push(self.bare_start().await?);
            own.push(self.own_start().await?);
            eprintln!(
                "round {round} of {rounds}: bare {:.0} ms, ours {:.0} ms",
                bare[bare.len() - 1],
                own[own.len() - 1].total
            );
        }
        let of = |part: fn(&Own) -> f64| median(&own.iter().map(part).collect::<Vec<_>>());
        // Pairs of one round share the machine's mood, so that their difference is steadier than
        // the difference of the medians.
        let beyond: Vec<_> = own
            .iter()
            .zip(&bare)
            .map(|(own, bare)| own.total - bare)
            .collect();
        let ratios: Vec<_> = own
            .iter()
            .zip(&bare)
            .map(|(own, bare)| own.total / bare)
            .collect();
        Ok(vec![
            Figure::new("start.bare_ms", median(&bare), "ms"),
            Figure::new("start.ready_ms", of(|own| own.total), "ms"),
            Figure::new("start.own_ms", median(&beyond), "ms"),
            Figure::new("start.over_bare", median(&ratios), "ratio"),
            Figure::new("start.guest_kernel_ms", of(|own| own.kernel), "ms"),
            Figure::new("start.guest_agent_ms", of(|own| own.agent), "ms"),
        ])
    }

    fn spec(&self, initrd: &Path) -> VmSpec {
        let mut spec = VmSpec::new("bench", &self.kernel, self.dir.path());
        spec.machine = self.machine;
        spec.initrd = Some(initrd.to_owned());
        spec.kernel_params = vec!["cloister.tee=none".to_owned()];
        spec
    }

    async fn bare_start(&self) -> Result<f64> {
        let since = Instant::now();
        let vm = Vm::boot(self.spec(&self.bare)).await?;
        let up = async {
            let ended = vm.exited();
            while !vm.console_tail().contains(bare::MARKER) {
                if ended.borrow().is_some() {
                    bail!("the bare guest ended: {}", vm.console_tail());
                }
                sleep(POLL).await;
            }
            Ok(milliseconds(since.elapsed()))
        };
        let took = timeout(BOOT_TIMEOUT, up).await;
        let console = vm.console_tail();
        vm.kill().await;
        took.with_context(|| format!("the bare guest is not up: {console}"))?
    }

    async fn own_start(&self) -> Result<Own> {
        let since = Instant::now();
        let mut vm = Vm::boot(self.spec(&self.agent)).await?;
        let mut incoming = vm.incoming().context("the VM has no host port")?;
        let up = async {
            let Some(stream) = incoming.accept().await else {
                bail!("the guest ended: {}", vm.console_tail());
            };
            let mut line = String::new();
            BufReader::new(stream?).read_line(&mut line).await?;
            let total = milliseconds(since.elapsed());
            match HostLine::parse(line.as_bytes())? {
                HostLine::Ready(_, ready) => Ok(Own {
                    total,
                    kernel: f64::from(u32::try_from(ready.kernel_ms)?),
                    agent: f64::from(u32::try_from(ready.agent_ms)?),
                }),
                other => bail!("the guest said {other:?}"),
            }
        };
        let own = timeout(BOOT_TIMEOUT, up).await;
        let console = vm.console_tail();
        vm.kill().await;
        own.with_context(|| format!("the guest is not ready: {console}"))?
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
