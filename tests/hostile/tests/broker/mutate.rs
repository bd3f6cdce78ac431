//! Mutations of honest requests, the same for a seed on every machine but for the keys and nonces
//! that each run makes anew.

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use kbs_protocol::PREFIX;
use serde_json::{Value, json};

use crate::change::{ODD, Random, bytes, structure};
use crate::guest::Guest;
use crate::http::Request;
use crate::served::RESOURCE;

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
