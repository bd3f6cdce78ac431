//! `cloister direct-volume`: what storage drivers do with `kata-runtime direct-volume`, in the same words.
//!
//! Which sandbox has a volume is not written down anywhere: every shim of this host is asked for its device.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::Request;
use shim::disk::described::{self, Growth, RESIZE, STATS};
use shim::state_dir::{self, StateDir};

use super::monitor::{Monitor, Refused};

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
    let mut unreached = None;
    for (namespace, sandbox) in state_dir::sandboxes(&state_dir::root()) {
        let directory = StateDir::of(&namespace, &sandbox)?;
        let asked = Monitor::of(&sandbox, directory)?
            .send(request.clone())
            .await;
        match asked {
            Ok(answer) => return Ok(answer),
            Err(error) => match error.downcast_ref::<Refused>() {
                Some(refused) if refused.is_not_found() => {}
                Some(_) => return Err(error),
                // Such as one that is ending; another may have it.
                None => unreached = Some(error),
            },
        }
    }
    match unreached {
        Some(error) => Err(error).with_context(|| format!("no sandbox that answers has {device}")),
        None => bail!("no sandbox of this host has a file system of {device}"),
    }
}
