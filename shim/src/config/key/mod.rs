//! The keys of a configuration file, by table: what each takes, and what becomes of it.
//!
//! | | |
//! |---|---|
//! | honoured | it sets something of [`Config`] |
//! | moot | any value is taken: it is about a part that is not here, and takes nothing from whoever set it |
//! | only | taken where it asks for what is done anyway, and refused where leaving it out would be a lie or a danger |
//!
//! A pod's annotations are judged by the same rows. A key that has no row is an error.

mod agent;
mod hypervisor;
mod own;
mod runtime;
mod suggest;

use toml::{Table, Value};

use super::Config;

pub(super) use self::suggest::{key as suggest, nearest, table as suggest_table};

/// The kinds of VMM that Kata has a table for. The first is the one that runs here.
pub(super) const VMMS: &[&str] = &[
    "qemu",
    "clh",
    "cloud-hypervisor",
    "dragonball",
    "firecracker",
    "openvmm",
    "remote",
    "stratovirt",
];

/// The keys of a table in a list that [`Allowed::Named`] takes.
const NAMED: &[&str] = &["name", "path", "verity_params"];

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number that is not negative.
    Number,
    /// A number, perhaps with a fraction or a sign.
    Fraction,
    /// A string.
    Text,
    /// A list of strings.
    Words,
    /// A list of tables of strings.
    Tables,
}

/// How a value is put into the configuration; what it says where the value cannot be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Set {
    Switch(fn(&mut Config, bool)),
    Number(fn(&mut Config, u64) -> Result<(), String>),
    Fraction(fn(&mut Config, f64) -> Result<(), String>),
    Text(fn(&mut Config, &str) -> Result<(), String>),
    Words(fn(&mut Config, Vec<String>) -> Result<(), String>),
}

/// A key that sets something.
#[derive(Debug)]
pub(super) struct Honoured {
    pub(super) name: &'static str,
    pub(super) set: Set,
    /// The value that holds.
    pub(super) get: fn(&Config) -> Value,
}

/// Keys that ask for nothing that there is here.
#[derive(Debug)]
pub(super) struct Moot {
    why: &'static str,
    keys: &'static [(&'static str, Kind)],
}

/// Keys that are taken with some values only.
#[derive(Debug)]
pub(super) struct Only {
    allowed: Allowed,
    why: &'static str,
    fix: &'static str,
    keys: &'static [(&'static str, Kind)],
}

/// Which values an [`Only`] takes, besides those that ask for nothing.
#[derive(Debug)]
pub(super) enum Allowed {
    /// None.
    Nothing,
    /// `true`, and not `false`.
    On,
    /// One of these strings, which are what is done.
    Text(&'static [&'static str]),
    /// One of these strings, which are taken and left out.
    LeftOut(&'static [&'static str]),
    /// A list of these, parted by commas, which are taken and left out.
    Parts(&'static [&'static str]),
    /// This number.
    Number(i64),
    /// Tables of which each has one of these in `name`.
    Named(&'static [&'static str]),
}

