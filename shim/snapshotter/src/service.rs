//! containerd's snapshots service: each method's message to a call of the store and back, and who gets which mounts.
//!
//! ```text
//! layers below       who mounts                     gets
//! a guest's to pull  a runtime with guests          the volume, with the container's image
//!                    containerd, for a moment       the same over an empty directory
//!                    another runtime                a refusal that says what to do
//! files of the host  a runtime with guests          the volume
//!                    anybody else                   the files
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use protobuf::{EnumOrUnknown, Message, MessageField};

use crate::config::Config;
use crate::containerd::{self, Name};
use crate::filter::Filters;
use crate::record::{Kind, Record};
use crate::status::{Code, Status};
use crate::store::{Place, Store};
use crate::wire::containers::Container;
use crate::wire::snapshots::{
    self, CommitRequest, Empty, Info, InfoResponse, KeyRequest, ListRequest, ListResponse, Mount,
    MountsResponse, PrepareRequest, Timestamp, UpdateRequest, UsageResponse,
};
use crate::{glob, image, mounts};

const SERVICE: &str = "/containerd.services.snapshots.v1.Snapshots/";
/// Snapshots in one message of a list.
const LIST_CHUNK: usize = 100;

/// The service.
#[derive(Debug)]
pub(crate) struct Service {
    store: Arc<Store>,
    /// containerd's own socket.
    containerd: PathBuf,
    /// Runtimes that have guests.
    runtimes: Vec<String>,
}

impl Service {
    pub(crate) fn new(store: Store, config: &Config) -> Self {
        Self {
            store: Arc::new(store),
            containerd: config.containerd.clone(),
            runtimes: config.runtimes.clone(),
        }
    }

    /// Answers one call by its messages: one, but for `List`.
    pub(crate) async fn call(&self, path: &str, question: &[u8]) -> Result<Vec<Vec<u8>>, Status> {
        match path.strip_prefix(SERVICE).unwrap_or_default() {
            "Prepare" => self.prepare(Kind::Active, read(question)?).await,
            "View" => self.prepare(Kind::View, read(question)?).await,
            "Mounts" => self.mounts(read(question)?).await,
            "Commit" => {
                let asked: CommitRequest = read(question)?;
                let labels = ordered(asked.labels);
                self.on_disk(move |store| {
                    store.commit(&asked.name, &asked.key, labels, &asked.parent)
                })
                .await?;
                written(&Empty::new())
            }
            "Remove" => {
                let asked: KeyRequest = read(question)?;
                self.on_disk(move |store| store.remove(&asked.key)).await?;
                written(&Empty::new())
            }
            "Stat" => {
                let asked: KeyRequest = read(question)?;
                written(&info_response(self.store.stat(&asked.key)?))
            }
            "Update" => self.update(read(question)?).await,
            "List" => self.list(&read(question)?),
            "Usage" => {
                let asked: KeyRequest = read(question)?;
                let usage = self.on_disk(move |store| store.usage(&asked.key)).await?;
                written(&UsageResponse {
                    size: i64::try_from(usage.bytes).unwrap_or(i64::MAX),
                    inodes: i64::try_from(usage.inodes).unwrap_or(i64::MAX),
                    ..Default::default()
                })
            }
            "Cleanup" => {
                self.on_disk(Store::cleanup).await?;
                written(&Empty::new())
            }
            _ => {
                let reason = format!("{path:?} is not served, only {SERVICE}");
                Err(Status::new(Code::Unimplemented, reason))
            }
        }
    }

    async fn prepare(&self, kind: Kind, asked: PrepareRequest) -> Result<Vec<Vec<u8>>, Status> {
        let labels = ordered(asked.labels);
        let (key, parent) = (asked.key, asked.parent);
        let place = self.on_disk(move |store| {
            store.prepare(kind, &key, &parent, labels)?;
            store.place(&key)
        });
        // Whoever is to run on it is not known so far, and asks for the mounts again.
        let mount = mount_for(None, &place.await?, &self.runtimes)?;
        mounted(mount)
    }

