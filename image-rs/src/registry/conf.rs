//! Reads containers-registries.conf(5), version 2.
//!
//! A key that nobody has is refused, with the key that was probably meant. The keys about short names are read and have
//! no effect: every name is whole before it comes here.

use serde::Deserialize;

use super::rules::{Mirror, PullFromMirror, Rule, Rules, RulesError, Security};

/// Cap on the document, in bytes.
const CONF_BYTES_MAX: usize = 1024 * 1024;
/// More edits than this are another word, not a misspelt one.
const EDITS_MAX: usize = 3;
/// The one helper that is no program: the credentials that this client is given.
const AUTH_FILE_HELPER: &str = "containers-auth.json";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<Table>,
    #[serde(default)]
    credential_helpers: Vec<String>,
    #[expect(dead_code, reason = "named so that other keys are refused")]
    unqualified_search_registries: Option<Vec<String>>,
    #[expect(dead_code, reason = "named so that other keys are refused")]
    short_name_mode: Option<String>,
    #[expect(dead_code, reason = "named so that other keys are refused")]
    aliases: Option<toml::Table>,
    #[expect(dead_code, reason = "named so that other keys are refused")]
    additional_layer_store_auth_helper: Option<String>,
    /// Version 1.
    registries: Option<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MirrorTable {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: Pull,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum Pull {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

impl Rules {
    /// Reads a registries.conf.
    ///
    /// # Errors
    /// See [`RulesError`].
    pub fn from_toml(text: &str) -> Result<Self, RulesError> {
        if text.len() > CONF_BYTES_MAX {
            return Err(RulesError::Toml {
                line: None,
                cause: format!("it has more than {CONF_BYTES_MAX} bytes"),
            });
        }
        let file: File = toml::from_str(text).map_err(|error| of_toml(text, &error))?;
        if file.registries.is_some() {
            return Err(RulesError::Unsupported {
                key: "registries",
                fix: "this is version 1 of the format: write a [[registry]] table for each registry",
            });
        }
        if file
            .credential_helpers
            .iter()
            .any(|name| name != AUTH_FILE_HELPER)
        {
            return Err(RulesError::Unsupported {
                key: "credential-helpers",
                fix: "helpers are programs and none is run here: write [\"containers-auth.json\"] and give an auth.json",
            });
        }
        Self::new(file.registry.into_iter().map(Rule::from).collect())
    }
}

impl From<Table> for Rule {
    fn from(table: Table) -> Self {
        let location = (!table.location.is_empty()).then_some(table.location);
        let prefix = if table.prefix.is_empty() {
            location.clone().unwrap_or_default()
        } else {
            table.prefix
        };
        Self {
            location: location.filter(|location| *location != prefix),
            prefix,
            security: security(table.insecure),
            blocked: table.blocked,
            mirror_by_digest_only: table.mirror_by_digest_only,
            mirrors: table.mirror.into_iter().map(Mirror::from).collect(),
        }
    }
}

impl From<MirrorTable> for Mirror {
    fn from(table: MirrorTable) -> Self {
        Self {
            location: table.location,
            security: security(table.insecure),
            pull: match table.pull_from_mirror {
                Pull::All => PullFromMirror::All,
                Pull::DigestOnly => PullFromMirror::DigestOnly,
                Pull::TagOnly => PullFromMirror::TagOnly,
            },
        }
    }
}

fn security(insecure: bool) -> Security {
    if insecure {
        Security::Insecure
    } else {
        Security::Verified
    }
}

fn of_toml(text: &str, error: &toml::de::Error) -> RulesError {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| before.matches('\n').count() + 1);
    let message = error.message();
    let cause = match suggestion(message) {
        Some(meant) => format!("{message}; did you mean `{meant}`?"),
        None => message.to_owned(),
    };
    RulesError::Toml { line, cause }
}

/// From what serde says of a word that it does not know, "unknown field `a`, expected one of `b`, `c`": the nearest of
/// the words that it does know, if it is near.
pub(super) fn suggestion(message: &str) -> Option<String> {
    let (unknown, known) = message.split_once(", expected ")?;
    if !unknown.starts_with("unknown ") {
        return None;
    }
    let word = quoted(unknown).next()?;
    nearest(word, quoted(known)).map(str::to_owned)
}

/// The candidate that a misspelt word was meant to be.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let (edits, best) = candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min_by_key(|(edits, _)| *edits)?;
    (edits <= EDITS_MAX && edits < word.len()).then_some(best)
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::super::rules::Need;
    use super::*;

    #[test]
    fn the_manuals_own_example_leads_where_the_manual_says() {
        let rules = Rules::from_toml(
            r#"
            unqualified-search-registries = ["example.com"]
            short-name-mode = "enforcing"
            credential-helpers = ["containers-auth.json"]
            [aliases]
            "fedora" = "registry.test/fedora"
            [[registry]]
            prefix = "example.com/foo"
            insecure = false
            blocked = false
            location = "internal.test/bar"
            [[registry.mirror]]
            location = "mirror-0.test/mirror-for-foo"
            [[registry.mirror]]
            location = "mirror-1.test/mirrors/foo"
            insecure = true
            pull-from-mirror = ""
            [[registry]]
            location = "registry.test"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "mirror.registry.test"
            "#,
        )
        .unwrap();
        let sites = |image: &str| {
            rules
                .sites(&image.parse().unwrap(), Need::Manifest)
                .unwrap()
        };
        let found: Vec<_> = sites("example.com/foo/image:latest")
            .iter()
            .map(|site| (site.image.to_string(), site.security))
            .collect();
        let expected = [
            (
                "mirror-0.test/mirror-for-foo/image:latest",
                Security::Verified,
            ),
            ("mirror-1.test/mirrors/foo/image:latest", Security::Insecure),
            ("internal.test/bar/image:latest", Security::Verified),
        ];
        assert_eq!(found, expected.map(|(name, how)| (name.to_owned(), how)));
        assert_eq!(sites("registry.test/image:latest").len(), 1);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_one_that_was_meant() {
        let cases = [
            (
                "[[registry]]\nlocatoin = \"a.test\"",
                "line 2",
                "did you mean `location`?",
            ),
            (
                "[[registry]]\nlocation = \"a.test\"\nblock = true",
                "line 3",
                "did you mean `blocked`?",
            ),
            ("[[registries]]", "line 1", "invalid type"),
            (
                "[[registry]]\nlocation = \"a.test\"\n[[registry.mirror]]\nlocation = \"b.test\"\n\
                 pull-from-mirror = \"digest\"",
                "line 5",
                "`digest-only`",
            ),
            (
                "[[registry]]\nlocation = \"a.test\"\n[[registry.mirrors]]",
                "line 3",
                "`mirror`?",
            ),
        ];
        for (text, line, cause) in cases {
            let error = Rules::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_done_here_is_named() {
        let old = "[registries.search]\nregistries = [\"a.test\"]";
        let error = Rules::from_toml(old).unwrap_err().to_string();
        assert!(error.contains("[[registry]]"), "{error}");
        let error = Rules::from_toml("credential-helpers = [\"secretservice\"]").unwrap_err();
        assert!(error.to_string().contains("auth.json"), "{error}");
        let error = Rules::from_toml("[[registry]]\nblocked = true").unwrap_err();
        assert!(matches!(error, RulesError::Place { .. }), "{error}");
        let error = Rules::from_toml(&" ".repeat(CONF_BYTES_MAX + 1)).unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
    }
}
