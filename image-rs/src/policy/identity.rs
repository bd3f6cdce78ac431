//! `signedIdentity`: whether the name in a signature is the name that was asked for.
//!
//! The name that was asked for is the owner's, never the mirror's that served it. A signature says its name in
//! `docker-reference`; a sigstore bundle says none, and fits only `matchDigest`, a rule of ours: the signature is for
//! these very bytes, in whatever repository they stand.

use super::wire::WireIdentity;
use crate::digest::Digest;
use crate::reference::Reference;

/// A rule over the name in a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The same tag or digest of the same repository.
    Exact,
    /// As [`Identity::Exact`]; for an image pinned by digest, the same repository. What counts when nothing is said.
    RepositoryDigestOrExact,
    /// The same repository.
    Repository,
    /// This reference, whatever was asked for.
    ExactReference(Named),
    /// This repository, whatever was asked for.
    ExactRepository(String),
    /// As [`Identity::RepositoryDigestOrExact`], after a prefix was replaced: for a repository that is a copy.
    Remap { prefix: String, signed: String },
    /// Only the digest counts.
    Digest,
}

/// A name as the signer wrote it, which may lack both tag and digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Named {
    fn parse(text: &str) -> Option<Self> {
        let reference: Reference = text.parse().ok()?;
        let last = text.rsplit('/').next().unwrap_or(text);
        // `latest` is what the reader adds, and not what was signed.
        let bare = !last.contains(':') && !last.contains('@');
        Some(Self {
            name: reference.name(),
            tag: reference.tag().filter(|_| !bare).map(str::to_owned),
            digest: reference.digest().cloned(),
        })
    }

    /// What is asked for: a digest, where there is one, wins over the tag.
    fn asked(image: &Reference) -> Self {
        let digest = image.digest().cloned();
        let tag = image.tag().filter(|_| digest.is_none());
        Self {
            name: image.name(),
            tag: tag.map(str::to_owned),
            digest,
        }
    }

    fn is_bare(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }
}

impl Identity {
    pub(super) fn new(wire: Option<WireIdentity>) -> Result<Self, String> {
        let Some(wire) = wire else {
            return Ok(Self::RepositoryDigestOrExact);
        };
        Ok(match wire {
            WireIdentity::MatchExact {} => Self::Exact,
            WireIdentity::MatchRepoDigestOrExact {} => Self::RepositoryDigestOrExact,
            WireIdentity::MatchRepository {} => Self::Repository,
            WireIdentity::MatchDigest {} => Self::Digest,
            WireIdentity::ExactReference { docker_reference } => {
                match Named::parse(&docker_reference) {
                    Some(named) if !named.is_bare() => Self::ExactReference(named),
                    _ => {
                        return Err(format!(
                            "dockerReference {docker_reference:?} is not a name with a tag or a digest"
                        ));
                    }
                }
            }
            WireIdentity::ExactRepository { docker_repository } => {
                match Named::parse(&docker_repository) {
                    Some(named) => Self::ExactRepository(named.name),
                    None => {
                        return Err(format!(
                            "dockerRepository {docker_repository:?} is not a repository"
                        ));
                    }
                }
            }
            WireIdentity::RemapIdentity {
                prefix,
                signed_prefix,
            } => {
                check_prefix(&prefix)?;
                check_prefix(&signed_prefix)?;
                Self::Remap {
                    prefix,
                    signed: signed_prefix,
                }
            }
        })
    }

    /// Whether a signature for `signed` counts for `image`.
    pub(crate) fn admits(&self, image: &Reference, signed: &str) -> bool {
        let Some(signed) = Named::parse(signed) else {
            return *self == Self::Digest;
        };
        let asked = Named::asked(image);
        match self {
            Self::Digest => true,
            Self::Exact => !signed.is_bare() && signed == asked,
            Self::RepositoryDigestOrExact => digest_or_exact(&asked, &signed),
            Self::Repository => signed.name == asked.name,
            Self::ExactReference(wanted) => !signed.is_bare() && signed == *wanted,
            Self::ExactRepository(wanted) => signed.name == *wanted,
            Self::Remap { prefix, signed: to } => {
                remapped(asked, prefix, to).is_some_and(|asked| digest_or_exact(&asked, &signed))
            }
        }
    }

    /// Whether `signed` is a bare repository, as cosign signs it, and the rule asks for a tag or a digest.
    pub(crate) fn misses_tag(&self, signed: &str) -> bool {
        let asks = match self {
            Self::Exact
            | Self::RepositoryDigestOrExact
            | Self::ExactReference(_)
            | Self::Remap { .. } => true,
            Self::Repository | Self::ExactRepository(_) | Self::Digest => false,
        };
        asks && Named::parse(signed).is_some_and(|named| named.is_bare())
    }

    /// The rule's name, for an error.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Exact => "matchExact",
            Self::RepositoryDigestOrExact => "matchRepoDigestOrExact",
            Self::Repository => "matchRepository",
            Self::ExactReference(_) => "exactReference",
            Self::ExactRepository(_) => "exactRepository",
            Self::Remap { .. } => "remapIdentity",
            Self::Digest => "matchDigest",
        }
    }
}

