//! `cloister image-set publish`: an upgrade is announced to a broker before it comes to the hosts.
//!
//! ```text
//!            --from            --old-until
//!   old  ──────┼───────────────────┤
//!   new        ├───────────────────┼──────────
//! ```
//!
//! The new values are added first. Then each old one is given its end, by the same value with a window before
//! the one without is withdrawn, so that at no moment a guest of either image is refused.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::signed;
use crate::broker::{Broker, BrokerArgs};
use crate::measure::Measure;

#[derive(Debug, Args)]
pub(super) struct Publish {
    #[command(flatten)]
    measure: Measure,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Speak HTTP without TLS to a broker on this host.
    #[arg(long)]
    plain_http: bool,
    /// The owner's public key, by which the image must be signed.
    #[arg(
        long,
        value_name = "PEM",
        required_unless_present = "accept_unsigned_image"
    )]
    manifest_key: Option<PathBuf>,
    /// Publish an image that nobody signed, or files without a manifest.
    #[arg(long, conflicts_with = "manifest_key")]
    accept_unsigned_image: bool,
    /// The first moment at which the new values hold, in RFC 3339; at once unless it is said.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// The first moment at which they no longer hold, in RFC 3339.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// The first moment at which what holds now does not any more, in RFC 3339; it stays unless it is said.
    #[arg(long, value_name = "TIME")]
    old_until: Option<String>,
}

/// A value as the broker lists it.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    value: Value,
    not_before: Option<String>,
    not_after: Option<String>,
    version: i64,
    holds: bool,
}

/// The names of registers of a TD: one that every policy asks for, and one that counts once it has a value.
const RTMR_1: &str = "rtmr_1";
const RTMR_0: &str = "rtmr_0";

impl Publish {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if let Some(key) = &self.manifest_key {
            let image = self.measure.image();
            let image = image.context("--manifest-key is of an image: add --image")?;
            signed::verify(image, key)?;
        }
        let values = self.measure.reference_values()?;
        let broker = self.broker.open(self.plain_http)?;
        let broker = broker.context("give the broker: --kbs and --admin-token-file")?;
        let mut old = Vec::new();
        let first = values.get(RTMR_0).is_some();
        let asked = |name: &String| {
            self.old_until.is_some() || (first && [RTMR_0, RTMR_1].contains(&name.as_str()))
        };
        for name in names(&values).into_iter().filter(asked) {
            let listed = Value::Array(broker.reference_values(&name).await?);
            let listed: Vec<Listed> = serde_json::from_value(listed)
                .context("the broker lists reference values in another form")?;
            old.extend(listed);
        }
        ensure!(
            !refuses_others(&old, &values),
            "the broker knows TDs of other images by {RTMR_1}, and none by {RTMR_0}: with the first value of \
             {RTMR_0} it would refuse them all; first register {RTMR_0} of those that go on (`cloister measure` \
             of their image, `kbs reference import --add`), or withdraw their values, or leave it out of this \
             launch with --no-rtmr-0"
        );
        let (from, until) = (self.from.as_deref(), self.until.as_deref());
        broker
            .add_reference_values(&message(&values, from, until)?)
            .await?;
        println!("added {}", names(&values).join(", "));
        if let Some(end) = &self.old_until {
            end_at(&broker, &old, &values, end).await?;
        }
        Ok(())
    }
}

/// Gives the values that are replaced their end. A change is withdrawn whole, so that what it brought besides
/// is added anew as it was.
async fn end_at(broker: &Broker, old: &[Listed], new: &Value, end: &str) -> anyhow::Result<()> {
    let replaced = |it: &&Listed| is_replaced(it, new);
    let changes: BTreeSet<(&str, i64)> = old
        .iter()
        .filter(replaced)
        .map(|it| (it.name.as_str(), it.version))
        .collect();
    for it in old
        .iter()
        .filter(|it| changes.contains(&(it.name.as_str(), it.version)))
    {
        let until = match is_replaced(it, new) {
            true => Some(end),
            false => it.not_after.as_deref(),
        };
        let value = json!({ it.name.clone(): it.value });
        let bounded = message(&value, it.not_before.as_deref(), until)?;
        broker.add_reference_values(&bounded).await?;
    }
    for (name, version) in changes {
        broker.withdraw_reference_values(name, version).await?;
        println!("{name} of version {version} ends {end}");
    }
    Ok(())
}

