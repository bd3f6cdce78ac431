//! Where an image may be had: the `[[registry]]` tables of containers-registries.conf(5) as checked values.
//!
//! A rule is chosen by the name that the owner wrote, and nothing of it changes that name: policy and errors speak of
//! it, whichever place serves the bytes. Mirrors are only read from; uploads go to the registry of the name.

use std::collections::BTreeSet;

use crate::reference::{Reference, ReferenceError, is_registry};

/// Cap on the rules of one configuration.
pub(super) const RULES_MAX: usize = 1024;
/// Cap on the mirrors of one rule.
const MIRRORS_MAX: usize = 64;

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// TLS, and a certificate that chains to the roots.
    #[default]
    Verified,
    /// TLS with any certificate or, where no TLS is spoken, plain HTTP: `insecure = true`.
    Insecure,
    /// Plain HTTP.
    PlainHttp,
}

/// What happens to images whose name begins with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// `host[:port][/path][:tag|@digest]`, or `*.host`.
    pub prefix: String,
    /// What takes the prefix's place at the registry itself; the prefix where absent.
    pub location: Option<String>,
    /// How the registry itself is spoken to.
    pub security: Security,
    /// Nothing is pulled.
    pub blocked: bool,
    /// No mirror is asked for a tag.
    pub mirror_by_digest_only: bool,
    /// Places to ask first, in this order.
    pub mirrors: Vec<Mirror>,
}

/// A place that has the same images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mirror {
    /// What takes the prefix's place: `host[:port][/path]`.
    pub location: String,
    /// How it is spoken to.
    pub security: Security,
    /// What it is asked for.
    pub pull: PullFromMirror,
}

/// What a mirror is asked for. Blobs and manifests by digest are the same wherever they come from; a tag may mean
/// another image at each place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullFromMirror {
    /// Everything; the default of registries.conf.
    #[default]
    All,
    /// What has a digest: also the layers of an image whose tag the registry itself resolved.
    DigestOnly,
    /// Images that are named by a tag.
    TagOnly,
}

/// What is about to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Manifest,
    Blob,
}

/// One place that may have what a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    /// The image's name there.
    pub(super) image: Reference,
    pub(super) security: Security,
    pub(super) is_mirror: bool,
    /// The mirror of the guest's own node, which knows no names.
    pub(super) is_node: bool,
}

/// Rules that contradict themselves or name no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// A cap.
    #[error("{what} has {found} entries: at most {cap}")]
    TooMany {
        /// Of what.
        what: String,
        /// How many there are.
        found: usize,
        /// How many may be.
        cap: usize,
    },
    /// A prefix or location.
    #[error(
        "the registry rule {rule:?} has the {key} {value:?}, which is no place for images: \
         write host.domain, host:port or localhost, and a path if need be"
    )]
    Place {
        /// The rule's prefix.
        rule: String,
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// Two rules for one prefix.
    #[error("there are two registry rules for {0:?}: keep one")]
    Twice(String),
    /// Two keys of which only one may be.
    #[error(
        "the registry rule {0:?} has mirror-by-digest-only and a mirror with pull-from-mirror: keep one of the two"
    )]
    Pull(String),
    /// The document.
    #[error("registries.conf{}: {cause}", place(*line))]
    Toml {
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// What is wrong, and perhaps what was meant.
        cause: String,
    },
    /// A key whose value asks for what cannot be done here.
    #[error("registries.conf: {key}: {fix}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What to write instead.
        fix: &'static str,
    },
}

fn place(line: Option<usize>) -> String {
    line.map_or(String::new(), |line| format!(", line {line}"))
}

/// A name that no place was found for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoSite {
    Blocked {
        prefix: String,
    },
    Name {
        location: String,
        source: ReferenceError,
    },
}

