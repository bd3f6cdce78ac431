//! ACPI tables, as QEMU gives them to firmware and as firmware measures them.
//!
//! QEMU builds the tables for each machine, device and version of its own, in some ten thousand lines;
//! no other program makes the same bytes. So they are an input: of a guest of the same shape, whose
//! fw_cfg files can be read in `/sys/firmware/qemu_fw_cfg/by_name/etc`. A TD has no legacy interrupt
//! controller: a plain guest of the same QEMU has the same tables only where its machine is started with
//! `pic=off`, since their MADT says whether there is one. They say how many vCPUs and which devices there
//! are, and nothing of the disks' content.
//!
//! Firmware gets them with a list of commands, `etc/table-loader`. It measures the list, and then each
//! file as a command allocates memory for it, before any other command changes the file.

use super::{
    Digest,
    bytes::u32_at,
    event::{Event, Origin, of_data},
};
use evidence::eventlog::EventKind;

/// The most bytes of a file: what QEMU reserves for its tables.
pub const ACPI_FILE_BYTES: usize = 2 * 1024 * 1024;

/// Bytes of a command.
const COMMAND_BYTES: usize = 128;
const COMMANDS: usize = 4096;
/// Allocate memory for a file.
const ALLOCATE: u32 = 1;
/// The last kind of command: write a pointer back.
const LAST_KIND: u32 = 4;
/// Bytes of a file's name, with its zero.
const NAME_BYTES: usize = 56;
const LOADER: &str = "etc/table-loader";

/// The files of fw_cfg that make the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acpi<'a> {
    /// `etc/table-loader`, with its padding.
    pub loader: &'a [u8],
    /// The files that it allocates, by their names in fw_cfg: `etc/acpi/rsdp` and `etc/acpi/tables`,
    /// and others that devices bring.
    pub files: &'a [(&'a str, &'a [u8])],
}

/// Files that are not those of one guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the members are what the text says")]
pub enum AcpiError {
    /// Empty, or too long.
    #[error("{name} has {bytes} bytes: it has 1 to {ACPI_FILE_BYTES}")]
    Length { name: String, bytes: usize },
    /// No list of commands.
    #[error("etc/table-loader is broken: {0}")]
    Loader(&'static str),
    /// A file that is asked for.
    #[error("etc/table-loader asks for {0}, which is not given: take it from the same guest")]
    Missing(String),
    /// A file that is not.
    #[error("etc/table-loader does not ask for {0}: it is of another guest, or not needed")]
    Unused(String),
    /// A file that is there twice.
    #[error("{0} is given or asked for twice")]
    Twice(String),
}

impl Acpi<'_> {
    /// The names of the files that a list asks for, in its order. They are a host's: whoever opens files
    /// by them has to look where they lead.
    ///
    /// # Errors
    /// When it is no list of commands.
    pub fn asked(loader: &[u8]) -> Result<Vec<String>, AcpiError> {
        allocated(loader)
    }

    /// The events in the firmware's order.
    pub(super) fn events(&self) -> Result<Vec<Event>, AcpiError> {
        let mut events = vec![event(LOADER, self.loader)?];
        let asked = allocated(self.loader)?;
        for (at, name) in asked.iter().enumerate() {
            if asked.iter().take(at).any(|other| other == name) {
                return Err(AcpiError::Twice(name.clone()));
            }
            let mut given = self.files.iter().filter(|(given, _)| given == name);
            let (_, content) = given
                .next()
                .ok_or_else(|| AcpiError::Missing(name.clone()))?;
            if given.next().is_some() {
                return Err(AcpiError::Twice(name.clone()));
            }
            events.push(event(name, content)?);
        }
        let unused = |(name, _): &&(&str, &[u8])| !asked.iter().any(|asked| asked == name);
        match self.files.iter().find(unused) {
            Some((name, _)) => Err(AcpiError::Unused(shown(name))),
            None => Ok(events),
        }
    }
}

fn event(name: &str, content: &[u8]) -> Result<Event, AcpiError> {
    if content.is_empty() || content.len() > ACPI_FILE_BYTES {
        return Err(AcpiError::Length {
            name: name.to_owned(),
            bytes: content.len(),
        });
    }
    let digest: Digest = of_data(content);
    Ok(Event {
        index: 1,
        kind: EventKind::PlatformConfigFlags,
        digest,
        origin: Origin::Acpi(name.to_owned()),
    })
}

