//! Content slots: small files of the host (ConfigMaps, Secrets, tokens, `/etc/hosts` and the like) for a
//! container, where no file system is shared.
//!
//! ```text
//!   PutContent ─► place: the guest names it ─► Gate::admit_content ─► put ─► path, for the source of a mount
//!                                                                      │
//!                  <container>-<16 hex digits>-<name>/                 │ a directory's set is staged, then
//!                     ..set-2/key                                      │ seen as one: `..data` is renamed,
//!                     ..data ─► ..set-2      key ─► ..data/key         ▼ as the kubelet does on the host
//! ```
//!
//! The host chooses neither the path nor a link: it gives plain names below a directory that the guest
//! made. The names of places are Kata's, whose policies judge them by `CopyFileRequest`. Everything lies in
//! the guest's memory and is counted; a slot goes with its container.

pub mod lease;
mod place;
mod set;
mod slot;
mod written;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_api::content::put_content_request::Kind;
use agent_api::content::{ContentFile, PutContentRequest, PutContentResponse};
use agent_api::{ErrorCode, GuestError, agent, limit};
use rustix::fs::OFlags;

use crate::fault::{OrFail, invalid, unimplemented};
use crate::gate::Allowed;
use crate::path;
use attestation_agent::Secret;
use lease::{Lending, Loan};
pub use place::{Place, entries};
use slot::Slot;
use written::{Room, Written};

const PHASE: &str = "content";
/// Where slots are when the shared directory is the host's.
const OWN: &str = "/run/kata-containers/sandbox/content";
/// Any process of the container may write its termination message, as on the kubelet's file.
const LOG_MODE: u32 = 0o666;

/// The slots of a pod.
#[derive(Debug, Default)]
pub struct Slots {
    base: Option<PathBuf>,
    table: Mutex<HashMap<String, Slot>>,
    room: Room,
}

impl Slots {
    /// Where a request's content goes: a new place, or that of the slot which it names.
    ///
    /// # Errors
    ///
    /// The request is malformed, too large, or names no slot of its container.
    pub fn place(&self, request: &PutContentRequest) -> Result<Place, GuestError> {
        place::check(request)?;
        if request.slot.is_empty() {
            return Place::new(&self.base(), request);
        }
        let table = self.table();
        let slot = table.get(&request.slot);
        let slot = slot.filter(|slot| slot.container == request.container_id);
        let slot = slot.ok_or_else(|| {
            let message = format!("container {} has no such slot", request.container_id);
            GuestError::new(ErrorCode::NotFound, PHASE, message)
        })?;
        if slot.kind != Kind::DIRECTORY || request.kind.enum_value() != Ok(Kind::DIRECTORY) {
            return Err(invalid(PHASE, "a slot of one file does not change"));
        }
        Ok(Place::of(&request.slot, &slot.path))
    }

    /// Puts content into its place. A set is seen when its last file has come; answered beside is what is lent of
    /// it then, which is to be kept even where there is an error.
    ///
    /// # Errors
    ///
    /// There is too much, or it cannot be written. A slot that was there stays as it was, but where a container has
    /// put something into it that bars a new name.
    pub fn put(
        &self,
        request: &Allowed<PutContentRequest>,
        place: &Place,
        loans: Vec<Loan>,
    ) -> (Result<PutContentResponse, GuestError>, Lending) {
        self.put_in(request, place, loans)
    }

    fn put_in(
        &self,
        request: &PutContentRequest,
        place: &Place,
        loans: Vec<Loan>,
    ) -> (Result<PutContentResponse, GuestError>, Lending) {
        let mut lending = Lending::default();
        let done = self.write(request, place, loans, &mut lending);
        let answer = done.map(|()| PutContentResponse {
            slot: place.slot().to_owned(),
            path: place.path().to_owned(),
            ..Default::default()
        });
        (answer, lending)
    }

    fn write(
        &self,
        request: &PutContentRequest,
        place: &Place,
        loans: Vec<Loan>,
        lending: &mut Lending,
    ) -> Result<(), GuestError> {
        let mut table = self.table();
        let adds = held(request) + loans.iter().map(Loan::held).sum::<usize>();
        check_stages(&table, place)?;
        check_room(&table, adds)?;
        if place.is_new() {
            let slot = open(request, place)?;
            table.insert(place.slot().to_owned(), slot);
        }
        let slot = table.get_mut(place.slot());
        // It may have gone with its container since.
        let slot = slot.ok_or_else(|| GuestError::new(ErrorCode::NotFound, PHASE, "no slot"))?;
        if slot.kind != Kind::DIRECTORY {
            return Ok(());
        }
        let mut done = slot.add(&request.files, loans);
        if done.is_ok() && !request.more {
            (done, *lending) = slot.show(place.slot(), &self.room);
        }
        done.map_err(|error| give_up(&mut table, place, error))
    }

    /// Shows another content of a file that is lent. None: the set is not seen any more.
    fn replace(
        &self,
        (slot, set): (&str, u64),
        file: &ContentFile,
        secret: &Secret,
    ) -> Result<Option<Written>, GuestError> {
        let bytes = secret.expose().len();
        if bytes > limit::MAX_CONTENT_FILE {
            return Err(place::too_much("one file"));
        }
        let mut table = self.table();
        let before = table
            .get(slot)
            .map_or(0, |slot| slot.lent_bytes(&file.path));
        check_room(&table, set::held(&file.path, bytes).saturating_sub(before))?;
        match table.get_mut(slot).filter(|slot| slot.lends(set)) {
            Some(slot) => slot.replace(file, secret, &self.room),
            None => Ok(None),
        }
    }

