//! Just enough DER to take one extension out of a certificate and write the rest again.

const SEQUENCE: u8 = 0x30;
/// `extensions [3]` of a `TBSCertificate`.
const EXTENSIONS: u8 = 0xa3;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// One value: its tag, its content, and all of its bytes.
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

/// The first value of `bytes`, and what follows it.
fn read(bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    // No tag of a certificate needs a second byte.
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        let length = digits
            .iter()
            .fold(0, |sum, digit| sum << 8 | usize::from(*digit));
        (length, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    let whole = &bytes[..bytes.len() - rest.len()];
    Some((
        Value {
            tag,
            content,
            whole,
        },
        rest,
    ))
}

fn values(mut bytes: &[u8]) -> Option<Vec<Value<'_>>> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let (value, rest) = read(bytes)?;
        values.push(value);
        bytes = rest;
    }
    Some(values)
}

/// A value of `tag` with this content.
pub(super) fn write(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let length = content.len().to_be_bytes();
    let digits: Vec<u8> = length.into_iter().skip_while(|digit| *digit == 0).collect();
    match digits.as_slice() {
        [] => bytes.push(0),
        [one] if *one < 0x80 => bytes.push(*one),
        digits => {
            // At most 8 digits.
            bytes.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            bytes.extend(digits);
        }
    }
    bytes.extend(content);
    bytes
}

/// A `SEQUENCE` of this content.
pub(super) fn sequence(content: &[u8]) -> Vec<u8> {
    write(SEQUENCE, content)
}

/// A `TBSCertificate` without the extension whose `OBJECT IDENTIFIER` has the content `oid`.
pub(super) fn without_extension(tbs: &[u8], oid: &[u8]) -> Option<Vec<u8>> {
    let (tbs, rest) = read(tbs)?;
    if !rest.is_empty() || tbs.tag != SEQUENCE {
        return None;
    }
    let mut fields = Vec::new();
    for field in values(tbs.content)? {
        if field.tag != EXTENSIONS {
            fields.extend(field.whole);
            continue;
        }
        let (list, _) = read(field.content)?;
        let mut kept = Vec::new();
        for extension in values(list.content)? {
            let (name, _) = read(extension.content)?;
            if name.tag != OBJECT_IDENTIFIER || name.content != oid {
                kept.extend(extension.whole);
            }
        }
        fields.extend(write(EXTENSIONS, &sequence(&kept)));
    }
    Some(sequence(&fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_der_wants_them() {
        for (length, head) in [
            (0, vec![0x30, 0]),
            (127, vec![0x30, 127]),
            (128, vec![0x30, 0x81, 128]),
            (256, vec![0x30, 0x82, 1, 0]),
        ] {
            let bytes = sequence(&vec![7; length]);
            assert_eq!(bytes[..head.len()], head);
            let (value, rest) = read(&bytes).unwrap();
            assert_eq!((value.content.len(), rest.len()), (length, 0));
        }
    }

    #[test]
    fn one_extension_goes_and_the_others_stay() {
        let extension = |oid: &[u8]| sequence(&[write(6, oid), write(4, b"value")].concat());
        let tbs = |extensions: &[Vec<u8>]| {
            let list = write(EXTENSIONS, &sequence(&extensions.concat()));
            sequence(&[write(2, &[1]), list].concat())
        };
        let (one, two) = (extension(&[1, 2]), extension(&[1, 3]));
        let both = tbs(&[one.clone(), two]);
        assert_eq!(without_extension(&both, &[1, 3]).unwrap(), tbs(&[one]));
    }

    #[test]
    fn broken_der_is_refused() {
        for bad in [
            &[0x30_u8, 5, 1][..],
            &[0x30, 0x85, 1, 1, 1, 1, 1],
            &[0x1f, 1, 1],
            &[0x30],
            &[],
        ] {
            assert!(without_extension(bad, &[1]).is_none());
        }
    }
}
