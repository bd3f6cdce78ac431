//! `SecureMount` of CoCo's confidential-data-hub: an encrypted file system on a disk of this guest.
//!
//! The words are CoCo's (`confidential-data-hub/hub/src/storage/volume_type/blockdevice`), and what they ask for that
//! is not done is refused by name. Two things are ours. `empty` disks get no LUKS2 header, although CoCo's clients
//! say `luks2`: their key ends with the guest, so no header is needed, and none can be another's
//! ([`crate::crypt`]). And `encrypted` ones are `plain`: a LUKS2 header on the disk is the host's to write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use attestation_agent::api::MountRequest;
use rustix::mount::{MountFlags, mount};

use crate::crypt::{self, Cipher, Crypt, Encryption, Extent, truth};
use crate::fault::{OrFail, invalid};
use crate::image::Images;
use crate::path;

const PHASE: &str = "secure-mount";
/// Where such file systems are mounted: volumes of the pod's.
const PLACE: &str = "/run/kata-containers/sandbox/storage";
const NUMBERS: &str = "/sys/dev/block";
const FILE_SYSTEM: &str = "ext4";
/// The longest value of an option, in bytes.
const MAX_VALUE: usize = 1024;

/// What is asked, as it is understood.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    node: Device,
    encryption: Encryption,
    point: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
enum Device {
    /// `MAJ:MIN`.
    Number(String),
    Path(PathBuf),
}

/// Encrypts, formats where the disk is `empty`, and mounts. It stays until the guest ends, as in CoCo.
///
/// # Errors
///
/// Names the option, or the step that failed; nothing is mounted then.
pub async fn secure_mount(
    crypt: &Arc<Crypt>,
    images: &Images,
    request: &MountRequest,
) -> Result<(), GuestError> {
    let asked = Asked::parse(request)?;
    let cipher = asked.encryption.cipher(images).await?;
    let crypt = Arc::clone(crypt);
    tokio::task::spawn_blocking(move || asked.mount(&crypt, &cipher))
        .await
        .or_internal(PHASE, "mount")?
}

impl Asked {
    fn parse(request: &MountRequest) -> Result<Self, GuestError> {
        if request.volume_type != "block-device" {
            let text = "volume_type: use block-device";
            return Err(invalid(PHASE, text));
        }
        if !request.flags.is_empty() {
            return Err(invalid(PHASE, "flags: none is supported"));
        }
        let point = path::lexical(PHASE, &request.mount_point)?;
        if !point.starts_with(PLACE) || point == Path::new(PLACE) {
            return Err(invalid(
                PHASE,
                format!("mount_point: use a path below {PLACE}"),
            ));
        }
        let mut options = Options(request.options.clone());
        let node = options.device()?;
        let encryption = options.encryption()?;
        options.fixed("targetType", "fileSystem")?;
        options.fixed("filesystemType", FILE_SYSTEM)?;
        if let Some(name) = options.0.keys().next() {
            let name: String = name.chars().take(64).collect();
            let text = format!("option {name:?} is not supported: remove it");
            return Err(invalid(PHASE, text));
        }
        Ok(Self {
            node,
            encryption,
            point,
        })
    }

    fn mount(&self, crypt: &Crypt, cipher: &Cipher) -> Result<(), GuestError> {
        let node = self.node.find()?;
        let point = path::directory(PHASE, &self.point.display().to_string())?;
        let name = format!("secure-{}", node.display().to_string().replace('/', "-"));
        let mapped = crypt.open(&name, &node, cipher, Extent::Whole)?;
        let formatted = match self.encryption.formats() {
            true => mapped.format(crypt::FILES),
            false => Ok(()),
        };
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
        let mounted = formatted.and_then(|()| {
            mount(
                mapped.node(),
                &point,
                FILE_SYSTEM,
                flags,
                c"errors=remount-ro",
            )
            .or_fail(
                ErrorCode::FailedPrecondition,
                PHASE,
                format!("mount {FILE_SYSTEM} on {}", point.display()),
            )
        });
        if mounted.is_ok() {
            crypt.keep(mapped);
        } else {
            // Nobody would know of it.
            let _ = mapped.close();
        }
        mounted
    }
}

/// Those that are not understood yet.
struct Options(BTreeMap<String, String>);

impl Options {
    fn take(&mut self, name: &str) -> Result<Option<String>, GuestError> {
        match self.0.remove(name) {
            Some(value) if value.len() > MAX_VALUE => {
                let text = format!("option {name}: has more than {MAX_VALUE} bytes");
                Err(invalid(PHASE, text))
            }
            value => Ok(value.filter(|value| !value.is_empty())),
        }
    }

    fn fixed(&mut self, name: &str, only: &str) -> Result<(), GuestError> {
        match self.take(name)? {
            Some(value) if value != only => Err(invalid(PHASE, format!("{name}: use {only}"))),
            _ => Ok(()),
        }
    }