/// All rules. The one with the longest prefix that fits is the only one that counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Checks them.
    ///
    /// # Errors
    /// See [`RulesError`].
    pub fn new(mut rules: Vec<Rule>) -> Result<Self, RulesError> {
        within("the list of registry rules", rules.len(), RULES_MAX)?;
        let mut prefixes = BTreeSet::new();
        for rule in &mut rules {
            rule.normalise()?;
            if !prefixes.insert(rule.prefix.clone()) {
                return Err(RulesError::Twice(rule.prefix.clone()));
            }
        }
        Ok(Self(rules))
    }

    /// Registries that are spoken to with this security by some rule, as they are written.
    pub(super) fn hosts(&self, wanted: impl Fn(Security) -> bool) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        for rule in &self.0 {
            let place = rule.location.as_ref().unwrap_or(&rule.prefix);
            let mirrors = rule.mirrors.iter().map(|m| (&m.location, m.security));
            for (place, security) in mirrors.chain([(place, rule.security)]) {
                let host = place.split('/').next().unwrap_or_default();
                if wanted(security) && !host.starts_with('*') {
                    out.insert(host.to_owned());
                }
            }
        }
        out
    }

    /// The places for `image`, in the order in which they are asked; the registry itself is the last.
    pub(super) fn sites(&self, image: &Reference, need: Need) -> Result<Vec<Site>, NoSite> {
        let name = image.to_string();
        let Some((rule, matched)) = self.choose(image, &name) else {
            return Ok(vec![Site::direct(image.clone(), Security::Verified)]);
        };
        if rule.blocked {
            let prefix = rule.prefix.clone();
            return Err(NoSite::Blocked { prefix });
        }
        let rest = name.get(matched..).unwrap_or_default();
        let at = |location: &str| {
            let text = format!("{location}{rest}");
            text.parse().map_err(|source| NoSite::Name {
                location: location.to_owned(),
                source,
            })
        };
        let mut sites = Vec::with_capacity(rule.mirrors.len() + 1);
        for mirror in rule.mirrors.iter().filter(|m| m.serves(rule, image, need)) {
            sites.push(Site {
                is_mirror: true,
                ..Site::direct(at(&mirror.location)?, mirror.security)
            });
        }
        let origin = match &rule.location {
            Some(location) => at(location)?,
            None => image.clone(),
        };
        sites.push(Site::direct(origin, rule.security));
        Ok(sites)
    }

    /// How the registry of `image` itself is spoken to, where no rule sends its images elsewhere.
    pub(super) fn security(&self, image: &Reference) -> Security {
        match self.choose(image, &image.to_string()) {
            Some((rule, _)) if rule.location.is_none() => rule.security,
            _ => Security::Verified,
        }
    }

    /// The rule for an image, and how much of its name the rule's prefix stands for.
    fn choose(&self, image: &Reference, name: &str) -> Option<(&Rule, usize)> {
        let fits = self
            .0
            .iter()
            .filter_map(|rule| Some((rule, matched(&rule.prefix, image, name)?)));
        // A host by its name is closer than one by a wildcard, and a longer wildcard than a shorter one.
        fits.max_by_key(|(rule, matched)| {
            let is_named = !rule.prefix.starts_with('*');
            (*matched, is_named, rule.prefix.len())
        })
    }
}

impl Site {
    pub(super) fn direct(image: Reference, security: Security) -> Self {
        Self {
            image,
            security,
            is_mirror: false,
            is_node: false,
        }
    }

    /// The mirror of the node, on the way to `image`.
    pub(super) fn node(image: Reference) -> Self {
        Self {
            image,
            security: Security::PlainHttp,
            is_mirror: true,
            is_node: true,
        }
    }

    /// Whose health it shares.
    pub(super) fn host(&self) -> &str {
        if self.is_node {
            super::node::HOST
        } else {
            self.image.registry()
        }
    }

    /// What it is called where all places are listed.
    pub(super) fn title(&self) -> String {
        if self.is_node {
            return "the node's mirror".to_owned();
        }
        let kind = if self.is_mirror { "mirror" } else { "registry" };
        format!("{kind} {}", self.image.name())
    }
}

impl Mirror {
    fn serves(&self, rule: &Rule, image: &Reference, need: Need) -> bool {
        let is_pinned = image.digest().is_some();
        let by_digest = is_pinned || need == Need::Blob;
        match self.pull {
            PullFromMirror::All => by_digest || !rule.mirror_by_digest_only,
            PullFromMirror::DigestOnly => by_digest,
            PullFromMirror::TagOnly => !is_pinned,
        }
    }
}

