//! `cloister metrics`: what a running sandbox counts of itself.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use transport::{Client, ClientConfig, PlainHttp, Roots, bytes_capped};

use crate::monitor::{METRICS, MonitorDial};
use crate::state_dir::{ROOT_VARIABLE, StateDir};

/// The largest answer, in bytes; a guest's has some 5 KiB.
const MAX_ANSWER: usize = 1 << 20;

/// What to ask for.
#[derive(Debug, Args)]
pub(super) struct Metrics {
    /// The sandbox's id: the pod's, or that of a container on its own.
    sandbox: String,
    /// containerd's namespace; Kubernetes' is k8s.io.
    #[arg(long, short, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
}

impl Metrics {
    pub(super) async fn run(self) -> Result<()> {
        let Self { sandbox, namespace } = self;
        let directory = StateDir::of(&namespace, &sandbox)?;
        if !directory.path().exists() {
            bail!(
                "no sandbox {sandbox} runs in namespace {namespace}: {} is not there; name another \
                 --namespace, or another root with {ROOT_VARIABLE}",
                directory.path().display()
            );
        }
        let mut config = ClientConfig::new(Roots::web());
        // It is a socket of this host that only root can open.
        config.plain_http = PlainHttp::Allow;
        let client = Client::new(Arc::new(MonitorDial(directory)), config)?;
        let request = http::Request::get(format!("http://shim{METRICS}")).body(Bytes::new())?;
        let answer = client.send(request).await;
        let (head, body) = answer
            .with_context(|| format!("ask the shim of {sandbox}"))?
            .into_parts();
        let body = bytes_capped(body, MAX_ANSWER).await?;
        let text = String::from_utf8_lossy(&body);
        if !head.status.is_success() {
            bail!("{}", text.trim_end());
        }
        print!("{text}");
        Ok(())
    }
}