    /// Takes away a file that is lent, where its set is still seen.
    fn withdraw(&self, (slot, set): (&str, u64), path: &str) -> Result<(), GuestError> {
        let mut table = self.table();
        match table.get_mut(slot).filter(|slot| slot.lends(set)) {
            Some(slot) => slot.withdraw(path, &self.room),
            None => Ok(()),
        }
    }

    /// The end of what a container has written as its termination message.
    ///
    /// # Errors
    ///
    /// Other data is asked for, or the container has no such file.
    pub fn diagnostic(
        &self,
        request: &Allowed<agent::GetDiagnosticDataRequest>,
    ) -> Result<String, GuestError> {
        if request.log_type != limit::TERMINATION_LOG {
            let message = format!("log_type is not {:?}", limit::TERMINATION_LOG);
            return Err(unimplemented(PHASE, message));
        }
        self.message(&request.container_id)
    }

    fn message(&self, container: &str) -> Result<String, GuestError> {
        let table = self.table();
        let mut slots = table.values();
        let slot = slots
            .find(|slot| slot.kind == Kind::TERMINATION_LOG && slot.container == container)
            .ok_or_else(|| {
                let message = "the container has no termination log in a slot";
                GuestError::new(ErrorCode::NotFound, PHASE, message)
            })?;
        read_end(&slot.path, limit::MAX_TERMINATION_MESSAGE).or_internal(PHASE, "read the message")
    }

    /// Forgets and removes the slots of a container.
    pub fn release(&self, container: &str) {
        let mut table = self.table();
        let gone: Vec<_> = table
            .extract_if(|_, slot| slot.container == container)
            .collect();
        drop(table);
        for (_, slot) in gone {
            remove(&slot.path);
        }
    }

    fn base(&self) -> PathBuf {
        match &self.base {
            Some(base) => base.clone(),
            None if is_hosts(Path::new(path::SHARED)) => PathBuf::from(OWN),
            None => PathBuf::from(path::SHARED),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back what was begun: a new place goes, one that was there stays as it was.
fn give_up(table: &mut HashMap<String, Slot>, place: &Place, error: GuestError) -> GuestError {
    if let Some(slot) = table.get_mut(place.slot()) {
        slot.forget_stage();
    }
    if place.is_new()
        && let Some(slot) = table.remove(place.slot())
    {
        remove(&slot.path);
    }
    error
}

fn exhausted(message: String) -> GuestError {
    GuestError::new(ErrorCode::ResourceExhausted, PHASE, message)
}

fn check_stages(table: &HashMap<String, Slot>, place: &Place) -> Result<(), GuestError> {
    if place.is_new() && table.len() >= limit::MAX_CONTENT_SLOTS {
        let most = limit::MAX_CONTENT_SLOTS;
        return Err(exhausted(format!("more than {most} slots")));
    }
    let begun = |slot: &&Slot| slot.is_under_construction();
    let begins = table.get(place.slot()).filter(begun).is_none();
    if begins && table.values().filter(begun).count() >= limit::MAX_CONTENT_STAGES {
        let most = limit::MAX_CONTENT_STAGES;
        let message = format!("more than {most} sets that are not whole");
        return Err(exhausted(message));
    }
    Ok(())
}

fn check_room(table: &HashMap<String, Slot>, adds: usize) -> Result<(), GuestError> {
    let held: usize = table.values().map(Slot::held).sum();
    if held.saturating_add(adds) > limit::MAX_CONTENT_POD {
        let most = limit::MAX_CONTENT_POD;
        let message = format!("the pod's files of the host would have more than {most} bytes");
        return Err(exhausted(message));
    }
    Ok(())
}

/// What a request's files take of the guest's memory, in bytes.
fn held(request: &PutContentRequest) -> usize {
    let files = request.files.iter();
    files
        .map(|file| set::held(&file.path, file.data.len()))
        .sum()
}

/// Makes what a new slot is.
fn open(request: &PutContentRequest, place: &Place) -> Result<Slot, GuestError> {
    let kind = request.kind.enum_value_or_default();
    let path = PathBuf::from(place.path());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).or_internal(PHASE, parent.display())?;
    }
    match (kind, request.files.as_slice()) {
        (Kind::FILE, [file]) => {
            write_new(&path, file)?;
        }
        (Kind::TERMINATION_LOG, []) => {
            let file = ContentFile {
                mode: LOG_MODE,
                ..Default::default()
            };
            write_new(&path, &file)?;
        }
        (Kind::DIRECTORY, _) => {
            fs::create_dir(&path).or_internal(PHASE, path.display())?;
            let open = fs::Permissions::from_mode(set::DIRECTORY_MODE);
            fs::set_permissions(&path, open).or_internal(PHASE, path.display())?;
        }
        _ => return Err(invalid(PHASE, "the slot's kind and its files do not fit")),
    }
    let held = match kind {
        Kind::DIRECTORY => 0,
        _ => held(request),
    };
    Ok(Slot::new(&request.container_id, kind, path, held))
}

fn write_new(path: &Path, file: &ContentFile) -> Result<(), GuestError> {
    let write = || -> std::io::Result<()> {
        let mut to = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(set::CLOSED_MODE)
            .open(path)?;
        to.write_all(&file.data)?;
        set::settle(&to, file)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written.or_internal(PHASE, path.display())
}

/// The last bytes of a file, as text. A container may have put anything there, and any amount.
fn read_end(path: &Path, most: usize) -> std::io::Result<String> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    let from = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), %error, "a slot is left behind");
    }
}

/// Whether a directory is one of the host's, by virtio-fs.
fn is_hosts(directory: &Path) -> bool {
    const FUSE: rustix::fs::FsWord = 0x6573_5546;
    rustix::fs::statfs(directory).is_ok_and(|found| found.f_type == FUSE)
}

#[cfg(test)]
mod tests;