impl Rule {
    /// Checks what is written, and writes hosts small.
    fn normalise(&mut self) -> Result<(), RulesError> {
        let rule = self.prefix.clone();
        within(
            &format!("the registry rule {rule:?}"),
            self.mirrors.len(),
            MIRRORS_MAX,
        )?;
        let bad = |key, value: &str| RulesError::Place {
            rule: rule.clone(),
            key,
            value: value.chars().take(300).collect(),
        };
        let whole = |key, value: &str| whole_place(value).ok_or_else(|| bad(key, value));
        self.prefix = match self.prefix.strip_prefix("*.") {
            Some(domain) if domain.contains(['/', ':', '*']) => return Err(bad("prefix", &rule)),
            Some(domain) => format!(
                "*.{}",
                whole("prefix", &format!("x.{domain}"))?.split_off(2)
            ),
            None => whole("prefix", &self.prefix)?,
        };
        if let Some(location) = &mut self.location {
            *location = whole("location", location)?;
        }
        for mirror in &mut self.mirrors {
            mirror.location = whole("mirror's location", &mirror.location)?;
            if self.mirror_by_digest_only && mirror.pull != PullFromMirror::All {
                return Err(RulesError::Pull(rule));
            }
        }
        Ok(())
    }
}

/// A place as it stands before the rest of a name; `None` for text that is no such thing. A first word that could be
/// a user of Docker Hub would be taken for one.
fn whole_place(text: &str) -> Option<String> {
    let (host, rest) = match text.split_once('/') {
        Some((host, rest)) => (host, Some(rest)),
        None => (text, None),
    };
    if !is_registry(host) {
        return None;
    }
    let whole = match rest {
        Some(_) => text.to_owned(),
        None => format!("{text}/x"),
    };
    whole.parse::<Reference>().ok()?;
    let host = host.to_ascii_lowercase();
    Some(rest.map_or(host.clone(), |rest| format!("{host}/{rest}")))
}

/// How many bytes of `name`, which is all of `image`'s, a prefix stands for; `None` where it does not fit.
fn matched(prefix: &str, image: &Reference, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix("*.") {
        let registry = image.registry();
        let host = registry.split(':').next().unwrap_or(registry);
        let below = host.strip_suffix(domain)?;
        return below.ends_with('.').then_some(registry.len());
    }
    let rest = name.strip_prefix(prefix)?;
    // Behind a host a colon begins a port, which makes it another registry.
    let has_path = prefix.contains('/');
    let fits =
        rest.is_empty() || rest.starts_with('/') || (has_path && rest.starts_with([':', '@']));
    fits.then_some(prefix.len())
}

