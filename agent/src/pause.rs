//! The pod's sandbox container without an image: its process is this program, waiting.
//!
//! Kubernetes wants a container that holds the pod. In a guest that pulls its own images there is no
//! reason to fetch one for a process that only waits, so it gets an empty root and this workload.

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

/// Where container runtimes say what a container is for; the values that mean the pod itself follow.
const KIND_ANNOTATIONS: [(&str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "sandbox"),
    ("io.kubernetes.cri-o.ContainerType", "sandbox"),
    ("io.katacontainers.pkg.oci.container_type", "pod_sandbox"),
];

/// Whether the annotations are those of a pod's sandbox container.
#[must_use]
pub fn is_sandbox(annotations: &std::collections::HashMap<String, String>) -> bool {
    KIND_ANNOTATIONS
        .iter()
        .any(|(name, value)| annotations.get(*name).is_some_and(|found| found == value))
}

/// A workload that waits for a signal.
#[derive(Clone, Copy, Debug)]
pub struct Pause;

impl Executor for Pause {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        // What the pod's containers see of it; a name that is not set does no harm.
        let _ = rustix::thread::set_name(c"pause");
        wait_for_signal().map_err(|error| ExecutorError::Execution(Box::new(error)))?;
        end()
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

/// libcontainer takes a workload that comes back for a defect.
#[expect(
    clippy::disallowed_methods,
    reason = "the workload stands for a program, and programs exit"
)]
fn end() -> ! {
    std::process::exit(0)
}

/// Ends at SIGTERM or SIGINT. As the first process of a PID namespace that the pod may share, it also
/// reaps what is left to it.
fn wait_for_signal() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut children = signal(SignalKind::child())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = children.recv() => {
                    let options = rustix::process::WaitOptions::NOHANG;
                    while let Ok(Some(_)) = rustix::process::wait(options) {}
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_are_told_by_their_annotation() {
        let of = |name: &str, value: &str| is_sandbox(&[(name.into(), value.into())].into());
        assert!(of("io.kubernetes.cri.container-type", "sandbox"));
        assert!(!of("io.kubernetes.cri.container-type", "container"));
        assert!(of(
            "io.katacontainers.pkg.oci.container_type",
            "pod_sandbox"
        ));
        assert!(!of("other", "sandbox"));
    }
}
