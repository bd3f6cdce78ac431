//! A client of the container runtime interface, as a kubelet is one: gRPC calls on a runtime's socket.
//!
//! Debian packages no `crictl`, and a crate for gRPC would bring a second HTTP stack; a unary call is a POST
//! with one length-prefixed message each way.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use protobuf::{Message, MessageField};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

pub use generated::cri::*;

/// What the code generator wrote; its style is not ours.
#[allow(
    warnings,
    missing_docs,
    missing_debug_implementations,
    clippy::all,
    reason = "generated code"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/index.rs"));
}

const RUNTIME: &str = "runtime.v1.RuntimeService";
const IMAGES: &str = "runtime.v1.ImageService";
/// A flag and the message's length.
const PREFIX: usize = 5;
/// A start under emulation on a busy machine.
const LIMIT: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(50);

/// The client.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    socket: PathBuf,
}

/// What a command in a container said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its output, lossily as UTF-8.
    pub stdout: String,
    /// Its errors, lossily as UTF-8.
    pub stderr: String,
}

impl Cri {
    /// A client of the runtime that listens on `socket`.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            socket: socket.to_owned(),
        })
    }

    /// Calls a method of the runtime service.
    ///
    /// # Errors
    /// When the runtime cannot be reached, or with the code and the text of its refusal.
    pub fn call<A: Message>(&self, method: &str, question: &impl Message) -> Result<A> {
        self.ask(RUNTIME, method, question)
    }

    /// Whether the runtime knows an image.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn has_image(&self, image: &str) -> Result<bool> {
        let question = PullImageRequest {
            image: spec_of(image),
            ..Default::default()
        };
        let answer: ImageStatusResponse = self.ask(IMAGES, "ImageStatus", &question)?;
        Ok(answer.image.is_some())
    }

    /// Has the runtime pull an image.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pull(&self, image: &str) -> Result<()> {
        let question = PullImageRequest {
            image: spec_of(image),
            ..Default::default()
        };
        let _: PullImageResponse = self.ask(IMAGES, "PullImage", &question)?;
        Ok(())
    }

    /// The same for a pod of a runtime handler.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pull_for(&self, image: &str, pod: &PodSandboxConfig, handler: &str) -> Result<()> {
        let mut pod = pod.clone();
        // As containerd reads it where the kubelet does not say it with the image.
        pod.annotations.insert(
            "io.containerd.cri.runtime-handler".to_owned(),
            handler.to_owned(),
        );
        let question = PullImageRequest {
            image: spec_of(image),
            sandbox_config: Some(pod).into(),
            ..Default::default()
        };
        let _: PullImageResponse = self.ask(IMAGES, "PullImage", &question)?;
        Ok(())
    }

    /// Starts a pod and answers its id.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn run_pod(&self, config: &PodSandboxConfig, handler: &str) -> Result<String> {
        let question = RunPodSandboxRequest {
            config: Some(config.clone()).into(),
            runtime_handler: handler.to_owned(),
            ..Default::default()
        };
        let answer: RunPodSandboxResponse = self.call("RunPodSandbox", &question)?;
        Ok(answer.pod_sandbox_id)
    }

    /// Calls a method that takes a pod and answers nothing: `StopPodSandbox`, `RemovePodSandbox`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn of_pod(&self, method: &str, pod: &str) -> Result<()> {
        let _: Empty = self.call(method, &pod_request(pod))?;
        Ok(())
    }

    /// The state and the address of a pod.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pod_status(&self, pod: &str) -> Result<PodSandboxStatus> {
        let answer: PodSandboxStatusResponse = self.call("PodSandboxStatus", &pod_request(pod))?;
        answer.status.into_option().context("a pod without status")
    }

    /// Creates a container and answers its id.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn create(
        &self,
        pod: &str,
        of: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<String> {
        let question = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()).into(),
            sandbox_config: Some(of.clone()).into(),
            ..Default::default()
        };
        let answer: CreateContainerResponse = self.call("CreateContainer", &question)?;
        Ok(answer.container_id)
    }

    /// Calls a method that takes a container and answers nothing: `StartContainer`, `RemoveContainer`,
    /// `ReopenContainerLog`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn of_container(&self, method: &str, container: &str) -> Result<()> {
        let _: Empty = self.call(method, &container_request(container))?;
        Ok(())
    }

    /// Stops a container, with so many seconds between SIGTERM and SIGKILL.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stop(&self, container: &str, seconds: i64) -> Result<()> {
        let question = ContainerRequest {
            timeout: seconds,
            ..container_request(container)
        };
        let _: Empty = self.call("StopContainer", &question)?;
        Ok(())
    }

    /// Where a container is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn status(&self, container: &str) -> Result<ContainerStatus> {
        let answer: ContainerStatusResponse =
            self.call("ContainerStatus", &container_request(container))?;
        answer
            .status
            .into_option()
            .context("a container without status")
    }

    /// Waits for the end of a container.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ended(&self, container: &str) -> Result<ContainerStatus> {
        let since = Instant::now();
        loop {
            let status = self.status(container)?;
            if status.state == ContainerState::CONTAINER_EXITED.into() {
                return Ok(status);
            }
            ensure!(since.elapsed() < LIMIT, "container {container} runs on");
            std::thread::sleep(POLL);
        }
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// As [`Self::call`]; a code that is not 0 is for the caller to judge.
    pub fn exec(&self, container: &str, words: &[&str]) -> Result<Said> {
        let question = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 60,
            ..Default::default()
        };
        let answer: ExecSyncResponse = self.call("ExecSync", &question)?;
        Ok(Said {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// What a container uses.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stats(&self, container: &str) -> Result<ContainerStats> {
        let answer: ContainerStatsResponse =
            self.call("ContainerStats", &container_request(container))?;
        answer
            .stats
            .into_option()
            .context("a container without stats")
    }

    /// What a pod uses.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pod_stats(&self, pod: &str) -> Result<PodSandboxStats> {
        let question = ListPodSandboxStatsRequest {
            filter: Some(PodSandboxStatsFilter {
                id: pod.to_owned(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let answer: ListPodSandboxStatsResponse = self.call("ListPodSandboxStats", &question)?;
        answer
            .stats
            .into_iter()
            .next()
            .context("a pod without stats")
    }

    fn ask<A: Message>(&self, service: &str, method: &str, question: &impl Message) -> Result<A> {
        let bytes = question.write_to_bytes()?;
        let answered = self.runtime.block_on(async {
            let call = post(&self.socket, service, method, &bytes);
            tokio::time::timeout(LIMIT, call).await
        });
        let answer = answered.with_context(|| format!("{method}: no answer in {LIMIT:?}"))??;
        Ok(A::parse_from_bytes(&answer)?)
    }
}

impl Said {
    /// Its output, when its code is 0.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// An image by its name.
#[must_use]
pub fn spec_of(image: &str) -> MessageField<ImageSpec> {
    MessageField::some(ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    })
}

fn pod_request(pod: &str) -> PodRequest {
    PodRequest {
        pod_sandbox_id: pod.to_owned(),
        ..Default::default()
    }
}

fn container_request(container: &str) -> ContainerRequest {
    ContainerRequest {
        container_id: container.to_owned(),
        ..Default::default()
    }
}

async fn post(socket: &Path, service: &str, method: &str, message: &[u8]) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://localhost/{service}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request, false)?;
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.put_slice(message);
    body.send_data(framed.freeze(), true)?;
    let (head, mut body) = response.await?.into_parts();
    // A refusal may come in the headers alone.
    outcome(method, &head.headers)?;
    let mut answer = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        answer.extend_from_slice(&chunk);
    }
    outcome(method, &body.trailers().await?.unwrap_or_default())?;
    connection.abort();
    ensure!(
        answer.len() >= PREFIX,
        "{method}: an answer without message"
    );
    Ok(answer.split_off(PREFIX).freeze())
}

fn outcome(method: &str, headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => bail!(
            "{method}: [{code}] {}",
            decoded(text("grpc-message").unwrap_or_default())
        ),
    }
}

/// Undoes the percent-encoding of a message.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = hex.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
