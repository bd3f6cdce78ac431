//! Where a container's root file system comes from, and the storages that are attached before it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::{GuestError, agent};
use image_rs::pull::Layers;

use super::Sandbox;
use super::create::bundle;
use super::making::Maker;
use crate::crypt::Treatment;
use crate::fault::{OrFail, invalid};
use crate::image::{self, Rootfs};
use crate::path;
use crate::storage::{self, Held, OnDisk};
use crate::users::Namespace;
use crate::{disk, pause};

/// Where a container's root file system comes from.
pub(super) enum Root {
    /// The host shares it.
    Shared(PathBuf),
    /// The guest pulled it.
    Pulled(Box<Rootfs>),
    /// The pod's sandbox container has an empty one.
    Pause(PathBuf),
}

impl Root {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Shared(path) | Self::Pause(path) => path,
            Self::Pulled(rootfs) => &rootfs.path,
        }
    }

    /// Where it is, and what has to be held for it.
    pub(super) fn into_parts(self) -> (PathBuf, Layers) {
        match self {
            Self::Shared(path) | Self::Pause(path) => (path, Layers::default()),
            Self::Pulled(rootfs) => (rootfs.path, rootfs.layers),
        }
    }
}

impl Sandbox {
    /// Attaches the storages, and finds or pulls the root file system.
    pub(super) async fn root(
        &self,
        id: &str,
        request: &agent::CreateContainerRequest,
        storages: &mut Held,
        maker: &Maker,
        users: Option<&Namespace>,
    ) -> Result<Root, GuestError> {
        let is_pull = |storage: &&agent::Storage| storage.driver == image::DRIVER;
        let is_stack = |storage: &&agent::Storage| storage.driver == image::STACK;
        let is_root = |storage: &&agent::Storage| is_pull(storage) || is_stack(storage);
        if self.images.tee().is_some() && !request.storages.iter().any(|it| is_pull(&it)) {
            let message = "a confidential guest runs what it pulls and measures itself: set experimental = [\"force_guest_pull\"], or use cloister-snapshotter";
            return Err(invalid("create", message));
        }
        for storage in request.storages.iter().filter(|storage| !is_root(storage)) {
            if storage.driver == storage::LOCAL_DRIVER {
                self.images.ready().await?;
            }
            let point = match storage.driver.as_str() {
                disk::DRIVER => self.volume(storage, storages, maker).await?,
                _ => self.storages.attach(storage).await?,
            };
            storages.points.push(point);
        }
        let mut pulls = request.storages.iter().filter(is_pull);
        let Some(pull) = pulls.next() else {
            if let Some(stack) = request.storages.iter().find(is_stack) {
                if users.is_some() {
                    let message = "layers that are disks of the host have no mapped owners: use another snapshotter, or hostUsers: true";
                    return Err(invalid("create", message));
                }
                let stacked = self.images.stack(id, stack, &storages.points).await;
                return stacked.map(Root::Shared);
            }
            return path::existing("create", &request.OCI.Root.Path).map(Root::Shared);
        };
        if pulls.next().is_some() {
            return Err(invalid("create", "more than one image"));
        }
        let target = bundle(id).join("rootfs");
        if Path::new(&pull.mount_point) != target {
            let message = format!("the image's mount_point must be {}", target.display());
            return Err(invalid("create", message));
        }
        if pause::is_sandbox(&request.OCI.Annotations) {
            fs::create_dir_all(&target).or_internal("create", target.display())?;
            return Ok(Root::Pause(target));
        }
        self.images
            .pull(id, &pull.source, maker.cancelled(), maker.trace(), users)
            .await
            .map(|rootfs| Root::Pulled(Box::new(rootfs)))
    }

    /// Mounts a disk of the host, decrypted where it is to be.
    async fn volume(
        &self,
        storage: &agent::Storage,
        held: &mut Held,
        maker: &Maker,
    ) -> Result<PathBuf, GuestError> {
        let treatment = Treatment::of(&storage.driver_options)?;
        if storage.shared && !treatment.formats() {
            let text = "a disk that is the pod's (shared) is one that is made empty: add create_filesystem, or leave shared out";
            return Err(invalid("disk", text));
        }
        let cipher = tokio::select! {
            biased;
            () = maker.cancelled() => return Err(Maker::unwanted()),
            cipher = treatment.cipher(&self.images) => cipher?,
        };
        let disk = self.disks.acquire(&storage.source, cipher.is_some());
        let disk = disk.await?;
        held.disks.push(storage.source.clone());
        self.disks.prepare(&storage.fstype).await?;
        let volume = OnDisk {
            disk,
            crypt: Arc::clone(&self.crypt),
            cipher,
            formats: treatment.formats(),
            unwanted: maker.cancel(),
        };
        let point = self.storages.attach_disk(storage, volume).await?;
        if storage.shared {
            // What is the pod's has its disk until the VM ends.
            held.disks.pop();
        }
        Ok(point)
    }
}
