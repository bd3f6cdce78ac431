//! Device paths as text (UEFI 2.10, section 10.6), in the forms that Trustee writes.
//!
//! A node that has no form here is written by its numbers.

use super::{detail::units, log::Reader};

/// The most nodes of a path that are written.
const NODES: usize = 64;

/// The nodes of a path without its end, or nothing where the bytes are no path.
pub(super) fn texts(path: &[u8]) -> Option<Vec<String>> {
    let mut texts = Vec::new();
    let mut rest = Reader(path);
    loop {
        let [kind, sub, low, high] = *rest.array()?;
        let length = usize::from(u16::from_le_bytes([low, high]));
        let data = rest.take(length.checked_sub(4)?)?;
        if texts.len() == NODES {
            return None;
        }
        let text = node(kind, sub, data);
        texts.push(text.unwrap_or_else(|| format!("Path({kind},{sub},{})", hex::encode(data))));
        if rest.0.is_empty() {
            return Some(texts);
        }
    }
}

fn node(kind: u8, sub: u8, data: &[u8]) -> Option<String> {
    match (kind, sub) {
        (1, 1) => pair("Pci", data),
        (2, 1) => acpi(data),
        (3, 0x05) => pair("USB", data),
        (3, 0x0b) => mac(data),
        (3, 0x0c) => ipv4(data),
        (3, 0x15) => fibre(data),
        (4, 1) => hard_drive(data),
        (4, 3) => vendor(data),
        (4, 4) => file(data),
        (5, 1) => bios_boot(data),
        _ => None,
    }
}

fn pair(name: &str, data: &[u8]) -> Option<String> {
    let [first, second] = data.first_chunk()?;
    Some(format!("{name}({first},{second})"))
}

fn acpi(data: &[u8]) -> Option<String> {
    let mut rest = Reader(data);
    let (id, unit) = (rest.u32()?, rest.u32()?);
    let letter = |shift: u32| char::from_u32((id >> shift & 0x1f) + u32::from(b'@'));
    let (a, b, c) = (letter(10)?, letter(5)?, letter(0)?);
    Some(format!("ACPI({a}{b}{c}{:04X},{unit})", id >> 16))
}

/// The address ends where only zeros follow, as Trustee writes it.
fn mac(data: &[u8]) -> Option<String> {
    let data: &[u8; 33] = data.try_into().ok()?;
    let address = hex::encode_upper(&data[..31]);
    Some(format!(
        "Mac({},{:#04x})",
        address.trim_end_matches('0'),
        data[32]
    ))
}

fn ipv4(data: &[u8]) -> Option<String> {
    let mut rest = Reader(data);
    let (local, remote) = (address(rest.u32()?), address(rest.u32()?));
    let _ports = rest.u32()?;
    let protocol = match rest.u16()? {
        6 => "TCP",
        17 => "UDP",
        _ => "",
    };
    let origin = match rest.array()? {
        [0] => "DHCP",
        [1] => "Static",
        _ => "",
    };
    let (gateway, mask) = (rest.u32()?, rest.u32()?);
    let route = if (gateway, mask) == (0, 0) {
        String::new()
    } else {
        format!(",{gateway},{mask}")
    };
    Some(format!("IPv4({remote},{protocol},{origin},{local}{route})"))
}

fn address(number: u32) -> String {
    let [a, b, c, d] = number.to_be_bytes();
    format!("{a}.{b}.{c}.{d}")
}

fn fibre(data: &[u8]) -> Option<String> {
    let [name, unit]: [&[u8; 8]; 2] = {
        let mut rest = Reader(data);
        [rest.array()?, rest.array()?]
    };
    Some(format!(
        "FibreEx(0x{},0x{})",
        hex::encode(name),
        hex::encode(unit)
    ))
}

fn hard_drive(data: &[u8]) -> Option<String> {
    let mut rest = Reader(data);
    let number = rest.u32()?;
    let (start, size) = (rest.u64()?, rest.u64()?);
    let signature: &[u8; 16] = rest.array()?;
    let [format, _signature_kind] = rest.array()?;
    let (scheme, signature) = match format {
        1 => {
            let number = u32::from_le_bytes(*signature.first_chunk()?);
            ("MBR", format!("{number:#010x}"))
        }
        2 => ("GPT", guid(signature)),
        _ => return None,
    };
    let place = if number == 0 {
        String::new()
    } else {
        format!(",{start:#x},{size:#x}")
    };
    Some(format!("HD({number},{scheme},{signature}{place})"))
}