fn within(what: &str, found: usize, cap: usize) -> Result<(), RulesError> {
    if found <= cap {
        return Ok(());
    }
    let what = what.to_owned();
    Err(RulesError::TooMany { what, found, cap })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn rules(list: Vec<Rule>) -> Rules {
        Rules::new(list).unwrap()
    }

    fn rule(prefix: &str, location: &str, mirrors: &[(&str, PullFromMirror)]) -> Rule {
        let mirror = |(location, pull): &(&str, PullFromMirror)| Mirror {
            location: (*location).to_owned(),
            security: Security::Verified,
            pull: *pull,
        };
        Rule {
            prefix: prefix.to_owned(),
            location: (!location.is_empty()).then(|| location.to_owned()),
            mirrors: mirrors.iter().map(mirror).collect(),
            ..Rule::default()
        }
    }

    fn places(rules: &Rules, image: &str, need: Need) -> Vec<String> {
        let image = image.parse().unwrap();
        let sites = rules.sites(&image, need).unwrap();
        sites.iter().map(|site| site.image.to_string()).collect()
    }

    #[test]
    fn the_longest_prefix_that_fits_counts_alone() {
        let rules = rules(vec![
            rule("r.test", "one.test", &[]),
            rule("r.test/a", "two.test/x", &[]),
            rule("*.wild.test", "three.test", &[]),
            rule("*.deep.wild.test", "", &[]),
            rule("named.wild.test", "four.test:5000/y", &[]),
            rule("r.test/t/one:v1", "five.test/t/one:v2", &[]),
        ]);
        for (image, there) in [
            ("r.test/b:v", "one.test/b:v"),
            ("R.test/b:v", "one.test/b:v"),
            ("r.test/a:v", "two.test/x:v"),
            ("r.test/a/b:v", "two.test/x/b:v"),
            ("r.test/ab:v", "one.test/ab:v"),
            ("r.test:5000/a:v", "r.test:5000/a:v"),
            ("notr.test/a:v", "notr.test/a:v"),
            ("x.y.wild.test/a:v", "three.test/a:v"),
            ("x.wild.test:81/a:v", "three.test/a:v"),
            ("wild.test/a:v", "wild.test/a:v"),
            ("x.deep.wild.test/a:v", "x.deep.wild.test/a:v"),
            ("named.wild.test/a:v", "four.test:5000/y/a:v"),
            ("r.test/t/one:v1", "five.test/t/one:v2"),
            ("r.test/t/one:v3", "one.test/t/one:v3"),
        ] {
            assert_eq!(places(&rules, image, Need::Manifest), [there], "{image}");
        }
    }

    #[test]
    fn mirrors_come_first_and_a_tag_goes_only_to_those_that_may_resolve_it() {
        let pinned = format!("r.test/a:v1@{}", Digest::of(b""));
        let list = [
            ("all.test/m", PullFromMirror::All),
            ("digest.test", PullFromMirror::DigestOnly),
            ("tag.test", PullFromMirror::TagOnly),
        ];
        let asked = |rules: &Rules, image: &str, need| {
            let places = places(rules, image, need);
            let first = |place: &String| place.split('.').next().unwrap_or_default().to_owned();
            places.iter().map(first).collect::<Vec<_>>().join(" ")
        };
        let free = rules(vec![rule("r.test", "", &list)]);
        assert_eq!(asked(&free, "r.test/a:v1", Need::Manifest), "all tag r");
        assert_eq!(asked(&free, &pinned, Need::Manifest), "all digest r");
        assert_eq!(asked(&free, "r.test/a:v1", Need::Blob), "all digest tag r");
        assert_eq!(asked(&free, &pinned, Need::Blob), "all digest r");
        let mut strict = rule("r.test", "o.test", &list[..1]);
        strict.mirror_by_digest_only = true;
        let strict = rules(vec![strict]);
        assert_eq!(asked(&strict, "r.test/a:v1", Need::Manifest), "o");
        assert_eq!(asked(&strict, &pinned, Need::Manifest), "all o");
        assert_eq!(asked(&strict, "r.test/a:v1", Need::Blob), "all o");
        let there = places(&strict, &pinned, Need::Manifest);
        assert_eq!(there[0], pinned.replace("r.test", "all.test/m"));
    }

    #[test]
    fn a_blocked_name_has_no_place() {
        let mut blocked = rule("r.test/bad", "", &[("m.test", PullFromMirror::All)]);
        blocked.blocked = true;
        let rules = rules(vec![blocked]);
        let sites = |image: &str| rules.sites(&image.parse().unwrap(), Need::Blob);
        let prefix = "r.test/bad".to_owned();
        assert_eq!(sites("r.test/bad/x"), Err(NoSite::Blocked { prefix }));
        assert!(sites("r.test/good").is_ok());
    }

    #[test]
    fn what_is_no_place_is_refused_before_it_is_needed() {
        for bad in [
            "",
            "registry",
            "r.test/",
            "r.test//a",
            "*.a.test/x",
            "*.",
            "a.*.test",
            "r.test/UP",
        ] {
            let error = Rules::new(vec![rule(bad, "", &[])]);
            assert!(matches!(error, Err(RulesError::Place { .. })), "{bad}");
        }
        // It would be the repository of a user of Docker Hub.
        let mirror = rule("r.test", "", &[("mirror/x", PullFromMirror::All)]);
        let error = Rules::new(vec![mirror]).unwrap_err().to_string();
        assert!(
            error.contains("\"mirror/x\"") && error.contains("host:port"),
            "{error}"
        );
        let twice = vec![rule("r.test", "", &[]), rule("R.test", "", &[])];
        assert!(matches!(Rules::new(twice), Err(RulesError::Twice(_))));
        let mut both = rule("r.test", "", &[("m.test", PullFromMirror::TagOnly)]);
        both.mirror_by_digest_only = true;
        assert!(matches!(Rules::new(vec![both]), Err(RulesError::Pull(_))));
        let many = vec![Rule::default(); RULES_MAX + 1];
        assert!(matches!(Rules::new(many), Err(RulesError::TooMany { .. })));
    }
}