/// One table.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) honoured: &'static [Honoured],
    moot: &'static [Moot],
    only: &'static [Only],
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    /// It sets something.
    Honoured(&'static Honoured),
    /// It is taken and means nothing.
    Moot(&'static str),
    /// It depends on the value.
    Only(&'static Only),
}

impl Keys {
    /// What a key takes and what becomes of it.
    pub(super) fn find(&self, name: &str) -> Option<(Kind, Fate)> {
        let honoured = self.honoured.iter().find(|key| key.name == name);
        let kind_in = |keys: &[(&str, Kind)]| {
            keys.iter()
                .find_map(|(key, kind)| (*key == name).then_some(*kind))
        };
        honoured
            .map(|key| (key.set.kind(), Fate::Honoured(key)))
            .or_else(|| {
                let found = |moot: &'static Moot| Some((kind_in(moot.keys)?, Fate::Moot(moot.why)));
                self.moot.iter().find_map(found)
            })
            .or_else(|| {
                let found = |only: &'static Only| Some((kind_in(only.keys)?, Fate::Only(only)));
                self.only.iter().find_map(found)
            })
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        let moot = self.moot.iter().flat_map(|moot| moot.keys);
        let only = self.only.iter().flat_map(|only| only.keys);
        let honoured = self.honoured.iter().map(|key| key.name);
        honoured.chain(moot.chain(only).map(|(name, _)| *name))
    }
}

/// The tables, each by the path that is put before its keys, in the order in which they are applied:
/// where two keys say the same, the later table's counts. Every VMM's has the same keys, as Kata
/// reads them.
pub(super) fn tables() -> impl Iterator<Item = (String, &'static Keys)> {
    let vmms = VMMS
        .iter()
        .map(|vmm| (format!("hypervisor.{vmm}"), &hypervisor::KEYS));
    let others: [(&str, &Keys); 6] = [
        ("runtime", &runtime::KEYS),
        ("agent.kata", &agent::KEYS),
        ("factory", &runtime::FACTORY),
        ("cloister", &own::CLOISTER),
        ("relay", &own::RELAY),
        ("mirror", &own::MIRROR),
    ];
    vmms.chain(others.map(|(table, keys)| (table.to_owned(), keys)))
}

/// The row of a key that is named with its table.
pub(super) fn find(path: &str) -> Option<(Kind, Fate)> {
    tables().find_map(|(table, keys)| {
        let name = path.strip_prefix(&table)?.strip_prefix('.')?;
        keys.find(name)
    })
}

/// Whether a table has keys or tables with keys below it.
pub(super) fn is_table(path: &str) -> bool {
    let below = |whole: &str| {
        whole == path
            || whole
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
    };
    tables().any(|(table, keys)| {
        below(&table)
            || path
                .strip_prefix(&table)
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|inner| {
                    let mut names = keys.names();
                    names.any(|name| name.strip_prefix(inner).is_some_and(|r| r.starts_with('.')))
                })
    })
}

impl Kind {
    /// Whether a value is of this kind.
    ///
    /// # Errors
    /// What it is, and what it should be.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        let strings = |list: &[Value]| list.iter().all(Value::is_str);
        let table = |value: &Value| {
            let table = value.as_table();
            table.is_some_and(|table| table.values().all(Value::is_str))
        };
        let fits = match (self, value) {
            (Self::Switch, Value::Boolean(_))
            | (Self::Text, Value::String(_))
            | (Self::Fraction, Value::Integer(_)) => true,
            (Self::Number, Value::Integer(number)) => *number >= 0,
            (Self::Fraction, Value::Float(number)) => number.is_finite(),
            (Self::Words, Value::Array(list)) => strings(list),
            (Self::Tables, Value::Array(list)) => list.iter().all(table),
            _ => false,
        };
        match fits {
            true => Ok(()),
            false => Err(format!("{} is not {}", show(value), self.name())),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Switch => "true or false",
            Self::Number => "a whole number that is not negative",
            Self::Fraction => "a number",
            Self::Text => "a string",
            Self::Words => "a list of strings",
            Self::Tables => "a list of tables of strings",
        }
    }
}

impl Set {
    fn kind(self) -> Kind {
        match self {
            Self::Switch(_) => Kind::Switch,
            Self::Number(_) => Kind::Number,
            Self::Fraction(_) => Kind::Fraction,
            Self::Text(_) => Kind::Text,
            Self::Words(_) => Kind::Words,
        }
    }

    /// Puts a value into the configuration.
    ///
    /// # Errors
    /// Why the value cannot be.
    pub(super) fn apply(self, config: &mut Config, value: &Value) -> Result<(), String> {
        self.kind().check(value)?;
        match (self, value) {
            (Self::Switch(set), Value::Boolean(on)) => set(config, *on),
            (Self::Number(set), Value::Integer(number)) => {
                return set(config, u64::try_from(*number).unwrap_or_default());
            }
            (Self::Fraction(set), Value::Float(number)) => return set(config, *number),
            (Self::Fraction(set), Value::Integer(number)) => {
                // A count of processors: exact far beyond any.
                let number =
                    i32::try_from(*number).map_err(|_| format!("{number} is too large"))?;
                return set(config, f64::from(number));
            }
            (Self::Text(set), Value::String(text)) => return set(config, text),
            (Self::Words(set), Value::Array(list)) => {
                let words = list.iter().filter_map(Value::as_str).map(str::to_owned);
                return set(config, words.collect());
            }
            _ => {}
        }
        Ok(())
    }
}