fn vendor(data: &[u8]) -> Option<String> {
    let (id, rest) = data.split_first_chunk()?;
    Some(format!("VenMedia({},{})", guid(id), hex::encode(rest)))
}

fn file(data: &[u8]) -> Option<String> {
    let name = data.get(..data.len().checked_sub(2)?)?;
    (name.len() % 2 == 0).then(|| format!("File({})", String::from_utf16_lossy(&units(name))))
}

fn bios_boot(data: &[u8]) -> Option<String> {
    let mut rest = Reader(data);
    let kind = rest.u16()?;
    let status = rest.u16()?;
    let kind = match kind {
        0x01 => "FLOPPY".to_owned(),
        0x02 => "HARD_DRIVE".to_owned(),
        0x03 => "CDROM".to_owned(),
        0x04 => "PCMCIA".to_owned(),
        0x05 => "USB".to_owned(),
        0x06 => "EMBEDDED_NETWORK".to_owned(),
        0x80 => "DEV".to_owned(),
        0xff => "UNKNOWN".to_owned(),
        other => other.to_string(),
    };
    let text = rest.0.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).ok()?;
    Some(format!("BBS({kind},{text},{status})"))
}

/// The first three parts are little-endian numbers (UEFI 2.10, appendix A).
fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let first = u32::from_le_bytes([*a, *b, *c, *d]);
    let second = u16::from_le_bytes([*e, *f]);
    let third = u16::from_le_bytes([*g, *h]);
    let (fourth, last) = rest.split_at(2);
    format!(
        "{first:08X}-{second:04X}-{third:04X}-{}-{}",
        hex::encode_upper(fourth),
        hex::encode_upper(last)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(kind: u8, sub: u8, data: &str) -> Option<String> {
        node(kind, sub, &hex::decode(data).unwrap())
    }

    #[test]
    fn nodes_are_written_as_trustee_writes_them() {
        let drive = "0f000000002800000000000000500300000000005e27f1007553d5439eb5de2add4c99320202";
        let mac_address = format!("001320f5fa77{}01", "00".repeat(26));
        for (kind, sub, data, text) in [
            (1, 1, "0001", "Pci(0,1)"),
            (2, 1, "d041030a02000000", "ACPI(PNP0A03,2)"),
            (3, 5, "0100", "USB(1,0)"),
            (3, 11, &mac_address, "Mac(001320F5FA77,0x01)"),
            (
                3,
                12,
                "0100a8c06400a8c00000bc0c0600010000000000000000",
                "IPv4(192.168.0.100,TCP,Static,192.168.0.1)",
            ),
            (
                3,
                21,
                "00010203040506070001020304050607",
                "FibreEx(0x0001020304050607,0x0001020304050607)",
            ),
            (
                4,
                1,
                drive,
                "HD(15,GPT,00F1275E-5375-43D5-9EB5-DE2ADD4C9932,0x2800,0x35000)",
            ),
            (
                4,
                1,
                "01000000000800000000000000e02e0000000000431202a000000000431202a0000000000101",
                "HD(1,MBR,0xa0021243,0x800,0x2ee000)",
            ),
            (
                4,
                3,
                "72f728144ab61e44b8c39ebdd7f893c7",
                "VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7,)",
            ),
            (4, 4, "6b00650072006e0065006c000000", "File(kernel)"),
            (5, 1, "0500000000", "BBS(USB,,0)"),
            (5, 1, "8000000041424300", "BBS(DEV,ABC,0)"),
        ] {
            assert_eq!(shown(kind, sub, data).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_path_that_lies_about_its_length_has_no_text() {
        assert_eq!(texts(&[1, 1, 6, 0, 0, 1]), Some(vec!["Pci(0,1)".into()]));
        assert_eq!(texts(&[7, 9, 5, 0, 1]), Some(vec!["Path(7,9,01)".into()]));
        for wrong in [&[1, 1, 6, 0, 0][..], &[1, 1, 3, 0], &[1, 1], &[]] {
            assert_eq!(texts(wrong), None);
        }
        assert_eq!(texts(&[1, 1, 4, 0].repeat(NODES + 1)), None);
    }
}
