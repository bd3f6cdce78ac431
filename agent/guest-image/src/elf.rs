//! As much of ELF (System V ABI, 64-bit little endian) as a kernel and its modules need: notes
//! and sections. Offsets come from files of others, so every access is checked.

/// Why a file is not the ELF file that it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not a 64-bit little-endian ELF file.
    #[error("not a 64-bit little-endian ELF file")]
    Magic,
    /// A header or table lies outside of the file.
    #[error("the ELF file ends inside its {0}")]
    Truncated(&'static str),
}

/// `PT_INTERP` of the program header's `p_type`.
const PT_INTERP: u32 = 3;
/// `PT_NOTE` of the program header's `p_type`.
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: where a hypervisor enters the kernel in 32-bit mode (PVH).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;

/// An ELF file in memory.
#[derive(Clone, Copy, Debug)]
pub struct Elf<'a>(&'a [u8]);

impl<'a> Elf<'a> {
    /// Takes bytes that begin as an ELF file of the right kind does.
    ///
    /// # Errors
    /// [`ElfError::Magic`] when they do not.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        // Magic, ELFCLASS64, ELFDATA2LSB.
        if bytes.starts_with(b"\x7fELF\x02\x01") {
            Ok(Self(bytes))
        } else {
            Err(ElfError::Magic)
        }
    }

    /// The entry of the PVH boot protocol, as an address in guest memory; `None` when the kernel
    /// was built without it.
    ///
    /// # Errors
    /// [`ElfError::Truncated`] when a table lies outside of the file.
    pub fn pvh_entry(&self) -> Result<Option<u64>, ElfError> {
        let (table, count) = (self.u64(0x20)?, self.u16(0x38)?);
        for index in 0..u64::from(count) {
            let header = at(table, index, PROGRAM_HEADER)?;
            if self.u32(header)? != PT_NOTE {
                continue;
            }
            let (offset, size) = (self.u64(header + 8)?, self.u64(header + 32)?);
            if let Some(entry) = pvh_note(self.slice(offset, size, "notes")?)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Whether the program asks for a dynamic loader, which a static one does not.
    ///
    /// # Errors
    /// [`ElfError::Truncated`] when a table lies outside of the file.
    pub fn has_interpreter(&self) -> Result<bool, ElfError> {
        let (table, count) = (self.u64(0x20)?, self.u16(0x38)?);
        for index in 0..u64::from(count) {
            if self.u32(at(table, index, PROGRAM_HEADER)?)? == PT_INTERP {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What of a program the kernel loads, without the symbols and sections that only debuggers
    /// read: the file up to the end of its last segment, with no section table.
    ///
    /// # Errors
    /// [`ElfError::Truncated`] when a segment lies outside of the file.
    pub fn loadable(&self) -> Result<Vec<u8>, ElfError> {
        let (table, count) = (self.u64(0x20)?, self.u16(0x38)?);
        let mut end = ELF_HEADER;
        for index in 0..u64::from(count) {
            let header = at(table, index, PROGRAM_HEADER)?;
            self.slice(header, PROGRAM_HEADER, "headers")?;
            end = end.max(usize::try_from(header + PROGRAM_HEADER).unwrap_or(0));
            let (offset, size) = (self.u64(header + 8)?, self.u64(header + 32)?);
            // The slice proves that the sum is within the file.
            let segment = self.slice(offset, size, "segments")?;
            end = end.max(usize::try_from(offset).unwrap_or(0) + segment.len());
        }
        let mut file = self.slice(0, end as u64, "segments")?.to_vec();
        // e_shoff; and e_shnum and e_shstrndx.
        for empty in [0x28..0x30, 0x3c..0x40] {
            file.get_mut(empty)
                .ok_or(ElfError::Truncated("headers"))?
                .fill(0);
        }
        Ok(file)
    }

    /// The bytes of the section called `name`, if there is one.
    ///
    /// # Errors
    /// [`ElfError::Truncated`] when a table lies outside of the file.
    pub fn section(&self, name: &str) -> Result<Option<&'a [u8]>, ElfError> {
        let (table, count) = (self.u64(0x28)?, self.u16(0x3c)?);
        if count == 0 {
            return Ok(None);
        }
        let names = self.section_body(at(table, u64::from(self.u16(0x3e)?), SECTION_HEADER)?)?;
        for index in 0..u64::from(count) {
            let header = at(table, index, SECTION_HEADER)?;
            let start = usize::try_from(self.u32(header)?).unwrap_or(usize::MAX);
            let found = names
                .get(start..)
                .and_then(|rest| rest.split(|b| *b == 0).next());
            if found == Some(name.as_bytes()) {
                return self.section_body(header).map(Some);
            }
        }
        Ok(None)
    }

    fn section_body(&self, header: u64) -> Result<&'a [u8], ElfError> {
        self.slice(self.u64(header + 24)?, self.u64(header + 32)?, "sections")
    }

    fn slice(&self, offset: u64, size: u64, what: &'static str) -> Result<&'a [u8], ElfError> {
        let from = usize::try_from(offset).map_err(|_| ElfError::Truncated(what))?;
        let size = usize::try_from(size).map_err(|_| ElfError::Truncated(what))?;
        let to = from.checked_add(size).ok_or(ElfError::Truncated(what))?;
        self.0.get(from..to).ok_or(ElfError::Truncated(what))
    }

    fn fixed<const N: usize>(&self, offset: u64) -> Result<[u8; N], ElfError> {
        let bytes = self.slice(offset, N as u64, "headers")?;
        bytes.try_into().map_err(|_| ElfError::Truncated("headers"))
    }

    fn u16(&self, offset: u64) -> Result<u16, ElfError> {
        self.fixed(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: u64) -> Result<u32, ElfError> {
        self.fixed(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: u64) -> Result<u64, ElfError> {
        self.fixed(offset).map(u64::from_le_bytes)
    }
}

/// Entry `index` of a table, whose headers are then read a few words further on.
fn at(table: u64, index: u64, size: u64) -> Result<u64, ElfError> {
    table
        .checked_add(index * size)
        .filter(|start| start.checked_add(size).is_some())
        .ok_or(ElfError::Truncated("headers"))
}

/// Looks for the PVH note in a note segment: name size, body size, type, name, body, each padded
/// to four bytes.
fn pvh_note(segment: &[u8]) -> Result<Option<u64>, ElfError> {
    let short = ElfError::Truncated("notes");
    let mut rest = segment;
    while rest.len() >= 12 {
        let word = |n: usize| {
            let bytes: [u8; 4] = rest[n * 4..n * 4 + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        let (name_size, body_size, kind) = (padded(word(0)), padded(word(1)), word(2));
        let (name_raw, body_raw) = (word(0) as usize, word(1) as usize);
        let end = 12_usize.saturating_add(name_size).saturating_add(body_size);
        if end > rest.len() {
            return Err(short);
        }
        let name = &rest[12..12 + name_raw];
        let body = &rest[12 + name_size..12 + name_size + body_raw];
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            let mut entry = [0; 8];
            let width = body.len().min(8);
            entry[..width].copy_from_slice(&body[..width]);
            return Ok(Some(u64::from_le_bytes(entry)));
        }
        rest = &rest[end..];
    }
    Ok(None)
}

fn padded(size: u32) -> usize {
    (size as usize).saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one note segment and two sections.
    fn sample(note_kind: u32) -> Vec<u8> {
        let mut file = vec![0_u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x20..0x28].copy_from_slice(&64_u64.to_le_bytes());
        file[0x38..0x3a].copy_from_slice(&1_u16.to_le_bytes());
        let note_at = 64 + 56;
        let mut note = Vec::new();
        note.extend(4_u32.to_le_bytes());
        note.extend(4_u32.to_le_bytes());
        note.extend(note_kind.to_le_bytes());
        note.extend(b"Xen\0");
        note.extend(0x0100_0000_u32.to_le_bytes());
        let mut header = [0_u8; 56];
        header[..4].copy_from_slice(&PT_NOTE.to_le_bytes());
        header[8..16].copy_from_slice(&u64::to_le_bytes(note_at));
        header[32..40].copy_from_slice(&(note.len() as u64).to_le_bytes());
        file.extend(header);
        file.extend(note);
        let names_at = file.len() as u64;
        let names = b"\0.names\0.modinfo\0";
        file.extend(names);
        let body_at = file.len() as u64;
        file.extend(b"depends=a\0");
        let table = file.len() as u64;
        for (name, offset, size) in [(1_u32, names_at, names.len() as u64), (8, body_at, 10)] {
            let mut section = [0_u8; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[24..32].copy_from_slice(&offset.to_le_bytes());
            section[32..40].copy_from_slice(&size.to_le_bytes());
            file.extend(section);
        }
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
        file
    }

    #[test]
    fn the_pvh_entry_is_found_and_other_notes_are_not_it() {
        let with = sample(XEN_ELFNOTE_PHYS32_ENTRY);
        assert_eq!(
            Elf::parse(&with).unwrap().pvh_entry(),
            Ok(Some(0x0100_0000))
        );
        let without = sample(5);
        assert_eq!(Elf::parse(&without).unwrap().pvh_entry(), Ok(None));
    }

    #[test]
    fn sections_are_found_by_name() {
        let file = sample(18);
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.section(".modinfo"), Ok(Some(&b"depends=a\0"[..])));
        assert_eq!(elf.section(".absent"), Ok(None));
    }

    #[test]
    fn what_is_loaded_keeps_its_segments_and_loses_its_sections() {
        let file = sample(18);
        let loaded = Elf::parse(&file).unwrap().loadable().unwrap();
        assert!(loaded.len() < file.len());
        let elf = Elf::parse(&loaded).unwrap();
        assert_eq!(elf.pvh_entry(), Ok(Some(0x0100_0000)));
        assert_eq!(elf.section(".modinfo"), Ok(None));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_survived() {
        let file = sample(18);
        for end in 6..file.len() {
            let elf = Elf::parse(&file[..end]).unwrap();
            let _ = (elf.pvh_entry(), elf.section(".modinfo"), elf.loadable());
        }
        for place in 6..file.len() {
            let mut bent = file.clone();
            bent[place] ^= 0xff;
            let elf = Elf::parse(&bent).unwrap();
            let _ = (elf.pvh_entry(), elf.section(".modinfo"), elf.loadable());
        }
    }
}
