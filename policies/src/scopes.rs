//! Which policy is asked: the one attached to the most specific scope. A path prefix of a resource
//! is a scope of a release policy, a class of evidence and a name one of an appraisal policy. Where
//! nothing is attached there is no answer, which the caller takes as a refusal.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// Segments of a prefix: repository, type, tag.
const SEGMENTS: usize = 3;
/// Characters of a segment, and of a policy's name.
const SEGMENT_CHARS: usize = 128;
/// Scopes that one set holds.
const SCOPES: usize = 10_000;
/// The name that is meant where a guest names none; Trustee's.
const DEFAULT_NAME: &str = "default";
/// The class of evidence that every guest has.
const CPU: &str = "cpu";
/// The classes of evidence; Trustee's.
pub const CLASSES: [&str; 6] = [CPU, "gpu", "switch", "ppcie", "dcu", "nvidia-dpu"];

/// A path prefix of whole segments; the empty one, which is the default, holds for every path.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Vec<String>);

/// The name under which an appraisal policy is selected: `<name>_<class>`, as Trustee builds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(String);

/// A scope that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// A prefix with too many segments.
    #[error(
        "`{prefix}` has more than {SEGMENTS} segments: a scope is repository/type/tag or a beginning of it"
    )]
    Deep {
        /// The prefix, shortened.
        prefix: String,
    },
    /// A segment or name that no resource or policy has.
    #[error(
        "`{segment}` is not a segment: use 1 to {SEGMENT_CHARS} of a-z A-Z 0-9 _ - . and no leading dot"
    )]
    Segment {
        /// The segment, shortened.
        segment: String,
    },
    /// A policy's id without a class of evidence behind its name.
    #[error(
        "`{id}` names no class of evidence: write <name>_<class>, such as default_cpu, with one of {}",
        CLASSES.join(", ")
    )]
    Class {
        /// The id, shortened.
        id: String,
    },
    /// Too many scopes.
    #[error("more than {SCOPES} scopes: detach one first")]
    Full,
}

impl FromStr for Prefix {
    type Err = ScopeError;

    /// `repo`, `repo/type` or `repo/type/tag`; the empty text holds for every path.
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        if text.split('/').count() > SEGMENTS {
            return Err(ScopeError::Deep {
                prefix: shorten(text),
            });
        }
        text.split('/')
            .map(segment)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

impl Selector {
    /// The policy for a class of evidence (`cpu`, `gpu`, ...), by the name that the guest sent as
    /// `attestation_policy_selector` or the default one.
    ///
    /// # Errors
    /// When the name or the class has other characters than a policy's id.
    pub fn new(name: Option<&str>, class: &str) -> Result<Self, ScopeError> {
        let name = segment(name.unwrap_or(DEFAULT_NAME))?;
        Ok(Self(format!("{name}_{}", segment(class)?)))
    }

    /// Whether it is what a guest gets that names no policy, for any class of evidence.
    #[must_use]
    pub fn is_default(&self) -> bool {
        let class = self.0.strip_prefix(DEFAULT_NAME);
        let class = class.and_then(|rest| rest.strip_prefix('_'));
        class.is_some_and(|class| CLASSES.contains(&class))
    }

    /// The id, like `default_cpu`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Selector {
    /// What a guest is appraised by that names no policy: `default_cpu`.
    fn default() -> Self {
        Self(format!("{DEFAULT_NAME}_{CPU}"))
    }
}

impl FromStr for Selector {
    type Err = ScopeError;

