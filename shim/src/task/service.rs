//! containerd's task messages, translated. Work that must not be cut short when a caller gives up
//! runs in a task of its own: ttRPC drops the handler of a call whose time is over.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use async_trait::async_trait;
use containerd_shim_protos::api as wire;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::types::task::{ProcessInfo, Status};
use serde::de::DeserializeOwned;
use ttrpc::r#async::TtrpcContext;

use super::{CreateRequest, Tasks, terminal};
use crate::clock;
use crate::creation::{Clock, Progress};
use crate::io::Stdio;
use crate::process::{Phase, TerminalSize};
use crate::spec::{oci, refuse};

/// The largest JSON in a request. containerd's own messages are at most 4 MiB.
const MAX_JSON: usize = 4 * 1024 * 1024;

/// The task service of one sandbox.
#[derive(Debug, Clone)]
pub struct Service(pub Arc<Tasks>);

/// What is left of a caller's time for what follows the answer: an error is worth nothing to one who is
/// gone, and containerd deletes what failed before it passes the error on.
const RESERVE_MAX: Duration = Duration::from_secs(5);
/// The share of the time that is kept for it, where that is less.
const RESERVE_SHARE: u32 = 8;

/// How long a caller waits; `None` is no limit.
fn patience(timeout_nano: i64) -> Option<Duration> {
    let nanos = u64::try_from(timeout_nano).ok()?;
    (nanos > 0).then(|| Duration::from_nanos(nanos))
}

/// How long a call may work, of the time that its caller waits.
fn time_for_work(within: Duration) -> Duration {
    within - RESERVE_MAX.min(within / RESERVE_SHARE)
}

/// Runs work to its end, whether or not someone still waits for it.
pub(super) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, GuestError>> + Send + 'static,
) -> Result<T, GuestError> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        let text = format!("the shim failed: {error}");
        Err(GuestError::new(ErrorCode::Internal, "shim", text))
    })
}

