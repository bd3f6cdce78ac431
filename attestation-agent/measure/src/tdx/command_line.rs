//! The command line as the firmware hands it to the kernel, whose EFI stub measures it.

use super::{InitrdArgument, bytes::wide};

/// The most bytes of a line: what a kernel for x86 takes, without the zero.
pub const COMMAND_LINE_BYTES: usize = 2047;

/// What the firmware adds where there is an initramfs.
const INITRD: &str = "initrd=initrd";

/// A line that a guest would not have as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// Bytes that firmware turns into other characters.
    #[error("the command line has a character that is not printable ASCII, or a zero byte in it")]
    Characters,
    /// Too long.
    #[error(
        "the command line has {0} bytes with what the firmware adds: the kernel cuts it at {COMMAND_LINE_BYTES}"
    )]
    Length(usize),
}

/// The load options in UTF-16 with their zero; nothing where there are none, and then no event.
pub(super) fn load_options(
    line: &str,
    initramfs: bool,
    place: InitrdArgument,
) -> Result<Option<Vec<u8>>, CommandLineError> {
    if !line.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        return Err(CommandLineError::Characters);
    }
    let whole = match (initramfs, place) {
        (false, _) => line.to_owned(),
        (true, InitrdArgument::Before) => format!("{INITRD} {line}"),
        (true, InitrdArgument::Behind) => format!("{line} {INITRD}"),
    };
    if whole.len() > COMMAND_LINE_BYTES {
        return Err(CommandLineError::Length(whole.len()));
    }
    // QEMU passes an empty line on as one zero byte, of which firmware makes no options.
    if whole.is_empty() {
        return Ok(None);
    }
    let mut options = wide(&whole);
    options.extend([0, 0]);
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str, initramfs: bool, place: InitrdArgument) -> Option<String> {
        let options = load_options(line, initramfs, place).unwrap()?;
        let units: Vec<u16> = options
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        Some(String::from_utf16(&units).unwrap())
    }

    #[test]
    fn the_firmwares_argument_is_where_its_version_puts_it() {
        use InitrdArgument::{Before, Behind};
        let said = |initramfs, place| text("quiet", initramfs, place).unwrap();
        assert_eq!(said(true, Before), "initrd=initrd quiet\0");
        assert_eq!(said(true, Behind), "quiet initrd=initrd\0");
        assert_eq!(said(false, Before), "quiet\0");
        assert_eq!(text("", true, Before).unwrap(), "initrd=initrd \0");
        assert_eq!(text("", false, Before), None);
    }

    #[test]
    fn a_line_that_would_become_another_is_refused() {
        for line in ["a\0b", "a\nb", "ä"] {
            let refused = load_options(line, false, InitrdArgument::Before);
            assert_eq!(refused, Err(CommandLineError::Characters));
        }
        let long = "x".repeat(COMMAND_LINE_BYTES);
        assert!(load_options(&long, false, InitrdArgument::Before).is_ok());
        assert_eq!(
            load_options(&long, true, InitrdArgument::Before),
            Err(CommandLineError::Length(COMMAND_LINE_BYTES + 14))
        );
    }
}
