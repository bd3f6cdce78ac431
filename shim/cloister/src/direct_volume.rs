//! `cloister direct-volume`: what storage drivers do with `kata-runtime direct-volume`, in the same words.
//!
//! Which sandbox has a volume is not written down anywhere: every shim of this host is asked for its device.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::Request;
use shim::disk::described::{self, Growth, RESIZE, RESIZE_TIMEOUT, STATS};
use shim::state_dir::{self, StateDir};

use super::monitor::{Monitor, Refused};

/// How long a shim may take to answer: longer than it waits for its guest.
const PATIENCE: Duration = RESIZE_TIMEOUT.saturating_add(Duration::from_secs(30));

/// What to do with direct volumes.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Describe a volume that a pod's guest is to mount itself.
    Add(Add),
    /// Take a description back. Pods that have the volume keep it.
    #[command(alias = "delete")]
    Remove(Volume),
    /// Print how full a volume is that a pod has, as JSON of CSI's NodeGetVolumeStats.
    ///
    /// A policy of the guest's owner may refuse VolumeStatsRequest.
    Stats(Volume),
    /// Make the file system of a volume that a pod has larger, after its device was made so.
    ///
    /// A policy of the guest's owner may refuse ResizeVolumeRequest.
    Resize(Resize),
}

/// Which volume.
#[derive(Debug, Args)]
pub(super) struct Volume {
    /// The path from which the kubelet mounts it.
    #[arg(long)]
    volume_path: String,
}

/// A volume and what it is.
#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    volume: Volume,
    /// JSON: {"volume-type":"block","device":"/dev/...","fstype":"ext4","metadata":{},"options":[]}.
    #[arg(long)]
    mount_info: String,
}

/// A volume and its size.
#[derive(Debug, Args)]
pub(super) struct Resize {
    #[command(flatten)]
    volume: Volume,
    /// Bytes that its file system is to have.
    #[arg(long)]
    size: u64,
}

impl Command {
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Add(add) => described::add(&add.volume.volume_path, &add.mount_info)?,
            Self::Remove(volume) => described::remove(&volume.volume_path)?,
            Self::Stats(volume) => {
                let device = described::device(&volume.volume_path)?;
                let mut query = url::form_urlencoded::Serializer::new(String::new());
                let query = query.append_pair("path", &device).finish();
                let request = Request::get(format!("http://shim{STATS}?{query}"));
                let told = ask_all(&device, &request.body(Bytes::new())?).await?;
                println!("{told}");
            }
            Self::Resize(resize) => {
                let device = described::device(&resize.volume.volume_path)?;
                let growth = Growth {
                    device: device.clone(),
                    bytes: resize.size,
                };
                let body = serde_json::to_vec(&growth)?;
                let request = Request::post(format!("http://shim{RESIZE}"));
                ask_all(&device, &request.body(Bytes::from(body))?).await?;
            }
        }
        Ok(())
    }
}

/// Asks the shims of this host one after another, until one knows the device.
async fn ask_all(device: &str, request: &Request<Bytes>) -> Result<String> {
    let (mut unreached, mut broken) = (None, None);
    for (namespace, sandbox) in state_dir::sandboxes(&state_dir::root()) {
        let directory = StateDir::of(&namespace, &sandbox)?;
        let asked = Monitor::patient(&sandbox, directory, PATIENCE)?
            .send(request.clone())
            .await;
        let error = match asked {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match Silence::of(&error) {
            None => return Err(error),
            Some(Silence::Absent) => {}
            Some(Silence::Unreached) => unreached = Some(error),
            Some(Silence::Broken) => broken = Some(error),
        }
    }
    match (broken, unreached) {
        (Some(error), _) => Err(error).with_context(|| {
            format!(
                "a sandbox was asked about {device} and did not answer, and no other has it; what was asked for may \
                 be done: ask again"
            )
        }),
        (None, Some(error)) => {
            Err(error).with_context(|| format!("no sandbox that answers has {device}"))
        }
        (None, None) => bail!("no sandbox of this host has a file system of {device}"),
    }
}

/// Why a shim gave no answer of its own, so that another may have the volume.
#[derive(Debug, PartialEq, Eq)]
enum Silence {
    /// It does not have it.
    Absent,
    /// It was never asked, such as one that has ended.
    Unreached,
    /// It was asked, and may have it.
    Broken,
}

impl Silence {
    fn of(error: &anyhow::Error) -> Option<Self> {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return refused.is_not_found().then_some(Self::Absent);
        }
        match error.downcast_ref::<transport::Error>()? {
            transport::Error::Dial { .. }
            | transport::Error::Timeout {
                phase: transport::Phase::Dial,
                ..
            } => Some(Self::Unreached),
            _ => Some(Self::Broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_broke_is_told_from_a_shim_that_is_gone() {
        let gone = transport::Error::Dial {
            host: "shim:80".into(),
            kind: std::io::ErrorKind::ConnectionRefused,
            cause: "connection refused".into(),
        };
        let broke = transport::Error::Protocol {
            host: "shim:80".into(),
            cause: "connection closed before message completed".into(),
        };
        let late = transport::Error::Timeout {
            host: "shim:80".into(),
            phase: transport::Phase::Head,
            after: PATIENCE,
        };
        for (error, silence) in [
            (gone, Silence::Unreached),
            (broke, Silence::Broken),
            (late, Silence::Broken),
        ] {
            // As it comes from the monitor.
            let error = anyhow::Error::from(error).context("ask the shim of a");
            assert_eq!(Silence::of(&error), Some(silence));
        }
        assert_eq!(Silence::of(&anyhow::anyhow!("no such thing")), None);
    }
}
