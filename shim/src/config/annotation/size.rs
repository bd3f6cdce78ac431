//! Sizes of memory as annotations have them: MiB, or with a unit of their own.

use toml::Value;

/// Powers of ten, and of two, by their letter.
const UNITS: &[(char, u32)] = &[('k', 1), ('m', 2), ('g', 3), ('t', 4)];

/// The size in whole MiB, rounded up: `512`, `1Gi`, `1GiB`, `800M`.
///
/// # Errors
/// What the text is not.
pub(super) fn mebibytes(text: &str) -> Result<Value, String> {
    let refused = || {
        format!(
            "{:?} is not a size, as 512 (MiB), 2Gi or 800M",
            super::shorten(text)
        )
    };
    let mib = parse(text.trim()).ok_or_else(refused)?;
    Ok(Value::from(i64::try_from(mib).map_err(|_| refused())?))
}

fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    let unit = unit.trim_start().to_ascii_lowercase();
    if unit.is_empty() {
        return Some(number);
    }
    number
        .checked_mul(bytes(&unit)?)
        .map(|bytes| bytes.div_ceil(1 << 20))
}

/// Bytes of one unit, in lower case.
fn bytes(unit: &str) -> Option<u64> {
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let mut letters = unit.chars();
    let Some(letter) = letters.next() else {
        return Some(1);
    };
    let (_, power) = UNITS.iter().find(|(known, _)| *known == letter)?;
    match letters.as_str() {
        "" => Some(1000_u64.pow(*power)),
        "i" => Some(1024_u64.pow(*power)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_without_a_unit_is_in_mebibytes() {
        for (text, mib) in [
            ("512", 512),
            ("2Gi", 2048),
            ("2GiB", 2048),
            ("1g", 954),
            ("1000 MB", 954),
            ("1048577b", 2),
        ] {
            assert_eq!(parse(text), Some(mib), "{text}");
        }
        for text in [
            "",
            "0",
            "-1",
            "1.5Gi",
            "Gi",
            "1Gib2",
            "99999999999999999999",
            "9999999999Ti",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
