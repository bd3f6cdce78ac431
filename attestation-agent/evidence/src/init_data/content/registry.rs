//! Rules for registries, as CoCo lays them out.

use serde::Deserialize;

use super::{ContentError, Mirror, PullFromMirror, REGISTRY_RULES, Registries, RegistryRule, wire};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    #[serde(default, rename = "unqualified-search-registries")]
    unqualified_search_registries: Vec<String>,
    #[serde(default)]
    registry: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default, rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorEntry {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default, rename = "pull-from-mirror")]
    pull: PullFromMirror,
}

pub(super) fn parse(file: &'static str, text: &str) -> Result<Registries, ContentError> {
    check(file, wire::read(file, text)?)
}

pub(super) fn check(file: &'static str, config: Config) -> Result<Registries, ContentError> {
    const KEY: &str = "registry";
    let mirrors: usize = config.registry.iter().map(|entry| entry.mirror.len()).sum();
    let found = config.registry.len().max(mirrors);
    if found > REGISTRY_RULES {
        return Err(ContentError::TooMany {
            file,
            key: KEY,
            found,
            cap: REGISTRY_RULES,
        });
    }
    let rules = config.registry.into_iter().map(|entry| rule(file, entry));
    Ok(Registries {
        unqualified_search: config.unqualified_search_registries,
        rules: rules.collect::<Result<_, _>>()?,
    })
}

fn rule(file: &'static str, entry: Entry) -> Result<RegistryRule, ContentError> {
    let location = entry.location.filter(|text| !text.is_empty());
    let prefix = entry.prefix.filter(|text| !text.is_empty());
    let refuse = |value: &str, fix| ContentError::Value {
        file,
        key: "registry.prefix",
        value: crate::shown(value),
        fix,
    };
    let Some(named) = prefix.clone().or_else(|| location.clone()) else {
        return Err(refuse("", "write a prefix or a location"));
    };
    if named.starts_with("*.") && location.is_none() && !entry.blocked {
        return Err(refuse(&named, "a wildcard needs a location"));
    }
    if entry.mirror.iter().any(|mirror| mirror.location.is_empty()) {
        return Err(refuse(&named, "each mirror needs a location"));
    }
    Ok(RegistryRule {
        location,
        prefix: named,
        insecure: entry.insecure,
        blocked: entry.blocked,
        mirror_by_digest_only: entry.mirror_by_digest_only,
        mirrors: entry.mirror.into_iter().map(Mirror::from).collect(),
    })
}

impl From<MirrorEntry> for Mirror {
    fn from(entry: MirrorEntry) -> Self {
        Self {
            location: entry.location,
            insecure: entry.insecure,
            pull: entry.pull,
        }
    }
}
