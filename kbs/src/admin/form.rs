//! What a token may not leave open, and what the library that checks its signature and its time passes
//! over: a header that asks for more than is understood here, and an audience that is no audience.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

/// How far the clock of whoever made a token may be from ours: `nbf` and `exp` are that much wider.
pub(super) const LEEWAY_SECONDS: u64 = 60;

/// Whether the header has `crit`: what it lists has to be understood (RFC 7515, section 4.1.11), and
/// nothing that may stand there is. A list that is empty, or no list, is not allowed to be there.
pub(super) fn is_critical(token: &str) -> bool {
    let head = token.split('.').next().unwrap_or_default();
    let header = BASE64_URL_SAFE_NO_PAD.decode(head).ok();
    let header = header.and_then(|text| serde_json::from_slice::<Map<String, Value>>(&text).ok());
    header.is_some_and(|header| header.contains_key("crit"))
}

/// Whom a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// It says nothing of it.
    Anybody,
    Us,
    Others,
    /// Neither a text nor a list of texts, which are all that `aud` may be (RFC 7519, section 4.1.3).
    Unreadable,
}

impl Audience {
    /// What `aud` says, where these are ours.
    pub(super) fn of(claims: &Value, ours: &BTreeSet<String>) -> Self {
        let named: Option<Vec<&str>> = match claims.get("aud") {
            None => return Self::Anybody,
            Some(Value::String(one)) => Some(vec![one]),
            Some(Value::Array(all)) if !all.is_empty() => all.iter().map(Value::as_str).collect(),
            Some(_) => None,
        };
        match named {
            None => Self::Unreadable,
            Some(named) if named.iter().any(|one| ours.contains(*one)) => Self::Us,
            Some(_) => Self::Others,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_header_with_crit_is_critical_whatever_is_in_it() {
        let token = |header: &Value| {
            let header = BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
            format!("{header}.e30.c2ln")
        };
        for crit in [
            json!(["b64"]),
            json!(["exp"]),
            json!([]),
            json!(null),
            json!("b64"),
        ] {
            assert!(
                is_critical(&token(&json!({"alg": "ES256", "crit": crit}))),
                "{crit}"
            );
        }
        assert!(!is_critical(&token(
            &json!({"alg": "ES256", "kid": "crit"})
        )));
        assert!(!is_critical("a.b.c") && !is_critical(""));
    }

    #[test]
    fn an_audience_is_a_text_or_a_list_of_texts() {
        let ours = BTreeSet::from(["kbs".to_owned()]);
        let of = |aud: Value| Audience::of(&json!({ "aud": aud }), &ours);
        assert_eq!(Audience::of(&json!({}), &ours), Audience::Anybody);
        for us in [json!("kbs"), json!(["other", "kbs"])] {
            assert_eq!(of(us), Audience::Us);
        }
        for others in [json!("KBS"), json!(""), json!(["other"])] {
            assert_eq!(of(others), Audience::Others);
        }
        for odd in [
            json!(["kbs", 1]),
            json!([["kbs"]]),
            json!({"kbs": true}),
            json!([]),
            json!(null),
            json!(7),
        ] {
            assert_eq!(of(odd.clone()), Audience::Unreadable, "{odd}");
        }
    }
}
