//! What is asked of a container's processes: further ones, their signals, their ends and their streams.

use std::sync::Arc;

use agent_api::{GuestError, agent};

use super::{STDIO_PORTS, Sandbox};
use crate::fault::unimplemented;
use crate::gate::{Allowed, Drain, Leave};
use crate::process::{OutputKind, Process};

impl Sandbox {
    /// Starts a further process of a container.
    ///
    /// # Errors
    ///
    /// There is no such container, the id is taken, or the process cannot be started.
    pub async fn exec(
        &self,
        request: Allowed<agent::ExecProcessRequest>,
    ) -> Result<(), GuestError> {
        if request.stdin_port != 0 || request.stdout_port != 0 || request.stderr_port != 0 {
            return Err(unimplemented("exec", STDIO_PORTS));
        }
        self.container(&request.container_id)?
            .exec(&self.runtime, self.images.hub(), &request)
            .await
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn signal(&self, request: &Allowed<agent::SignalProcessRequest>) -> Result<(), GuestError> {
        let container = self.container(&request.container_id)?;
        container.signal(&self.runtime, &request.exec_id, request.signal)
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub async fn wait(
        &self,
        request: Allowed<agent::WaitProcessRequest>,
    ) -> Result<i32, GuestError> {
        let container = self.container(&request.container_id)?;
        let status = container.process(&request.exec_id)?.wait().await;
        container.forget_spent(&request.exec_id);
        Ok(status)
    }

    /// Writes to a process's stdin.
    ///
    /// # Errors
    ///
    /// There is no such process, or its stdin is closed.
    pub async fn write_stdin(
        &self,
        request: Allowed<agent::WriteStreamRequest>,
    ) -> Result<u32, GuestError> {
        let process = self
            .container(&request.container_id)?
            .process(&request.exec_id)?;
        process.write(&request.data).await?;
        // At most MAX_STREAM_WRITE.
        Ok(u32::try_from(request.data.len()).unwrap_or(u32::MAX))
    }

    /// Waits for output of a process.
    ///
    /// # Errors
    ///
    /// There is no such process, or the output has ended.
    pub async fn read_output(
        &self,
        kind: OutputKind,
        request: Allowed<agent::ReadStreamRequest>,
    ) -> Result<Vec<u8>, GuestError> {
        self.read(kind, &request.container_id, &request.exec_id, request.len)
            .await
    }

    /// Takes output that the policy does not show to the host, so that the process does not wait
    /// for a reader for ever.
    ///
    /// # Errors
    ///
    /// As [`Sandbox::read_output`].
    pub async fn discard_output(&self, kind: OutputKind, drain: Drain) -> Result<(), GuestError> {
        self.read(kind, drain.container_id(), drain.exec_id(), u32::MAX)
            .await
            .map(drop)
    }

    /// Closes a process's stdin.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn close_stdin(
        &self,
        request: &Allowed<agent::CloseStdinRequest>,
    ) -> Result<(), GuestError> {
        self.container(&request.container_id)?
            .process(&request.exec_id)?
            .close_stdin();
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    ///
    /// There is no such process, or it has no terminal.
    pub fn resize(&self, request: &Allowed<agent::TtyWinResizeRequest>) -> Result<(), GuestError> {
        let process = self
            .container(&request.container_id)?
            .process(&request.exec_id)?;
        process.resize(request.row, request.column)
    }

    /// The process whose stream is to be carried.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn process_of(&self, leave: &Leave) -> Result<Arc<Process>, GuestError> {
        let container = self.container(leave.line().container())?;
        container.process(leave.line().exec())
    }

    /// Forgets a further process that nobody needs any more.
    pub fn forget_spent(&self, container_id: &str, exec_id: &str) {
        if let Ok(container) = self.container(container_id) {
            container.forget_spent(exec_id);
        }
    }

    async fn read(
        &self,
        kind: OutputKind,
        container_id: &str,
        exec_id: &str,
        max: u32,
    ) -> Result<Vec<u8>, GuestError> {
        let container = self.container(container_id)?;
        let data = container.process(exec_id)?.read(kind, max).await;
        if data.is_err() {
            container.forget_spent(exec_id);
        }
        data
    }
}