/// Reads the JSON that containerd packs in an `Any`.
fn json<T: DeserializeOwned>(any: &MessageField<Any>, what: &str) -> Result<T, GuestError> {
    let refuse = |text: String| GuestError::new(ErrorCode::InvalidArgument, "task", text);
    if any.value.len() > MAX_JSON {
        return Err(refuse(format!("{what} has more than {MAX_JSON} bytes")));
    }
    serde_json::from_slice(&any.value).map_err(|error| refuse(format!("{what}: {error}")))
}

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        context: &TtrpcContext,
        request: wire::CreateTaskRequest,
    ) -> ttrpc::Result<wire::CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(unsupported("restore from a checkpoint"));
        }
        let id = request.id.clone();
        let request = CreateRequest {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs,
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            options: request.options.into_option(),
        };
        // Who gives up on a creation gets none: nobody would ever delete the container.
        let abandon = Abandon {
            tasks: Arc::clone(&self.0),
            id: Some(id),
        };
        let created = to_the_end(Arc::clone(&self.0).create(request));
        let within = patience(context.timeout_nano);
        let pid = tokio::select! {
            biased;
            pid = created => pid?,
            late = abandon.overdue(within) => return Err(late.into()),
        };
        abandon.disarm();
        Ok(wire::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: wire::StartRequest,
    ) -> ttrpc::Result<wire::StartResponse> {
        let pid = to_the_end(Arc::clone(&self.0).start(request.id, request.exec_id)).await?;
        Ok(wire::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: wire::DeleteRequest,
    ) -> ttrpc::Result<wire::DeleteResponse> {
        let (exit, pid) =
            to_the_end(Arc::clone(&self.0).delete(request.id, request.exec_id)).await?;
        Ok(wire::DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(clock::timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: wire::StateRequest,
    ) -> ttrpc::Result<wire::StateResponse> {
        let container = self.0.containers.get(&request.id)?;
        container.check_there()?;
        let process = container.process(&request.exec_id)?;
        let mut response = wire::StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: self.0.pid(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exec_id: request.exec_id,
            ..Default::default()
        };
        let status = match process.phase() {
            Phase::Created => Status::CREATED,
            Phase::Running if container.is_paused() => Status::PAUSED,
            Phase::Running => Status::RUNNING,
            Phase::Exited(exit) => {
                response.exit_status = exit.status;
                response.exited_at = MessageField::some(clock::timestamp(exit.at));
                Status::STOPPED
            }
        };
        response.status = EnumOrUnknown::new(status);
        Ok(response)
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: wire::PidsRequest,
    ) -> ttrpc::Result<wire::PidsResponse> {
        self.0.containers.get(&request.id)?.check_there()?;
        let process = ProcessInfo {
            pid: self.0.pid(),
            ..Default::default()
        };
        Ok(wire::PidsResponse {
            processes: vec![process],
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: wire::PauseRequest) -> ttrpc::Result<Empty> {
        self.0.set_paused(&request.id, true).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: wire::ResumeRequest) -> ttrpc::Result<Empty> {
        self.0.set_paused(&request.id, false).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: wire::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        Err(unsupported("checkpoint"))
    }

    async fn kill(&self, _: &TtrpcContext, request: wire::KillRequest) -> ttrpc::Result<Empty> {
        let wire::KillRequest {
            id,
            exec_id,
            signal,
            all,
            ..
        } = request;
        if all && exec_id.is_empty() {
            self.0.kill_further(&id, signal).await?;
        }
        self.0.kill(&id, &exec_id, signal).await?;
        Ok(Empty::new())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: wire::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let mut spec: oci::Process = json(&request.spec, "the process")?;
        refuse::check_process(&spec)
            .map_err(|error| GuestError::new(ErrorCode::FailedPrecondition, "exec", error))?;
        spec.terminal = request.terminal;
        spec.apparmor_profile.clear();
        spec.selinux_label.clear();
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        self.0.exec(&request.id, &request.exec_id, stdio, spec)?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: wire::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.0.containers.get(&request.id)?;
        container.check_created("resize")?;
        let process = container.process(&request.exec_id)?;
        let size = TerminalSize {
            columns: request.width,
            rows: request.height,
        };
        terminal::resize(&self.0.sandbox, &process, size).await?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: wire::CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.0.containers.get(&request.id)?;
        if request.stdin {
            container.process(&request.exec_id)?.release_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: wire::UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.0.containers.get(&request.id)?;
        container.check_created("update")?;
        let resources: oci::Resources = json(&request.resources, "the resources")?;
        self.0.update(&container, &resources).await?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: wire::WaitRequest,
    ) -> ttrpc::Result<wire::WaitResponse> {
        let process = self
            .0
            .containers
            .get(&request.id)?
            .process(&request.exec_id)?;
        let exit = process.wait().await;
        Ok(wire::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(clock::timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: wire::StatsRequest,
    ) -> ttrpc::Result<wire::StatsResponse> {
        let stats = self.0.stats(&request.id).await?;
        Ok(wire::StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        _: wire::ConnectRequest,
    ) -> ttrpc::Result<wire::ConnectResponse> {
        Ok(wire::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.0.pid(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: wire::ShutdownRequest) -> ttrpc::Result<Empty> {
        self.0.shutdown();
        Ok(Empty::new())
    }
}

/// Cancels a creation when the handler that waits for it is dropped.
struct Abandon {
    tasks: Arc<Tasks>,
    id: Option<String>,
}

impl Abandon {
    fn disarm(mut self) {
        self.id = None;
    }

    /// Waits until the caller's time is almost over; says how far the creation is then.
    async fn overdue(&self, within: Option<Duration>) -> GuestError {
        let Some(within) = within else {
            return std::future::pending().await;
        };
        tokio::time::sleep(time_for_work(within)).await;
        let id = self.id.as_deref().unwrap_or_default();
        let container = self.tasks.containers.get(id);
        let progress = container.map_or_else(|_| Progress::default(), |it| it.progress());
        progress.overdue(within, Clock::Caller, Instant::now())
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        let container = self
            .id
            .take()
            .and_then(|id| self.tasks.containers.get(&id).ok());
        if let Some(container) = container {
            container.cancel.cancel();
        }
    }
}

fn unsupported(what: &str) -> ttrpc::Error {
    GuestError::new(
        ErrorCode::Unimplemented,
        "task",
        format!("{what} is not supported"),
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::shim_async::{TaskClient, create_task};
    use ttrpc::Code;
    use ttrpc::r#async::{Client, Server};
    use ttrpc::context::Context;

    use crate::event::Publisher;
    use crate::state_dir::StateDir;

    #[test]
    fn some_of_a_callers_time_is_kept_for_what_follows_the_answer() {
        let seconds = Duration::from_secs;
        assert_eq!(time_for_work(seconds(8)), seconds(7));
        assert_eq!(time_for_work(seconds(120)), seconds(115));
    }

    #[test]
    fn a_caller_that_names_no_time_has_all() {
        assert_eq!(patience(5), Some(Duration::from_nanos(5)));
        assert_eq!(patience(0), None);
        assert_eq!(patience(-1), None);
    }

    /// The service of a sandbox without a VM, and a client of it.
    async fn stage() -> (Server, TaskClient, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(&directory.path().join("state"));
        let tasks = Tasks::new("pod", state, Publisher::new(None, "ns"), None);
        let address = format!("unix://{}/shim", directory.path().display());
        let mut server = Server::new().bind(&address).unwrap();
        server = server.register_service(create_task(Arc::new(Service(tasks))));
        server.start().await.unwrap();
        let client = TaskClient::new(Client::connect(&address).await.unwrap());
        (server, client, directory)
    }

    fn code<T>(answer: ttrpc::Result<T>) -> Code {
        match answer {
            Ok(_) => Code::OK,
            Err(ttrpc::Error::RpcStatus(status)) => status.code(),
            Err(_) => Code::UNKNOWN,
        }
    }

    /// A request of the same form for each method that names a container.
    macro_rules! of_nobody {
        ($client:ident, $($method:ident $request:ident,)*) => {
            [$((
                stringify!($method),
                code($client.$method(Context::default(), &wire::$request {
                    id: "nobody".into(),
                    ..Default::default()
                }).await),
            ),)*]
        };
    }

    #[tokio::test]
    async fn what_is_asked_of_a_container_that_is_not_there_is_not_found() {
        let (_server, client, _directory) = stage().await;
        let answers = of_nobody!(
            client,
            state StateRequest,
            start StartRequest,
            delete DeleteRequest,
            pids PidsRequest,
            pause PauseRequest,
            resume ResumeRequest,
            kill KillRequest,
            resize_pty ResizePtyRequest,
            close_io CloseIORequest,
            wait WaitRequest,
            stats StatsRequest,
            update UpdateTaskRequest,
        );
        for (method, code) in answers {
            assert_eq!(code, Code::NOT_FOUND, "{method}");
        }
        let exec = wire::ExecProcessRequest {
            id: "nobody".into(),
            exec_id: "e".into(),
            spec: MessageField::some(Any {
                value: b"{\"args\":[\"true\"],\"cwd\":\"/\"}".to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = client.exec(Context::default(), &exec).await;
        assert_eq!(code(answer), Code::NOT_FOUND);
    }

    #[tokio::test]
    async fn what_a_vm_cannot_do_is_unimplemented_and_an_empty_sandbox_ends() {
        let (_server, client, _directory) = stage().await;
        let checkpoint = wire::CheckpointTaskRequest::default();
        let answer = client.checkpoint(Context::default(), &checkpoint).await;
        assert_eq!(code(answer), Code::UNIMPLEMENTED);
        let restored = wire::CreateTaskRequest {
            id: "c".into(),
            checkpoint: "/x".into(),
            ..Default::default()
        };
        let answer = client.create(Context::default(), &restored).await;
        assert_eq!(code(answer), Code::UNIMPLEMENTED);
        let connect = wire::ConnectRequest::default();
        let answer = client.connect(Context::default(), &connect).await.unwrap();
        assert_eq!(answer.shim_pid, std::process::id());
        let shutdown = wire::ShutdownRequest::default();
        assert!(client.shutdown(Context::default(), &shutdown).await.is_ok());
        // Nobody can come into a sandbox that ends.
        let late = wire::CreateTaskRequest {
            id: "c".into(),
            bundle: "/nonexistent".into(),
            ..Default::default()
        };
        assert_ne!(
            code(client.create(Context::default(), &late).await),
            Code::OK
        );
    }
}
