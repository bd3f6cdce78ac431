//! `WWW-Authenticate` (RFC 9110, 11.6.1): several challenges in one value or in many, with commas between and within.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Challenges of one answer that are looked at.
const CHALLENGES_MAX: usize = 16;
/// Parameters of one challenge that are looked at.
const PARAMETERS_MAX: usize = 16;

/// What a registry wants before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// Every challenge of an answer that we can speak to.
    pub(in crate::registry) fn all(headers: &HeaderMap) -> Vec<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        let challenges = texts.flat_map(read).take(CHALLENGES_MAX);
        challenges.filter_map(|spoken| spoken.known()).collect()
    }
}

/// One challenge of whatever scheme.
struct Spoken {
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Spoken {
    /// The scope is not read: what we ask for is what we do, whatever the registry would have us ask for.
    fn known(mut self) -> Option<Challenge> {
        match self.scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer {
                realm: self.parameters.remove("realm")?,
                service: self.parameters.remove("service"),
            }),
            _ => None,
        }
    }
}

/// A word before `=` is a parameter of the challenge at hand; any other word begins a challenge.
fn read(text: &str) -> Vec<Spoken> {
    let mut out: Vec<Spoken> = Vec::new();
    let mut rest = text.trim_start_matches(SEPARATORS);
    while !rest.is_empty() && out.len() <= CHALLENGES_MAX {
        let end = rest
            .find(|letter: char| SEPARATORS.contains(&letter) || matches!(letter, '=' | '"'))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            Some(after) => {
                let (value, after) = value(after.trim_start_matches([' ', '\t']));
                if let Some(challenge) = out.last_mut()
                    && challenge.parameters.len() < PARAMETERS_MAX
                {
                    let name = word.to_ascii_lowercase();
                    challenge.parameters.entry(name).or_insert(value);
                }
                rest = after;
            }
            None if word.is_empty() => {
                let mut letters = rest.chars();
                letters.next();
                rest = letters.as_str();
            }
            None => {
                out.push(Spoken {
                    scheme: word.to_ascii_lowercase(),
                    parameters: BTreeMap::new(),
                });
                rest = after;
            }
        }
        rest = rest.trim_start_matches(SEPARATORS);
    }
    out
}

const SEPARATORS: [char; 3] = [',', ' ', '\t'];

/// A value, quoted or not, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(SEPARATORS).unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        return (value.to_owned(), after);
    };
    let mut out = String::new();
    let mut letters = quoted.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => out.extend(letters.next()),
            letter => out.push(letter),
        }
    }
    (out, letters.as_str())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn all(values: &[&'static str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::all(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        }
    }

    #[test]
    fn one_value_may_have_several_challenges_with_commas_within() {
        let docker = r#"Bearer realm="https://auth.test/token",service="r.test",scope="repository:a/b:pull,push""#;
        let one = bearer("https://auth.test/token", Some("r.test"));
        assert_eq!(all(&[docker]), std::slice::from_ref(&one));
        let many = r#"Negotiate, Basic realm="a, b=\"c\"", Digest qop="auth,auth-int",nonce=abc== , bearer service=x , realm="https://t.test/?a=b,c""#;
        let second = bearer("https://t.test/?a=b,c", Some("x"));
        assert_eq!(all(&[many]), [Challenge::Basic, second]);
        assert_eq!(all(&["Basic", docker]), [Challenge::Basic, one]);
        assert_eq!(all(&["BASIC realm=x"]), [Challenge::Basic]);
    }

    #[test]
    fn what_is_broken_or_endless_is_passed_over() {
        for text in [
            "",
            ",,,",
            "=",
            "\"",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm",
            "realm=\"x\"",
            "Negotiate YWJj==",
            "\\\"=\"\\",
        ] {
            assert_eq!(all(&[text]), [], "{text}");
        }
        assert_eq!(
            all(&["Bearer realm=\"https://t.test"]),
            [bearer("https://t.test", None)]
        );
        let many = "Basic a=b, ".repeat(1000);
        let value = HeaderValue::from_str(&many).unwrap();
        let headers = [(WWW_AUTHENTICATE, value)].into_iter().collect();
        assert_eq!(Challenge::all(&headers).len(), CHALLENGES_MAX);
    }
}
