//! The size of a process's terminal. nerdctl tells it before it starts a further process, of which the guest knows
//! nothing yet: until then it is kept.

use agent_api::GuestError;
use tracing::debug;

use crate::guest::Guest;
use crate::process::{Phase, Process, TerminalSize};
use crate::sandbox::Sandbox;

/// Gives a terminal its size, now or when it comes to be.
///
/// # Errors
/// The process has no terminal, or the guest does not answer.
pub(super) async fn resize(
    sandbox: &Sandbox,
    process: &Process,
    size: TerminalSize,
) -> Result<(), GuestError> {
    {
        // Whoever starts it meanwhile has read the size that was kept, or will.
        let _turn = process.turn.lock().await;
        if process.spec.is_some() && process.phase() == Phase::Created {
            process.want_size(size);
            return Ok(());
        }
    }
    sandbox.guest()?.resize_terminal(&process.id, size).await
}

/// Gives the terminal of a further process that was just started the size that was asked for before.
pub(super) async fn sized(guest: &Guest, process: &Process) {
    let Some(size) = process.wanted_size() else {
        return;
    };
    // It may be over already, and it runs without: no reason to end it.
    if let Err(error) = guest.resize_terminal(&process.id, size).await {
        debug!(%error, "the size of a terminal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Publisher;
    use crate::guest::ProcessId;
    use crate::io::Stdio;
    use crate::state_dir::StateDir;
    use crate::task::Tasks;

    #[tokio::test]
    async fn a_size_is_kept_until_there_is_a_terminal() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(&directory.path().join("state"));
        let tasks = Tasks::new("pod", state, Publisher::new(None, "ns"), None);
        let process = |exec: &str, spec| {
            let id = ProcessId {
                container: "c".into(),
                exec: exec.into(),
            };
            Process::new(id, Stdio::default(), spec)
        };
        let size = TerminalSize {
            columns: 80,
            rows: 24,
        };
        let further = process("e", Some(serde_json::from_str("{}").unwrap()));
        resize(&tasks.sandbox, &further, size).await.unwrap();
        assert_eq!(further.wanted_size(), Some(size));
        // Whoever has a terminal is told at once, and here there is no guest to tell.
        further.started();
        assert!(resize(&tasks.sandbox, &further, size).await.is_err());
        assert!(
            resize(&tasks.sandbox, &process("", None), size)
                .await
                .is_err()
        );
    }
}