    /// An id, as [`Selector::as_str`] gives it.
    fn from_str(id: &str) -> Result<Self, ScopeError> {
        match id.rsplit_once('_') {
            Some((name, class)) if CLASSES.contains(&class) => Self::new(Some(name), class),
            _ => Err(ScopeError::Class { id: shorten(id) }),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is attached to path prefixes.
#[derive(Debug, Clone)]
pub struct Scopes<T>(BTreeMap<Prefix, T>);

impl<T> Default for Scopes<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Scopes<T> {
    /// Attaches, and gives back what was there.
    ///
    /// # Errors
    /// When there are too many scopes.
    pub fn attach(&mut self, prefix: Prefix, value: T) -> Result<Option<T>, ScopeError> {
        if self.0.len() >= SCOPES && !self.0.contains_key(&prefix) {
            return Err(ScopeError::Full);
        }
        Ok(self.0.insert(prefix, value))
    }

    /// Detaches, so that the next wider scope decides.
    pub fn detach(&mut self, prefix: &Prefix) -> Option<T> {
        self.0.remove(prefix)
    }

    /// The most specific scope of a path, `None` where nothing is attached: the caller refuses.
    #[must_use]
    pub fn of(&self, path: &[&str]) -> Option<(&Prefix, &T)> {
        let longest = path.len().min(SEGMENTS);
        let mut prefix = Prefix(
            path[..longest]
                .iter()
                .map(|&part| part.to_owned())
                .collect(),
        );
        loop {
            if let Some(found) = self.0.get_key_value(&prefix) {
                return Some(found);
            }
            prefix.0.pop()?;
        }
    }

    /// All, in the order of their prefixes.
    pub fn iter(&self) -> impl Iterator<Item = (&Prefix, &T)> {
        self.0.iter()
    }
}

/// What is attached to selectors. A name that is not there is no reason to take another policy.
#[derive(Debug, Clone)]
pub struct Selection<T>(BTreeMap<Selector, T>);

impl<T> Default for Selection<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Selection<T> {
    /// Attaches, and gives back what was there.
    ///
    /// # Errors
    /// When there are too many.
    pub fn attach(&mut self, selector: Selector, value: T) -> Result<Option<T>, ScopeError> {
        if self.0.len() >= SCOPES && !self.0.contains_key(&selector) {
            return Err(ScopeError::Full);
        }
        Ok(self.0.insert(selector, value))
    }

    /// Detaches.
    pub fn detach(&mut self, selector: &Selector) -> Option<T> {
        self.0.remove(selector)
    }

    /// The policy of exactly this selector, `None` where there is none: the caller refuses.
    #[must_use]
    pub fn of(&self, selector: &Selector) -> Option<&T> {
        self.0.get(selector)
    }

    /// All, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&Selector, &T)> {
        self.0.iter()
    }
}

fn segment(text: &str) -> Result<String, ScopeError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let right = (1..=SEGMENT_CHARS).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(allowed);
    if right {
        Ok(text.to_owned())
    } else {
        Err(ScopeError::Segment {
            segment: shorten(text),
        })
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(SEGMENT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(prefixes: &[&str]) -> Scopes<String> {
        let mut scopes = Scopes::default();
        for prefix in prefixes {
            let value = (*prefix).to_owned();
            scopes.attach(prefix.parse().unwrap(), value).unwrap();
        }
        scopes
    }

    #[test]
    fn the_most_specific_scope_decides() {
        let scopes = scopes(&["", "a", "a/key", "a/key/1"]);
        for (path, expected) in [
            (["a", "key", "1"], "a/key/1"),
            (["a", "key", "2"], "a/key"),
            (["a", "cert", "1"], "a"),
            (["b", "key", "1"], ""),
        ] {
            assert_eq!(scopes.of(&path).unwrap().1, expected);
        }
    }

    #[test]
    fn a_prefix_ends_at_a_segment_and_nothing_attached_is_no_answer() {
        let mut scopes = scopes(&["a/key"]);
        assert!(scopes.of(&["a", "keys", "1"]).is_none());
        assert!(scopes.of(&["a"]).is_none());
        assert!(scopes.of(&[]).is_none());
        let prefix = "a/key".parse().unwrap();
        assert!(scopes.detach(&prefix).is_some());
        assert!(scopes.of(&["a", "key", "1"]).is_none());
    }

    #[test]
    fn a_prefix_is_what_a_resource_path_can_begin_with() {
        for wrong in [
            "/", "a/", "/a", "a//b", "..", "a/../b", "a/b/c/d", "a b", ".a",
        ] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
        assert_eq!(
            "a/b-1/c.d".parse::<Prefix>().unwrap().to_string(),
            "a/b-1/c.d"
        );
    }

    #[test]
    fn a_selected_policy_is_that_one_or_none() {
        let mut selection = Selection::default();
        let default = Selector::new(None, "cpu").unwrap();
        assert_eq!(default.as_str(), "default_cpu");
        selection.attach(default.clone(), 1).unwrap();
        assert_eq!(selection.of(&default), Some(&1));
        let other = Selector::new(Some("strict"), "cpu").unwrap();
        assert_eq!(selection.of(&other), None);
        assert!(Selector::new(Some("../x"), "cpu").is_err());
        assert_eq!(Selector::default(), default);
        assert!(default.is_default() && !other.is_default());
        for id in ["default_cpu", "very_strict_gpu", "a_nvidia-dpu"] {
            assert_eq!(id.parse::<Selector>().unwrap().as_str(), id);
        }
        for id in [
            "default",
            "default_cpuu",
            "_cpu",
            "a/b_cpu",
            "resource-policy",
        ] {
            assert!(id.parse::<Selector>().is_err(), "{id}");
        }
    }
}
