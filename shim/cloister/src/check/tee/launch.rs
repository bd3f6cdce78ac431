//! A guest that is started to see that it starts: from the kernel to the agent's `READY`.

use std::fmt;
use std::time::{Duration, Instant};

use hypervisor::accel::Resolved;
use hypervisor::{Confidential, Incoming, Vm, VmSpec};
use shim::config::{Config, Tee};
use shim::kernel_line;
use shim::relay::{HostPort, Notice};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Connections of the guest that wait.
const MAX_NOTICES: usize = 16;
/// Lines of a console that a failure tells.
const TOLD_LINES: usize = 3;
/// The one word that a pod's line has not.
const LOG_LEVEL: &str = "loglevel=7";

/// What is started.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    config: Config,
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
            config: Config {
                tee: Tee::None,
                ..config.clone()
            },
            confidential: None,
            change: |_| {},
        }
    }

    /// One that the host cannot read.
    pub(super) fn confidential(config: &Config, wanted: Confidential) -> Self {
        Self {
            config: config.clone(),
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
        // A pod's words, from where a pod has them.
        let mut params = kernel_line::words(&self.config, None);
        // The kernel says what it found at this level and above, whatever `quiet` asks for.
        params.push(LOG_LEVEL.to_owned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::qemu::predicted_command_line;

    #[test]
    fn a_guest_has_the_line_of_pods_and_one_word_more() {
        let directory = std::path::Path::new("/nowhere");
        let mut config = Config::default();
        config.vm.kernel_params = vec!["a=b".to_owned()];
        for tee in [Tee::Snp, Tee::Tdx] {
            config.tee = tee;
            let guest = Guest {
                config: config.clone(),
                ..Guest::plain(&config)
            };
            let line = predicted_command_line(&guest.spec(directory)).unwrap();
            let pods = kernel_line::measured(&config).unwrap();
            assert_eq!(line, format!("{pods} {LOG_LEVEL}"));
        }
        let plain = Guest::plain(&config).spec(directory).kernel_params;
        assert_eq!(plain, ["a=b", "cloister.tee=none", LOG_LEVEL]);
    }
}
