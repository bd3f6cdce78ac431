//! A guest that is started to see that it starts: from the kernel to the agent's `READY`.

use std::fmt;
use std::time::{Duration, Instant};

use hypervisor::accel::Resolved;
use hypervisor::{Confidential, Incoming, Vm, VmSpec};
use shim::config::Config;
use shim::relay::{HostPort, Notice};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Connections of the guest that wait.
const MAX_NOTICES: usize = 16;
/// Lines of a console that a failure tells.
const TOLD_LINES: usize = 3;

/// What is started.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    config: Config,
    tee: &'static str,
    pub(super) confidential: Option<Confidential>,
    change: fn(&mut VmSpec),
}

/// A guest that came up.
#[derive(Debug)]
pub(super) struct Up {
    took: Duration,
    accel: Resolved,
    /// What its kernel and agent wrote.
    pub(super) console: String,
}

impl fmt::Display for Up {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.accel {
            Resolved::Kvm => "KVM",
            Resolved::Tcg => "emulation",
        };
        write!(f, "READY after {} ms under {how}", self.took.as_millis())
    }
}

impl Guest {
    /// A plain VM.
    pub(super) fn plain(config: &Config) -> Self {
        Self {
            config: config.clone(),
            tee: "none",
            confidential: None,
            change: |_| {},
        }
    }

    /// One that the host cannot read.
    pub(super) fn confidential(config: &Config, wanted: Confidential) -> Self {
        Self {
            tee: config.tee.name(),
            confidential: Some(wanted),
            ..Self::plain(config)
        }
    }

    /// With something of the VM changed.
    pub(super) fn with(self, change: fn(&mut VmSpec)) -> Self {
        Self { change, ..self }
    }

    /// The VM, as a pod has it but for disks and network.
    pub(super) fn spec(&self, directory: &std::path::Path) -> VmSpec {
        let vm = &self.config.vm;
        let mut params = vm.kernel_params.clone();
        // The kernel says what it found at this level and above, whatever `quiet` asks for.
        params.push("loglevel=7".to_owned());
        params.push(format!("cloister.tee={}", self.tee));
        let mut spec = VmSpec {
            machine: vm.machine,
            accel: vm.accel,
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            initrd: vm.initrd.clone(),
            qemu: vm.qemu.clone(),
            firmware: self.confidential.as_ref().and(vm.firmware.clone()),
            confidential: self.confidential.clone(),
            kernel_params: params,
            ..VmSpec::new("cloister-check", &vm.kernel, directory)
        };
        (self.change)(&mut spec);
        spec
    }

    /// Starts it, waits for its agent and ends it.
    ///
    /// # Errors
    /// Why it did not come up.
    pub(super) async fn start(&self) -> Result<Up, String> {
        let directory = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
        let since = Instant::now();
        let booted = Vm::boot(self.spec(directory.path())).await;
        let mut vm = booted.map_err(|error| error.to_string())?;
        let (sender, mut notices) = mpsc::channel(MAX_NOTICES);
        let served = tokio::spawn(serve(vm.incoming(), HostPort::new(&[], sender)));
        let ready = async {
            loop {
                tokio::select! {
                    notice = notices.recv() => match notice {
                        Some(Notice::Ready(_)) => return Ok(()),
                        Some(Notice::Failed(error)) => return Err(error.to_string()),
                        Some(_) => {}
                        None => return Err("the guest cannot be heard any more".to_owned()),
                    },
                    exit = vm.wait() => return Err(exit.to_string()),
                }
            }
        };
        let ready = timeout(self.config.boot_timeout, ready).await;
        let (took, console, accel) = (since.elapsed(), vm.console_tail(), vm.accel());
        vm.kill().await;
        served.abort();
        match ready {
            Ok(Ok(())) => Ok(Up {
                took,
                accel,
                console,
            }),
            Ok(Err(error)) => Err(told(&error, &console)),
            Err(_) => Err(told("the agent does not say READY in time", &console)),
        }
    }
}

async fn serve(incoming: Option<Incoming>, service: HostPort) {
    let Some(mut incoming) = incoming else { return };
    let mut served = tokio::task::JoinSet::new();
    while let Some(accepted) = incoming.accept().await {
        if let Ok(stream) = accepted
            && served.len() < MAX_NOTICES
        {
            served.spawn(service.clone().serve(stream));
        }
    }
}

/// What went wrong, with the last that the guest wrote.
fn told(error: &str, console: &str) -> String {
    let lines: Vec<&str> = console
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = &lines[lines.len().saturating_sub(TOLD_LINES)..];
    match last {
        [] => error.to_owned(),
        last => format!("{error}; the console ends with {:?}", last.join(" | ")),
    }
}
