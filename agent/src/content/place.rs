//! Where content goes, and what of a request can be judged before anything is written. Pure, but for the
//! random part of a name.

use std::path::{Component, Path, PathBuf};

use agent_api::content::PutContentRequest;
use agent_api::content::put_content_request::Kind;
use agent_api::{ErrorCode, GuestError, agent, limit};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::FileType;

use super::{PHASE, set};
use crate::fault::invalid;
use crate::path::check_container_id;

/// Random bytes in the name of a place: as many as Kata's shim takes, whose policies look for 16 digits.
const RANDOM: usize = 8;
/// Bytes of the last part of a name, which with an id stays below 255.
const MAX_NAME: usize = 100;

/// A place that the guest chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    slot: String,
    path: String,
    is_new: bool,
}

impl Place {
    /// A new one below `base`.
    pub(super) fn new(base: &Path, request: &PutContentRequest) -> Result<Self, GuestError> {
        let mut random = [0; RANDOM];
        SystemRandom::new().fill(&mut random).map_err(|_| {
            GuestError::new(
                ErrorCode::Internal,
                PHASE,
                "the kernel gives no random bytes",
            )
        })?;
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = short(&request.name);
        let slot = format!("{}-{digits}-{name}", request.container_id);
        let path = base.join(&slot).display().to_string();
        Ok(Self {
            slot,
            path,
            is_new: true,
        })
    }

    /// That of a slot.
    pub(super) fn of(slot: &str, path: &Path) -> Self {
        Self {
            slot: slot.to_owned(),
            path: path.display().to_string(),
            is_new: false,
        }
    }

    /// The slot's name.
    #[must_use]
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// The guest's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the slot is still to be made.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

/// A name that is cut at a character.
fn short(name: &str) -> &str {
    let mut end = name.len().min(MAX_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// What a policy is asked: the copies that Kata's shim would make for the same.
pub fn entries<'a>(
    request: &'a PutContentRequest,
    place: &'a str,
    new: bool,
) -> impl Iterator<Item = agent::CopyFileRequest> + 'a {
    let is_directory = request.kind.enum_value() == Ok(Kind::DIRECTORY);
    // A set without files changes something too.
    let itself = ((new && is_directory) || request.files.is_empty()).then(|| {
        let mode = match is_directory {
            true => FileType::Directory.as_raw_mode() | set::DIRECTORY_MODE,
            false => FileType::RegularFile.as_raw_mode() | super::LOG_MODE,
        };
        agent::CopyFileRequest {
            path: place.to_owned(),
            file_mode: mode,
            dir_mode: FileType::Directory.as_raw_mode() | set::DIRECTORY_MODE,
            ..Default::default()
        }
    });
    let files = request.files.iter().map(move |file| {
        let path = match file.path.as_str() {
            "" => place.to_owned(),
            path => format!("{place}/{path}"),
        };
        agent::CopyFileRequest {
            path,
            file_size: i64::try_from(file.data.len()).unwrap_or(i64::MAX),
            file_mode: FileType::RegularFile.as_raw_mode() | (file.mode & set::PERMISSIONS),
            dir_mode: FileType::Directory.as_raw_mode() | set::DIRECTORY_MODE,
            uid: i32::try_from(file.uid).unwrap_or(i32::MAX),
            gid: i32::try_from(file.gid).unwrap_or(i32::MAX),
            ..Default::default()
        }
    });
    itself.into_iter().chain(files)
}

/// Refuses what no slot takes.
pub(super) fn check(request: &PutContentRequest) -> Result<(), GuestError> {
    check_container_id(PHASE, &request.container_id)?;
    let kind = request.kind.enum_value();
    let kind = kind.map_err(|number| invalid(PHASE, format!("kind {number} is not known")))?;
    if kind == Kind::UNKNOWN {
        return Err(invalid(PHASE, "kind is missing"));
    }
    if request.slot.is_empty() && !is_name(&request.name) {
        return Err(invalid(PHASE, "name is not the name of a file"));
    }
    let bytes: usize = request.files.iter().map(|file| file.data.len()).sum();
    if bytes > limit::MAX_CONTENT_REQUEST || request.files.len() > limit::MAX_CONTENT_FILES {
        return Err(too_much("one request"));
    }
    for file in &request.files {
        if file.data.len() > limit::MAX_CONTENT_FILE {
            return Err(too_much("one file"));
        }
        // What a policy is asked has no larger numbers.
        if i32::try_from(file.uid).is_err() || i32::try_from(file.gid).is_err() {
            return Err(invalid(PHASE, "an owner above 2147483647"));
        }
        let fits = match kind {
            Kind::DIRECTORY => check_path(&file.path)?,
            _ => file.path.is_empty() && !request.more,
        };
        if !fits {
            return Err(invalid(PHASE, "the slot's kind and its files do not fit"));
        }
    }
    Ok(())
}

/// A single plain name without characters that no terminal shows.
fn is_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    plain && !name.contains(char::is_control)
}

/// Plain names, of which the first is none that the directory itself uses.
fn check_path(path: &str) -> Result<bool, GuestError> {
    let parts: Vec<_> = Path::new(path).components().collect();
    let plain = parts
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    let joined: PathBuf = parts.iter().collect();
    let fits = plain
        && !parts.is_empty()
        && joined.as_os_str() == path
        && parts.len() <= limit::MAX_CONTENT_DEPTH
        && path.len() <= limit::MAX_CONTENT_PATH
        && !path.starts_with("..")
        && !path.contains(char::is_control);
    match fits {
        true => Ok(true),
        false => Err(invalid(
            PHASE,
            "a file's path is not a relative one of plain names",
        )),
    }
}

pub(super) fn too_much(what: &str) -> GuestError {
    let message = format!(
        "{what} has more than is taken: {} bytes a file, {} bytes a request, {} bytes and {} files a set",
        limit::MAX_CONTENT_FILE,
        limit::MAX_CONTENT_REQUEST,
        limit::MAX_CONTENT_SET,
        limit::MAX_CONTENT_FILES
    );
    GuestError::new(ErrorCode::ResourceExhausted, PHASE, message)
}