    fn device(&mut self) -> Result<Device, GuestError> {
        // CoCo takes the number where both are there.
        match (self.take("deviceId")?, self.take("devicePath")?) {
            (Some(number), None) => {
                let is_number = number.split_once(':').is_some_and(|(major, minor)| {
                    major.parse::<u32>().is_ok() && minor.parse::<u32>().is_ok()
                });
                match is_number {
                    true => Ok(Device::Number(number)),
                    false => Err(invalid(PHASE, "deviceId: use MAJ:MIN")),
                }
            }
            (None, Some(path)) => match path.strip_prefix("/dev/") {
                Some(name) if !name.is_empty() && !name.contains("..") => {
                    Ok(Device::Path(PathBuf::from(path)))
                }
                _ => Err(invalid(PHASE, "devicePath: use a path below /dev")),
            },
            _ => Err(invalid(PHASE, "name the disk by deviceId or devicePath")),
        }
    }

    fn encryption(&mut self) -> Result<Encryption, GuestError> {
        let source = self.take("sourceType")?.unwrap_or_default();
        let kind = self.take("encryptionType")?.unwrap_or_default();
        let key = self.take(MountRequest::KEY)?;
        let integrity = self.take("dataIntegrity")?;
        let integrity = integrity.map(|value| truth("dataIntegrity", &value));
        match (source.as_str(), kind.as_str(), key) {
            ("empty", "luks2" | "plain", None) => Ok(Encryption::Ephemeral {
                authenticated: integrity.transpose()?.unwrap_or(false),
            }),
            ("empty", "luks2" | "plain", Some(_)) => {
                let text = "sourceType empty with a key: a disk that stays is prepared by its owner: use encrypted";
                Err(invalid(PHASE, text))
            }
            ("encrypted", "plain", Some(key)) if integrity.is_none() => Encryption::keyed(&key),
            ("encrypted", "luks2", _) => {
                let text = "sourceType encrypted with luks2: its header is the host's to write: use encryptionType plain";
                Err(invalid(PHASE, text))
            }
            ("encrypted", "plain", _) => {
                let text = "sourceType encrypted: use a key kbs:///…, and no dataIntegrity";
                Err(invalid(PHASE, text))
            }
            _ => {
                let text = "use sourceType empty or encrypted, and encryptionType luks2 or plain";
                Err(invalid(PHASE, text))
            }
        }
    }
}

impl Device {
    fn find(&self) -> Result<PathBuf, GuestError> {
        let path = match self {
            Self::Path(path) => path.clone(),
            Self::Number(number) => {
                let event = fs::read_to_string(format!("{NUMBERS}/{number}/uevent"));
                let event = event.unwrap_or_default();
                let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
                let name = name.ok_or_else(|| {
                    let text = format!("the guest has no block device {number}");
                    GuestError::new(ErrorCode::FailedPrecondition, PHASE, text)
                })?;
                Path::new("/dev").join(name)
            }
        };
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(options: &[(&str, &str)]) -> MountRequest {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        MountRequest {
            volume_type: "block-device".into(),
            options: options.iter().map(own).collect(),
            flags: Vec::new(),
            mount_point: format!("{PLACE}/x"),
        }
    }

    #[test]
    fn what_katas_agent_asks_is_an_ephemeral_disk() {
        let asked = Asked::parse(&request(&[
            ("deviceId", "8:16"),
            ("sourceType", "empty"),
            ("targetType", "fileSystem"),
            ("filesystemType", "ext4"),
            ("encryptionType", "luks2"),
            ("dataIntegrity", "true"),
        ]));
        let asked = asked.unwrap();
        assert_eq!(asked.node, Device::Number("8:16".into()));
        let authenticated = Encryption::Ephemeral {
            authenticated: true,
        };
        assert_eq!(asked.encryption, authenticated);
        let owners = Asked::parse(&request(&[
            ("devicePath", "/dev/sda"),
            ("sourceType", "encrypted"),
            ("encryptionType", "plain"),
            ("key", "kbs:///default/disk/key"),
        ]));
        assert!(matches!(owners.unwrap().encryption, Encryption::Keyed(_)));
    }

    #[test]
    fn what_would_not_be_done_is_refused_by_name() {
        let good = [
            ("deviceId", "8:16"),
            ("sourceType", "empty"),
            ("encryptionType", "luks2"),
        ];
        Asked::parse(&request(&good)).unwrap();
        for (change, told) in [
            (("deviceId", "8"), "MAJ:MIN"),
            (("devicePath", "/dev/sda"), "deviceId or devicePath"),
            (("sourceType", "full"), "empty or encrypted"),
            (("sourceType", "encrypted"), "header is the host's"),
            (("encryptionType", "zfs"), "luks2 or plain"),
            (("key", "kbs:///a/b/c"), "prepared by its owner"),
            (("dataIntegrity", "yes"), "true or false"),
            (("targetType", "device"), "use fileSystem"),
            (("filesystemType", "xfs"), "use ext4"),
            (("mkfsOpts", "-N 1"), "\"mkfsOpts\""),
        ] {
            let mut changed = request(&good);
            changed.options.insert(change.0.into(), change.1.into());
            let error = Asked::parse(&changed).unwrap_err();
            assert!(error.message.contains(told), "{change:?}: {error}");
        }
        let mut elsewhere = request(&good);
        for point in [
            "/mnt",
            PLACE,
            "/run/kata-containers/image/x",
            "/run/kata-containers/../x",
        ] {
            elsewhere.mount_point = point.into();
            assert!(Asked::parse(&elsewhere).is_err(), "{point}");
        }
        let mut flagged = request(&good);
        flagged.flags.push("ro".into());
        assert!(Asked::parse(&flagged).is_err());
    }
}