    async fn mounts(&self, asked: KeyRequest) -> Result<Vec<Vec<u8>>, Status> {
        let place = self.store.place(&asked.key)?;
        let name = Name::of_key(&asked.key).filter(|_| place.kind == Kind::Active);
        let container = match &name {
            Some(name) => containerd::container(&self.containerd, name).await?,
            None => None,
        };
        mounted(mount_for(container.as_ref(), &place, &self.runtimes)?)
    }

    async fn update(&self, asked: UpdateRequest) -> Result<Vec<Vec<u8>>, Status> {
        let paths = asked.update_mask.into_option().unwrap_or_default().paths;
        let info = asked.info.into_option();
        let info = info.ok_or_else(|| Status::invalid("an update without a snapshot"))?;
        let labels = ordered(info.labels);
        let updated = self.on_disk(move |store| store.update(&info.name, &labels, &paths));
        written(&info_response(updated.await?))
    }

    fn list(&self, asked: &ListRequest) -> Result<Vec<Vec<u8>>, Status> {
        let found = self.store.list(&Filters::parse(&asked.filters)?);
        let mut messages = Vec::new();
        for chunk in found.chunks(LIST_CHUNK) {
            let info = chunk.iter().cloned().map(info).collect();
            messages.extend(written(&ListResponse {
                info,
                ..Default::default()
            })?);
        }
        Ok(messages)
    }

    /// Runs what waits for the disk beside what does not.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| Err(Status::new(Code::Internal, error.to_string())))
    }
}

/// Decides by the table at this file's top. `container` is the one whose snapshot it is, where containerd knows it.
fn mount_for(
    container: Option<&Container>,
    place: &Place,
    runtimes: &[String],
) -> Result<Mount, Status> {
    let runtime = container.map(|container| container.runtime.name.as_str());
    let has_guests = runtime.map(|runtime| glob::any(runtimes, runtime));
    let named = container.map(|container| container.image.as_str());
    let (image, metadata) = image::told(named, place.parent.as_ref());
    match (place.is_guests, has_guests) {
        (true, Some(false)) => Err(left_to_guests(&image, runtime.unwrap_or_default())),
        (true, Some(true) | None) | (false, Some(true)) => {
            Ok(mounts::of_guest(&place.layers, &image, &metadata))
        }
        (false, Some(false) | None) => Ok(mounts::of_host(&place.layers)),
    }
}

fn left_to_guests(image: &str, runtime: &str) -> Status {
    let image = if image.is_empty() { "the image" } else { image };
    Status::state(format!(
        "{image} was left to guests, so its files are not on this host, and runtime {runtime} has no guest: use a \
         runtime class of Cloister; or list the image under `unpack` in the snapshotter's configuration, remove it \
         from containerd and pull it again; or list the runtime under `runtimes` if it pulls in a guest"
    ))
}

fn read<M: Message>(question: &[u8]) -> Result<M, Status> {
    M::parse_from_bytes(question).map_err(|error| Status::invalid(error.to_string()))
}

fn written(answer: &impl Message) -> Result<Vec<Vec<u8>>, Status> {
    let bytes = answer.write_to_bytes();
    let bytes = bytes.map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    Ok(vec![bytes])
}

fn mounted(mount: Mount) -> Result<Vec<Vec<u8>>, Status> {
    written(&MountsResponse {
        mounts: vec![mount],
        ..Default::default()
    })
}

fn ordered(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    labels.into_iter().collect()
}

fn info_response(record: Record) -> InfoResponse {
    InfoResponse {
        info: MessageField::some(info(record)),
        ..Default::default()
    }
}

fn info(record: Record) -> Info {
    let kind = match record.kind {
        Kind::View => snapshots::Kind::VIEW,
        Kind::Active => snapshots::Kind::ACTIVE,
        Kind::Committed => snapshots::Kind::COMMITTED,
    };
    Info {
        name: record.name,
        parent: record.parent,
        kind: EnumOrUnknown::new(kind),
        created_at: timestamp(record.created),
        updated_at: timestamp(record.updated),
        labels: record.labels.into_iter().collect(),
        ..Default::default()
    }
}

fn timestamp(since_1970: std::time::Duration) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since_1970.subsec_nanos()).unwrap_or_default(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests;
