//! Mutations of honest requests, the same for a seed on every machine but for the keys and nonces
//! that each run makes anew.

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use kbs_protocol::PREFIX;
use serde_json::{Value, json};

use crate::guest::Guest;
use crate::http::Request;
use crate::served::RESOURCE;

/// Bytes that parsers care about.
const SPECIAL: &[u8] = b"\0\n\r \"'\\/{}[]():;,.=%?&#~-+09AZaz\x7f\x80\xff";
const METHODS: &[&str] = &[
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "QUERY",
];
/// What anybody may read.
pub(crate) const PUBLIC: &[&str] = &[
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/.well-known/jwks.json",
];
/// What is for administrators alone.
const OWNERS: &[&str] = &[
    "resource",
    "resource-history/hostile/key/one",
    "key",
    "resource-policy",
    "resource-policy/hostile",
    "resource-policy-history/hostile",
    "attestation-policy",
    "attestation-policy/default_cpu",
    "attestation-policy-history/default_cpu",
    "reference-value",
    "reference-value/measurement",
    "reference-value-history/measurement",
    "explain/0123456789abcdef0123456789abcdef",
    "record",
];
/// Texts that are lengths, orders and widths of their own.
const ODD: &[&str] = &[
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

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// By which rule an answer is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A challenge, which anybody gets.
    Auth,
    /// Evidence.
    Attest,
    /// A secret by a token.
    Resource,
    /// What is for administrators, by nobody or a stranger.
    Admin,
    /// Any method at any address, by nobody.
    Nobody,
}

/// Whose words are mutated, and the words of the one beside.
pub(crate) struct Source<'a> {
    pub(crate) good: &'a Guest,
    pub(crate) other: &'a Guest,
    pub(crate) admin: &'a str,
    pub(crate) stranger: &'a str,
}

/// One mutation.
pub(crate) fn next(source: &Source<'_>, random: &mut Random) -> (Class, Request) {
    let (class, request) = match random.below(20) {
        0..11 => (Class::Attest, attest(source, random)),
        11..15 => (Class::Resource, resource(source, random)),
        15..18 => (Class::Admin, admin(source, random)),
        18 => (Class::Auth, auth(source, random)),
        _ => (Class::Nobody, nobody(random)),
    };
    (class, request.on_its_lines())
}

fn attest(source: &Source<'_>, random: &mut Random) -> Request {
    let mut request = source.good.ask();
    match random.below(16) {
        0..9 => {
            let mut value: Value = serde_json::from_slice(&request.body).unwrap();
            let other: Value = serde_json::from_slice(&source.other.body).unwrap();
            for _ in 0..=random.below(3) {
                structure(&mut value, &other, random);
            }
            request.body = serde_json::to_vec(&value).unwrap();
        }
        9..14 => bytes(&mut request.body, random),
        14 => request.headers[0].1 = cookie(source, random),
        _ => {
            request.headers[0].1 = cookie(source, random);
            if random.below(2) == 0 {
                request.body.clone_from(&source.other.body);
            }
        }
    }
    request
}

/// A cookie that is not the good guest's, or not in this form.
fn cookie(source: &Source<'_>, random: &mut Random) -> Vec<u8> {
    let good = source.good.cookie.as_bytes().to_vec();
    let other = &source.other.cookie;
    match random.below(6) {
        0 => other.clone().into(),
        1 => format!("kbs-session-id=t.{}", source.good.token).into(),
        2 => format!("{other}; {}", source.good.cookie).into(),
        3 => Vec::new(),
        4 => {
            // The sealed part of one with the head of the other.
            let at = random.below(good.len().min(other.len()));
            [&good[..at], &other.as_bytes()[at..]].concat()
        }
        _ => {
            let mut changed = good;
            bytes(&mut changed, random);
            changed
        }
    }
}

/// A token that nobody signed, most times.
fn token(source: &Source<'_>, random: &mut Random) -> Vec<u8> {
    let good: Vec<_> = source.good.token.split('.').collect();
    let other: Vec<_> = source.other.token.split('.').collect();
    match random.below(8) {
        0 => format!("{}.{}.{}", good[0], other[1], good[2]).into(),
        1 => format!("{}.{}.{}", good[0], good[1], other[2]).into(),
        2 => {
            let head = BASE64_URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"none"}"#);
            format!("{head}.{}.", good[1]).into()
        }
        3 => {
            let mut plain = BASE64_URL_SAFE_NO_PAD.decode(good[1]).unwrap();
            bytes(&mut plain, random);
            let changed = BASE64_URL_SAFE_NO_PAD.encode(plain);
            format!("{}.{changed}.{}", good[0], good[2]).into()
        }
        4 => source.stranger.into(),
        _ => {
            let mut changed = source.good.token.clone().into_bytes();
            bytes(&mut changed, random);
            changed
        }
    }
}