fn digest_or_exact(asked: &Named, signed: &Named) -> bool {
    if signed.is_bare() {
        return false;
    }
    match asked.digest {
        // That it is the same digest is checked where digests are.
        Some(_) => signed.name == asked.name,
        None => signed == asked,
    }
}

/// `asked` with the prefix replaced, if whole parts of its name are that prefix; else as it is.
fn remapped(asked: Named, prefix: &str, to: &str) -> Option<Named> {
    let rest = match asked.name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => return Some(asked),
    };
    let name = format!("{to}{rest}");
    // A name that is not whole any more would be made whole in a way that nobody wrote.
    let whole = Named::parse(&name)?.name == name;
    whole.then_some(Named { name, ..asked })
}

fn check_prefix(prefix: &str) -> Result<(), String> {
    let bad = || format!("{prefix:?} is not a prefix of names: host[:port][/namespace]");
    let name = match prefix.contains('/') {
        true => prefix.to_owned(),
        // A host alone: a repository makes it a name.
        false => format!("{prefix}/x"),
    };
    let whole = name.parse::<Reference>().is_ok_and(|it| it.name() == name);
    if whole { Ok(()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(json: &str) -> Identity {
        Identity::new(Some(serde_json::from_str(json).unwrap())).unwrap()
    }

    fn admits(rule: &Identity, image: &str, signed: &str) -> bool {
        rule.admits(&image.parse().unwrap(), signed)
    }

    #[test]
    fn each_rule_admits_what_it_says_and_nothing_else() {
        let digest = Digest::of(b"");
        let pinned = &format!("quay.io/a/b@{digest}");
        let both = &format!("quay.io/a/b:v1@{digest}");
        let exact = rule(r#"{"type":"matchExact"}"#);
        assert!(admits(&exact, "quay.io/a/b:v1", "quay.io/a/b:v1"));
        assert!(admits(
            &exact,
            "busybox",
            "docker.io/library/busybox:latest"
        ));
        assert!(!admits(&exact, "quay.io/a/b:v1", "quay.io/a/b:v2"));
        assert!(
            !admits(&exact, "quay.io/a/b", "quay.io/a/b"),
            "a bare name is not exact"
        );
        assert!(!admits(&exact, pinned, "quay.io/a/b:v1"));
        assert!(admits(&exact, both, pinned));

        let usual = Identity::new(None).unwrap();
        assert!(admits(&usual, "quay.io/a/b:v1", "quay.io/a/b:v1"));
        assert!(admits(&usual, pinned, "quay.io/a/b:v7"));
        assert!(admits(&usual, both, "quay.io/a/b:v7"));
        assert!(!admits(&usual, pinned, "quay.io/a/b"));
        assert!(!admits(&usual, pinned, "quay.io/a/c:v1"));
        assert!(!admits(&usual, "quay.io/a/b:v1", "quay.io/a/b:v2"));

        let repository = rule(r#"{"type":"matchRepository"}"#);
        assert!(admits(&repository, "quay.io/a/b:v1", "quay.io/a/b"));
        assert!(!admits(&repository, "quay.io/a/b:v1", "quay.io/a/bb"));
        assert!(!admits(&repository, "quay.io/a/b:v1", "no name at all"));

        let reference = rule(r#"{"type":"exactReference","dockerReference":"quay.io/x/y:v1"}"#);
        assert!(admits(&reference, "mirror.example/z", "quay.io/x/y:v1"));
        assert!(!admits(&reference, "quay.io/x/y:v2", "quay.io/x/y:v2"));
        let repository = rule(r#"{"type":"exactRepository","dockerRepository":"quay.io/x/y"}"#);
        assert!(admits(&repository, "mirror.example/z", "quay.io/x/y:v9"));
        assert!(!admits(&repository, "mirror.example/z", "quay.io/x/yy"));
        assert!(admits(&rule(r#"{"type":"matchDigest"}"#), pinned, ""));
    }

    #[test]
    fn a_copy_is_judged_by_the_name_of_its_origin() {
        let remap =
            rule(r#"{"type":"remapIdentity","prefix":"copy.example/q","signedPrefix":"quay.io"}"#);
        assert!(admits(&remap, "copy.example/q/a/b:v1", "quay.io/a/b:v1"));
        assert!(!admits(
            &remap,
            "copy.example/q/a/b:v1",
            "copy.example/q/a/b:v1"
        ));
        assert!(!admits(&remap, "copy.example/qq/a:v1", "quay.io/a:v1"));
        assert!(admits(&remap, "other.example/a:v1", "other.example/a:v1"));
    }

    #[test]
    fn a_rule_that_names_nothing_is_refused() {
        for bad in [
            r#"{"type":"exactReference","dockerReference":"quay.io/x/y"}"#,
            r#"{"type":"exactRepository","dockerRepository":"UPPER/x y"}"#,
            r#"{"type":"remapIdentity","prefix":"quay.io/a:v1","signedPrefix":"quay.io"}"#,
            r#"{"type":"remapIdentity","prefix":"quay.io","signedPrefix":"short"}"#,
        ] {
            let wire = serde_json::from_str(bad).unwrap();
            assert!(Identity::new(Some(wire)).is_err(), "{bad}");
        }
    }
}
