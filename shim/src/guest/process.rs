//! What is asked of the guest about one process: its life and its streams.

use agent_api::agent as api;
use agent_api::{ErrorCode, GuestError, limit, oci};
use protobuf::MessageField;
use ttrpc::context::Context;

use super::{Guest, REQUEST_TIMEOUT};

/// Names one process in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// The container.
    pub container: String,
    /// The further process; empty for the container's first.
    pub exec: String,
}

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Guest {
    /// Starts a further process in a container.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn exec_process(
        &self,
        id: &ProcessId,
        process: oci::Process,
    ) -> Result<(), GuestError> {
        let request = api::ExecProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            process: MessageField::some(process),
            ..Default::default()
        };
        let call = self.client.exec_process(Context::default(), &request);
        self.call("exec", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn signal_process(&self, id: &ProcessId, signal: u32) -> Result<(), GuestError> {
        let request = api::SignalProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            signal,
            ..Default::default()
        };
        let call = self.client.signal_process(Context::default(), &request);
        self.call("kill", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Waits for the end of a process, without limit.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn wait_process(&self, id: &ProcessId) -> Result<i32, GuestError> {
        let request = api::WaitProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        };
        let call = self.client.wait_process(Context::default(), &request);
        self.unlimited("wait", call)
            .await
            .map(|response| response.status)
    }

    /// Waits for output, without limit. `None` is the end of it; no bytes are output that the
    /// owner's policy does not show.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn read_output(
        &self,
        id: &ProcessId,
        output: Output,
    ) -> Result<Option<Vec<u8>>, GuestError> {
        let request = api::ReadStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            len: u32::try_from(limit::MAX_STREAM_READ).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let context = Context::default();
        let answer = match output {
            Output::Stdout => {
                self.unlimited("stdout", self.client.read_stdout(context, &request))
                    .await
            }
            Output::Stderr => {
                self.unlimited("stderr", self.client.read_stderr(context, &request))
                    .await
            }
        };
        match answer {
            Ok(response) => Ok(Some(response.data)),
            Err(error) if error.code == ErrorCode::EndOfStream => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes to a process's standard input; returns how many bytes it took. Waits without limit
    /// for a process that does not read.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn write_stdin(&self, id: &ProcessId, data: &[u8]) -> Result<usize, GuestError> {
        let request = api::WriteStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            data: data.to_vec(),
            ..Default::default()
        };
        let call = self.client.write_stdin(Context::default(), &request);
        let response = self.unlimited("stdin", call).await?;
        Ok(usize::try_from(response.len)
            .unwrap_or(usize::MAX)
            .min(data.len()))
    }

    /// Ends a process's standard input.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn close_stdin(&self, id: &ProcessId) -> Result<(), GuestError> {
        let request = api::CloseStdinRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        };
        let call = self.client.close_stdin(Context::default(), &request);
        self.call("stdin", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Tells a terminal its size in characters.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn resize_terminal(
        &self,
        id: &ProcessId,
        columns: u32,
        rows: u32,
    ) -> Result<(), GuestError> {
        let request = api::TtyWinResizeRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            row: rows,
            column: columns,
            ..Default::default()
        };
        let call = self.client.tty_win_resize(Context::default(), &request);
        self.call("resize", REQUEST_TIMEOUT, call).await.map(drop)
    }
}