fn resource(source: &Source<'_>, random: &mut Random) -> Request {
    let mut request = source.good.fetch();
    match random.below(8) {
        0..4 => {
            let token = [b"Bearer ".to_vec(), token(source, random)].concat();
            request.headers[0].1 = token;
        }
        4 => {
            let token = [b"kbs-session-id=t.".to_vec(), token(source, random)].concat();
            request.headers = vec![("cookie", token)];
        }
        5 => {
            let mut query = b"?a=b&version=1&method=GET&c=%41".to_vec();
            bytes(&mut query, random);
            request.target.extend(query);
        }
        6 => request.method = random.one_of(METHODS).into(),
        _ => bytes(&mut request.target, random),
    }
    request
}

fn admin(source: &Source<'_>, random: &mut Random) -> Request {
    let rego = "package policy\n\ndefault allow := true\n";
    let policy = json!({"type": "rego", "policy": BASE64_URL_SAFE_NO_PAD.encode(rego)});
    let values = BASE64_STANDARD.encode(r#"{"measurement":["00"]}"#);
    let reference = json!({"version": "0.1.0", "type": "sample", "payload": values});
    let corim = json!({"version": "0.1.0", "type": "corim", "payload": "2QH1oQBBAA==",
                       "accept_unsigned": true});
    let (path, mut body) = match random.below(5) {
        0 => ("resource-policy", policy),
        1 => ("reference-value", reference),
        2 => ("reference-value", corim),
        3 => ("resource/hostile/key/one", json!("another secret")),
        _ => (random.one_of(OWNERS), Value::Null),
    };
    let other = body.clone();
    structure(&mut body, &other, random);
    let method = match random.below(4) {
        0 => "DELETE",
        // A guest may read a resource; here nobody does.
        1 if !path.starts_with("resource/") => "GET",
        _ => "POST",
    };
    let mut request =
        Request::new(method, &format!("{PREFIX}/{path}")).body(serde_json::to_vec(&body).unwrap());
    let bearer = match random.below(5) {
        0 => return request,
        1 => source.stranger.as_bytes().to_vec(),
        2 => source.good.token.as_bytes().to_vec(),
        _ => {
            let mut changed = source.admin.as_bytes().to_vec();
            bytes(&mut changed, random);
            if near(&changed, source.admin) {
                changed.clear();
            }
            changed
        }
    };
    request = request.with("authorization", [b"Bearer ".to_vec(), bearer].concat());
    request
}

/// Whether it may be read as the token itself: blanks around it and ends of lines do not count.
fn near(changed: &[u8], token: &str) -> bool {
    let kept = changed.iter().filter(|byte| !b"\r\n\t ".contains(byte));
    kept.copied().eq(token.bytes())
}

fn auth(source: &Source<'_>, random: &mut Random) -> Request {
    let mut value = json!({
        "version": "0.4.0",
        "tee": source.good.kind.name(),
        "extra-params": {
            "supported-hash-algorithms": ["sha384", "sha512"],
            "attestation_policy_selector": "default",
        },
    });
    let other = value.clone();
    for _ in 0..=random.below(2) {
        structure(&mut value, &other, random);
    }
    let mut body = serde_json::to_vec(&value).unwrap();
    if random.below(2) == 0 {
        bytes(&mut body, random);
    }
    if random.below(50) == 0 {
        // Beyond the cap of this endpoint.
        body.resize(64 * 1024, b' ');
    }
    Request::new("POST", &format!("{PREFIX}/auth")).body(body)
}

fn nobody(random: &mut Random) -> Request {
    let target = match random.below(4) {
        0 => random.one_of(PUBLIC).to_owned(),
        1 => format!("{PREFIX}/resource/{RESOURCE}"),
        2 => format!("{PREFIX}/{}", random.one_of(OWNERS)),
        _ => format!("{PREFIX}/{}/{}/a", random.one_of(ODD), random.one_of(ODD)),
    };
    let mut request = Request::new(random.one_of(METHODS), &target);
    match random.below(4) {
        0 => bytes(&mut request.target, random),
        1 => bytes(&mut request.method, random),
        2 => {
            let mut value = random.one_of(ODD).as_bytes().to_vec();
            bytes(&mut value, random);
            request = request.with("x-forwarded-for", value);
        }
        _ => request.body = vec![b'['; 1 + random.below(4096)],
    }
    request
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
fn structure(value: &mut Value, other: &Value, random: &mut Random) {
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