impl Only {
    /// Whether a value is one that is taken.
    ///
    /// # Errors
    /// The reason and the remedy.
    pub(super) fn check(&self, value: &Value) -> Result<(), (String, String)> {
        let taken = match (&self.allowed, value) {
            (Allowed::On, Value::Boolean(on)) => *on,
            (Allowed::Text(texts) | Allowed::LeftOut(texts), Value::String(text)) => {
                text.is_empty() || texts.contains(&text.as_str())
            }
            (Allowed::Parts(parts), Value::String(text)) => {
                let mut given = text.split(',').map(str::trim);
                given.all(|part| part.is_empty() || parts.contains(&part))
            }
            (Allowed::Number(only), Value::Integer(number)) => number == only,
            (Allowed::Named(names), Value::Array(list)) => list.iter().all(|entry| {
                let name = entry.get("name").and_then(Value::as_str);
                let known = |table: &Table| table.keys().all(|key| NAMED.contains(&key.as_str()));
                name.is_some_and(|name| names.contains(&name))
                    && entry.as_table().is_some_and(known)
            }),
            _ => asks_for_nothing(value),
        };
        match taken {
            true => Ok(()),
            false => Err((
                format!("{}: {}", show(value), self.why),
                self.fix.to_owned(),
            )),
        }
    }

    /// What there is to know about a value that is taken.
    pub(super) fn note(&self, value: &Value) -> Option<&'static str> {
        let left_out = match self.allowed {
            Allowed::LeftOut(_) | Allowed::Parts(_) | Allowed::Named(_) => true,
            Allowed::Nothing | Allowed::On | Allowed::Text(_) | Allowed::Number(_) => false,
        };
        (left_out && !asks_for_nothing(value)).then_some(self.why)
    }
}

/// Whether a value is one that means "no such thing".
pub(super) fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Boolean(on) => !on,
        Value::Integer(number) => *number == 0,
        Value::Float(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Table(table) => table.values().all(asks_for_nothing),
        Value::Datetime(_) => false,
    }
}

/// A value as a person wrote it, but not too long.
pub(super) fn show(value: &Value) -> String {
    /// Characters of a value that a message shows.
    const MAX_SHOWN: usize = 80;
    let text = value.to_string();
    match text.chars().nth(MAX_SHOWN) {
        None => text,
        Some(_) => text.chars().take(MAX_SHOWN).chain("...".chars()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_of_katas_is_told_in_the_docs() {
        let docs = include_str!("../../../../docs/operating.md");
        let words: Vec<&str> = docs.split('`').collect();
        let told = |name: &str| {
            words.iter().any(|word| {
                let word = word.split(" = ").next().unwrap_or(word);
                word == name
                    || word
                        .strip_suffix('*')
                        .is_some_and(|begin| !begin.is_empty() && name.starts_with(begin))
            })
        };
        let of_kata = |table: &str| !["cloister", "relay", "mirror"].contains(&table);
        for (table, keys) in tables().filter(|(table, _)| of_kata(table)) {
            for name in keys.names() {
                assert!(told(name), "{table}.{name} is not in docs/operating.md");
            }
        }
    }

    #[test]
    fn every_key_has_one_row() {
        for (table, keys) in tables() {
            let mut seen = BTreeSet::new();
            for name in keys.names() {
                assert!(seen.insert(name), "{table}.{name} stands twice");
                assert!(find(&format!("{table}.{name}")).is_some());
            }
        }
    }

    #[test]
    fn tables_are_known_with_those_above_and_below() {
        for known in [
            "hypervisor",
            "hypervisor.qemu",
            "hypervisor.clh.factory",
            "agent",
            "agent.kata.mem_agent",
        ] {
            assert!(is_table(known), "{known}");
        }
        for unknown in ["hypervisors", "hypervisor.qem", "runtime.qemu", "agent.kat"] {
            assert!(!is_table(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_named() {
        let refusal =
            |kind: Kind, text: &str| kind.check(&text.parse::<toml::Table>().unwrap()["v"]);
        assert_eq!(
            refusal(Kind::Switch, "v = \"yes\"").unwrap_err(),
            "\"yes\" is not true or false"
        );
        assert!(refusal(Kind::Number, "v = -1").is_err());
        assert!(refusal(Kind::Fraction, "v = 0.5").is_ok());
        assert!(refusal(Kind::Fraction, "v = inf").is_err());
        assert!(refusal(Kind::Words, "v = [1]").is_err());
        assert!(refusal(Kind::Tables, "v = [{ name = \"x\" }]").is_ok());
    }
}
