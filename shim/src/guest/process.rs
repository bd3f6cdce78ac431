//! What is asked of the guest about one process: its life and its streams.

use std::io;

use agent_api::agent as api;
use agent_api::{DialAnswer, ErrorCode, GuestError, StreamKind, StreamLine, oci, ports};
use hypervisor::VsockStream;
use protobuf::MessageField;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use ttrpc::context::Context;

use super::{Guest, REQUEST_TIMEOUT};
use crate::process::TerminalSize;
use crate::relay::read_line;

/// Names one process in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// The container.
    pub container: String,
    /// The further process; empty for the container's first.
    pub exec: String,
}

/// One stream of a process: its bytes and nothing else.
pub type Stream = VsockStream;

const PHASE: &str = "stdio";

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

    /// Connects to one stream of a process. A guest keeps output until somebody does.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn stream(&self, id: &ProcessId, kind: StreamKind) -> Result<Stream, GuestError> {
        let line = StreamLine::new(kind, &id.container, &id.exec)
            .map_err(|error| GuestError::new(ErrorCode::InvalidArgument, PHASE, error))?;
        let opening = async {
            let broken = |error: io::Error| {
                let text = format!("{}: {error}", kind.verb());
                GuestError::new(ErrorCode::AgentUnreachable, PHASE, text)
            };
            let mut stream = self.connect(ports::STREAMS).await.map_err(broken)?;
            let line = format!("{line}\n");
            stream.write_all(line.as_bytes()).await.map_err(broken)?;
            let answer = read_line(&mut stream).await.map_err(broken)?;
            match DialAnswer::parse(&answer) {
                Ok(DialAnswer::Ok) => Ok(stream),
                Ok(DialAnswer::Err(code, text)) => Err(GuestError::new(code, PHASE, text)),
                Err(error) => Err(broken(io::Error::other(error))),
            }
        };
        let late = GuestError::new(
            ErrorCode::DeadlineExceeded,
            PHASE,
            format!(
                "the agent did not answer in {} s",
                REQUEST_TIMEOUT.as_secs()
            ),
        );
        tokio::select! {
            biased;
            opened = timeout(REQUEST_TIMEOUT, opening) => opened.unwrap_or(Err(late)),
            cause = self.gone() => Err(cause),
        }
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

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn resize_terminal(
        &self,
        id: &ProcessId,
        size: TerminalSize,
    ) -> Result<(), GuestError> {
        let request = api::TtyWinResizeRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            row: size.rows,
            column: size.columns,
            ..Default::default()
        };
        let call = self.client.tty_win_resize(Context::default(), &request);
        self.call("resize", REQUEST_TIMEOUT, call).await.map(drop)
    }
}
