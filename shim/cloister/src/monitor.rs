//! The way to the shim of a running sandbox, for commands that ask it something.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use transport::{Client, ClientConfig, PlainHttp, Roots, Timeouts, bytes_capped};

use shim::creation::Creation;
use shim::monitor::{CREATIONS, MonitorDial};
use shim::state_dir::{ROOT_VARIABLE, StateDir};

/// The largest answer, in bytes; a guest's metrics have some 5 KiB, and a pull of 256 layers 16 KiB.
const MAX_ANSWER: usize = 1 << 20;

/// Which sandbox.
#[derive(Debug, Clone, Args)]
pub(super) struct Sandbox {
    /// The sandbox's id: the pod's, or that of a container on its own.
    pub(super) sandbox: String,
    /// containerd's namespace; Kubernetes' is k8s.io.
    #[arg(long, short, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    pub(super) namespace: String,
}

/// The shim of a sandbox.
pub(super) struct Monitor {
    name: String,
    client: Client,
}

impl Sandbox {
    /// The way to its shim.
    pub(super) fn open(&self) -> Result<Monitor> {
        let Self { sandbox, namespace } = self;
        let directory = StateDir::of(namespace, sandbox)?;
        if !directory.path().exists() {
            bail!(
                "no sandbox {sandbox} runs in namespace {namespace}: {} is not there; name another \
                 --namespace, or another root with {ROOT_VARIABLE}",
                directory.path().display()
            );
        }
        Monitor::of(sandbox, directory)
    }
}

/// What a shim answered instead.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refused {
    status: http::StatusCode,
    text: String,
}

impl Refused {
    /// Whether it has nothing of what was asked for.
    pub(super) fn is_not_found(&self) -> bool {
        self.status == http::StatusCode::NOT_FOUND
    }
}

impl Monitor {
    /// The shim of a state directory.
    pub(super) fn of(name: &str, directory: StateDir) -> Result<Self> {
        Self::patient(name, directory, Timeouts::default().head)
    }

    /// The same, whose answers may take so long.
    pub(super) fn patient(name: &str, directory: StateDir, within: Duration) -> Result<Self> {
        let mut config = ClientConfig::new(Roots::web());
        config.timeouts.head = within;
        // It is a socket of this host that only root can open.
        config.plain_http = PlainHttp::Allow;
        Ok(Self {
            name: name.to_owned(),
            client: Client::new(Arc::new(MonitorDial(directory)), config)?,
        })
    }

    /// What the shim answers under a path.
    pub(super) async fn ask(&self, path: &str) -> Result<String> {
        let request = http::Request::get(format!("http://shim{path}")).body(Bytes::new())?;
        self.send(request).await
    }

    /// What the shim answers to a request.
    pub(super) async fn send(&self, request: http::Request<Bytes>) -> Result<String> {
        let answer = self.client.send(request).await;
        let (head, body) = answer
            .with_context(|| format!("ask the shim of {}", self.name))?
            .into_parts();
        let body = bytes_capped(body, MAX_ANSWER).await?;
        let text = String::from_utf8_lossy(&body);
        if !head.status.is_success() {
            let (status, text) = (head.status, text.trim_end().to_owned());
            return Err(Refused { status, text }.into());
        }
        Ok(text.into_owned())
    }

    /// How far its containers are that are being created.
    pub(super) async fn creations(&self) -> Result<Vec<Creation>> {
        let text = self.ask(CREATIONS).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("the shim of {} is of another version", self.name))
    }
}