fn names(values: &Value) -> Vec<String> {
    let names = values.as_object().map(|map| map.keys().cloned().collect());
    names.unwrap_or_default()
}

/// Whether it is of a name that the new values have, and another value, with no end of its own.
fn is_replaced(old: &Listed, new: &Value) -> bool {
    old.not_after.is_none() && new.get(&old.name).is_some() && !is_among(old, new)
}

/// Whether all that it stands for is among the new values of its name.
fn is_among(old: &Listed, new: &Value) -> bool {
    let members = |value: &Value| -> BTreeSet<String> {
        match value {
            Value::Array(list) => list.iter().map(Value::to_string).collect(),
            one => BTreeSet::from([one.to_string()]),
        }
    };
    let new = new.get(&old.name).map(members).unwrap_or_default();
    members(&old.value).is_subset(&new)
}

/// Whether the new values would have RTMR0 judged of guests that are good now and of which it is not known.
fn refuses_others(old: &[Listed], new: &Value) -> bool {
    let known = |it: &Listed| it.name == RTMR_0 && it.holds;
    let other = |it: &Listed| it.name == RTMR_1 && it.holds && !is_among(it, new);
    new.get(RTMR_0).is_some() && !old.iter().any(known) && old.iter().any(other)
}

fn message(values: &Value, from: Option<&str>, until: Option<&str>) -> anyhow::Result<Value> {
    ensure!(!names(values).is_empty(), "there is no value to publish");
    let mut message = json!({
        "version": "0.1.0",
        "type": "sample",
        "mode": "add",
        "payload": STANDARD.encode(values.to_string()),
    });
    for (member, time) in [("not_before", from), ("not_after", until)] {
        if let Some(time) = time {
            message[member] = time.into();
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_values_of_the_same_names_end() {
        let old = |name: &str, value, not_after: Option<&str>| Listed {
            name: name.to_owned(),
            value,
            not_before: None,
            not_after: not_after.map(str::to_owned),
            version: 1,
            holds: true,
        };
        let new = json!({ "a": ["x", "y"] });
        assert!(is_replaced(&old("a", json!("z"), None), &new));
        assert!(is_replaced(&old("a", json!(["x", "z"]), None), &new));
        assert!(!is_replaced(&old("a", json!("x"), None), &new));
        assert!(!is_replaced(&old("b", json!("z"), None), &new));
        assert!(!is_replaced(
            &old("a", json!("z"), Some("2030-01-01T00:00:00Z")),
            &new
        ));
    }

    #[test]
    fn the_first_rtmr_0_refuses_no_td_that_is_good_now() {
        let old = |name: &str, value: &str, holds| Listed {
            name: name.to_owned(),
            value: json!([value]),
            not_before: None,
            not_after: None,
            version: 1,
            holds,
        };
        let new = json!({ "rtmr_0": ["a"], "rtmr_1": ["x"] });
        assert!(refuses_others(&[old(RTMR_1, "y", true)], &new));
        let quiet = [
            vec![],
            vec![old(RTMR_1, "x", true)],
            vec![old(RTMR_1, "y", false)],
            vec![old(RTMR_1, "y", true), old(RTMR_0, "b", true)],
        ];
        for old in quiet {
            assert!(!refuses_others(&old, &new), "{old:?}");
        }
        let without = json!({ "rtmr_1": ["x"] });
        assert!(!refuses_others(&[old(RTMR_1, "y", true)], &without));
    }
}