/// The files that the list allocates, in its order.
fn allocated(loader: &[u8]) -> Result<Vec<String>, AcpiError> {
    const BROKEN: AcpiError = AcpiError::Loader("it does not consist of commands of 128 bytes");
    let commands = loader.chunks_exact(COMMAND_BYTES);
    if !commands.remainder().is_empty() || commands.len() > COMMANDS {
        return Err(BROKEN);
    }
    let mut names = Vec::new();
    let mut ended = false;
    for command in commands {
        let kind = u32_at(command, 0).ok_or(BROKEN)?;
        match kind {
            0 => ended = true,
            _ if ended => return Err(AcpiError::Loader("a command follows its padding")),
            ALLOCATE => names.push(name(command)?),
            kind if kind <= LAST_KIND => {}
            _ => return Err(AcpiError::Loader("it has a command that is not known here")),
        }
    }
    if names.is_empty() {
        return Err(AcpiError::Loader("it allocates no file"));
    }
    Ok(names)
}

fn name(command: &[u8]) -> Result<String, AcpiError> {
    let field = command.get(4..4 + NAME_BYTES).unwrap_or_default();
    let name = field.split(|byte| *byte == 0).next().unwrap_or_default();
    let plain = name.iter().all(u8::is_ascii_graphic);
    if name.is_empty() || name.len() == NAME_BYTES || !plain {
        return Err(AcpiError::Loader("the name of a file in it is none"));
    }
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// A caller's name, short and without what a terminal would act on.
fn shown(name: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    name.chars().take(NAME_BYTES).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(kind: u32, name: &str) -> Vec<u8> {
        let mut command = kind.to_le_bytes().to_vec();
        command.extend(name.as_bytes());
        command.resize(COMMAND_BYTES, 0);
        command
    }

    fn loader() -> Vec<u8> {
        let mut loader = command(ALLOCATE, "etc/acpi/rsdp");
        loader.extend(command(ALLOCATE, "etc/acpi/tables"));
        loader.extend(command(3, "etc/acpi/tables"));
        loader.resize(4096, 0);
        loader
    }

    fn origins(loader: &[u8], files: &[(&str, &[u8])]) -> Result<Vec<String>, AcpiError> {
        let events = Acpi { loader, files }.events()?;
        let origin = |event: &Event| match &event.origin {
            Origin::Acpi(name) => name.clone(),
            other => other.to_string(),
        };
        Ok(events.iter().map(origin).collect())
    }

    const FILES: [(&str, &[u8]); 2] = [("etc/acpi/tables", b"DSDT"), ("etc/acpi/rsdp", b"RSD")];

    #[test]
    fn the_list_comes_first_and_then_the_files_in_its_order() {
        assert_eq!(
            origins(&loader(), &FILES).unwrap(),
            [LOADER, "etc/acpi/rsdp", "etc/acpi/tables"]
        );
    }

    #[test]
    fn files_that_are_not_of_one_guest_are_refused_by_name() {
        let missing = AcpiError::Missing("etc/acpi/rsdp".into());
        assert_eq!(origins(&loader(), &FILES[..1]), Err(missing));
        let unused = [FILES[0], FILES[1], ("etc/tpm/log", b"log")];
        assert_eq!(
            origins(&loader(), &unused),
            Err(AcpiError::Unused("etc/tpm/log".into()))
        );
        let twice = [FILES[0], FILES[1], FILES[1]];
        assert_eq!(
            origins(&loader(), &twice),
            Err(AcpiError::Twice("etc/acpi/rsdp".into()))
        );
        let empty = [("etc/acpi/tables", &b""[..]), FILES[1]];
        let said = origins(&loader(), &empty).unwrap_err().to_string();
        assert!(said.contains("etc/acpi/tables has 0 bytes"), "{said}");
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        let mut late = loader();
        late.extend(command(ALLOCATE, "etc/late"));
        for (bytes, part) in [
            (loader()[..4095].to_vec(), "128 bytes"),
            (vec![0; 4096], "allocates no file"),
            (command(5, "etc/acpi/rsdp"), "not known"),
            (command(ALLOCATE, ""), "is none"),
            (command(ALLOCATE, &"n".repeat(NAME_BYTES)), "is none"),
            (command(ALLOCATE, "etc/\u{7}"), "is none"),
            (late, "follows its padding"),
            (command(ALLOCATE, "x").repeat(COMMANDS + 1), "128 bytes"),
        ] {
            let said = origins(&bytes, &FILES).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }
}
