//! Changes of bytes and of documents, by seed.

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

/// Bytes that parsers care about.
const SPECIAL: &[u8] = b"\0\n\r \"'\\/{}[]():;,.=%?&#~-+09AZaz\x7f\x80\xff";
/// Texts that are lengths, orders and widths of their own.
pub(crate) const ODD: &[&str] = &[
    "",
    "\u{0}",
    "\u{202e}gnirts",
    "\u{feff}",
    "e\u{301}\u{301}\u{301}",
    "\u{10ffff}",
    "../../../etc/passwd",
    "%00%2e%2e%2f",
    "sha384:",
    "null",
    "💣💣💣💣",
    "' OR 1=1; --",
];

/// xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(word).unwrap() % end.max(1)
    }

    pub(crate) fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// One to four changes of bytes.
pub(crate) fn bytes(data: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(data.len());
        let special = SPECIAL[random.below(SPECIAL.len())];
        if data.is_empty() {
            data.push(special);
            continue;
        }
        match random.below(7) {
            0 => data[at] ^= 1 << random.below(8),
            1 => data[at] = special,
            2 => data.insert(at, special),
            3 => drop(data.remove(at)),
            4 if random.below(4) == 0 => data.truncate(at),
            5 => {
                let end = (at + 1 + random.below(64)).min(data.len());
                let part = data[at..end].to_vec();
                data.splice(at..at, part);
            }
            6 => drop(data.splice(at..at, vec![special; 1 + random.below(300)])),
            _ => data.swap(at, 0),
        }
    }
}

/// One change somewhere in a document. `other` has the same form and comes from somebody else.
pub(crate) fn structure(value: &mut Value, other: &Value, random: &mut Random) {
    let here = random.below(6) == 0;
    match value {
        Value::Object(members) if !here && !members.is_empty() => {
            let at = random.below(members.len());
            let (name, member) = members.iter_mut().nth(at).unwrap();
            structure(member, &other[name.as_str()], random);
        }
        Value::Array(items) if !here && !items.is_empty() => {
            let at = random.below(items.len());
            structure(&mut items[at], &other[at], random);
        }
        _ => change(value, other, random),
    }
}

fn change(value: &mut Value, other: &Value, random: &mut Random) {
    match random.below(8) {
        0 | 1 => value.clone_from(other),
        2 => *value = foreign(random),
        _ => match value {
            Value::String(text) => string(text, random),
            Value::Array(items) => array(items, random),
            Value::Object(_) => object(value, random),
            _ => *value = number(random),
        },
    }
}

fn foreign(random: &mut Random) -> Value {
    match random.below(5) {
        0 => Value::Null,
        1 => json!({"a": [{}]}),
        2 => (0..random.below(200)).fold(json!([]), |inner, _| json!([inner])),
        3 => json!(random.one_of(ODD)),
        _ => number(random),
    }
}

fn number(random: &mut Random) -> Value {
    match random.below(8) {
        0 => json!(-1),
        1 => json!(u64::MAX),
        2 => json!(i64::MIN),
        3 => json!(1e308),
        4 => json!(0.5),
        5 => json!(256),
        _ => json!(random.below(256)),
    }
}

fn array(items: &mut Vec<Value>, random: &mut Random) {
    let at = random.below(items.len());
    match random.below(4) {
        0 => items.truncate(at),
        1 if !items.is_empty() => drop(items.remove(at)),
        2 if !items.is_empty() => {
            let again = vec![items[at].clone(); 1 + random.below(2000)];
            // Long lists of certificates would be all that a slice sends.
            let few = if items[at].is_number() { 2000 } else { 8 };
            items.splice(at..at, again.into_iter().take(few));
        }
        _ => items.push(number(random)),
    }
}

fn object(value: &mut Value, random: &mut Random) {
    let Some(members) = value.as_object_mut() else {
        return;
    };
    let at = random.below(members.len());
    let name = members.keys().nth(at).cloned();
    match (random.below(3), name) {
        (0, Some(name)) => drop(members.remove(&name)),
        (1, Some(name)) => {
            let member = members.remove(&name).unwrap_or_default();
            let mut name = name.into_bytes();
            bytes(&mut name, random);
            members.insert(String::from_utf8_lossy(&name).into_owned(), member);
        }
        _ => drop(members.insert(random.one_of(ODD).to_owned(), number(random))),
    }
}

/// A text, and what it is the base64 or hex of.
fn string(text: &mut String, random: &mut Random) {
    match random.below(6) {
        0 => random.one_of(ODD).clone_into(text),
        1 => {
            let odd = random.one_of(ODD);
            let at = text.char_indices().nth(random.below(text.len()));
            text.insert_str(at.map_or(0, |(at, _)| at), odd);
        }
        2 => {
            let mut changed = std::mem::take(text).into_bytes();
            bytes(&mut changed, random);
            *text = String::from_utf8_lossy(&changed).into_owned();
        }
        3 => text.push_str(random.one_of(&["=", "A", "\n", " ", "\u{0}"])),
        _ => {
            let standard = BASE64_STANDARD.decode(text.as_bytes());
            if let Ok(mut plain) = standard {
                bytes(&mut plain, random);
                *text = BASE64_STANDARD.encode(plain);
            } else if let Ok(mut plain) = BASE64_URL_SAFE_NO_PAD.decode(text.as_bytes()) {
                bytes(&mut plain, random);
                *text = BASE64_URL_SAFE_NO_PAD.encode(plain);
            } else {
                text.make_ascii_uppercase();
            }
        }
    }
}
