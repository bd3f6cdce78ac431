//! `cloister image-set publish`: an upgrade is announced to a broker before it comes to the hosts.
//!
//! ```text
//!            --from            --old-until
//!   old  ──────┼───────────────────┤
//!   new        ├───────────────────┼──────────
//! ```
//!
//! The new values are added first. Then each old one that would hold longer is given its end, by the same value
//! with a window before the other is withdrawn, so that at no moment a guest of either image is refused. One that
//! would begin at that end or later is withdrawn. An image that is older than one which was published is refused
//! ([`Numbered`]).

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::number::Numbered;
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
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<OffsetDateTime>,
    /// The first moment at which they no longer hold, in RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<OffsetDateTime>,
    /// The first moment at which what holds now does not any more, in RFC 3339; it stays unless it is said.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    old_until: Option<OffsetDateTime>,
    /// What images are called that take each other's place: of one name none is published whose number is not
    /// greater than all that were before.
    #[arg(long, value_name = "NAME", default_value = "guest")]
    image_name: String,
    /// Publish an image though one with a greater number was published before.
    #[arg(long)]
    rollback: bool,
}

/// A value as the broker lists it.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    value: Value,
    #[serde(default, deserialize_with = "listed_moment")]
    not_before: Option<OffsetDateTime>,
    #[serde(default, deserialize_with = "listed_moment")]
    not_after: Option<OffsetDateTime>,
    version: i64,
    holds: bool,
}

/// The names of registers of a TD: one that every policy asks for, and one that counts once it has a value.
const RTMR_1: &str = "rtmr_1";
const RTMR_0: &str = "rtmr_0";

impl Publish {
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        check_overlap(self.from, self.old_until)?;
        if let Some(key) = &self.manifest_key {
            let image = self.measure.image();
            let image = image.context("--manifest-key is of an image: add --image")?;
            let manifest = signed::verify(image, key)?;
            self.measure.trust(manifest);
        }
        let image = self.numbered()?;
        let values = self.measure.reference_values()?;
        let broker = self.broker.open(self.plain_http)?;
        let broker = broker.context("give the broker: --kbs and --admin-token-file")?;
        let published = Numbered::published(&broker, &self.image_name).await?;
        if !self.rollback {
            image.follows(&published, &self.image_name)?;
        }
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
        let added = message(&values, self.from, self.until)?;
        // The number first: what fails after it is the same image when it is tried again. Of a manifest that nobody
        // signed it is anybody's.
        if self.manifest_key.is_some() {
            image.keep(&broker, &published, &self.image_name).await?;
        }
        broker.add_reference_values(&added).await?;
        println!("added {}", names(&values).join(", "));
        if let Some(end) = self.old_until {
            end_at(&broker, &old, &values, end).await?;
        }
        Ok(())
    }

    /// What is published, by its number; files without a manifest have none.
    fn numbered(&self) -> anyhow::Result<Numbered> {
        let manifest = self.measure.manifest()?;
        let numbered = manifest.as_ref().map(Numbered::of).transpose()?;
        Ok(numbered.unwrap_or_default())
    }
}

/// Gives the values that are replaced their end. A change is withdrawn whole, so that what it brought besides
/// is added anew as it was.
async fn end_at(
    broker: &Broker,
    old: &[Listed],
    new: &Value,
    end: OffsetDateTime,
) -> anyhow::Result<()> {
    let replaced = |it: &&Listed| is_replaced(it, new, end);
    let changes: BTreeSet<(&str, i64)> = old
        .iter()
        .filter(replaced)
        .map(|it| (it.name.as_str(), it.version))
        .collect();
    for it in old
        .iter()
        .filter(|it| changes.contains(&(it.name.as_str(), it.version)))
    {
        let until = match is_replaced(it, new, end) {
            true if it.not_before.is_some_and(|begin| begin >= end) => continue,
            true => Some(end),
            false => it.not_after,
        };
        let value = json!({ it.name.clone(): it.value });
        let bounded = message(&value, it.not_before, until)?;
        broker.add_reference_values(&bounded).await?;
    }
    let end = end.format(&Rfc3339)?;
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

/// Whether it is of a name that the new values have, and another value, which would hold after the end.
fn is_replaced(old: &Listed, new: &Value, end: OffsetDateTime) -> bool {
    let is_longer = old.not_after.is_none_or(|known| known > end);
    is_longer && new.get(&old.name).is_some() && !is_among(old, new)
}

/// Refuses a time between the end of the old values and the first moment of the new ones.
fn check_overlap(from: Option<OffsetDateTime>, end: Option<OffsetDateTime>) -> anyhow::Result<()> {
    if let (Some(from), Some(end)) = (from, end) {
        ensure!(
            from <= end,
            "--from is later than --old-until: guests of either image would be refused in between"
        );
    }
    Ok(())
}

/// A moment in RFC 3339.
fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("a time in RFC 3339, such as 2030-01-31T12:00:00Z: {error}"))
}

fn listed_moment<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<OffsetDateTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let moment = text.as_deref().map(moment).transpose();
    moment.map_err(D::Error::custom)
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

/// Whether the new values would have RTMR0 judged of guests that are good, now or later, and of which it is not known.
fn refuses_others(old: &[Listed], new: &Value) -> bool {
    let known = |it: &Listed| it.name == RTMR_0 && it.holds;
    let good = |it: &Listed| it.holds || it.not_before.is_some();
    let other = |it: &Listed| it.name == RTMR_1 && good(it) && !is_among(it, new);
    new.get(RTMR_0).is_some() && !old.iter().any(known) && old.iter().any(other)
}

fn message(
    values: &Value,
    from: Option<OffsetDateTime>,
    until: Option<OffsetDateTime>,
) -> anyhow::Result<Value> {
    ensure!(!names(values).is_empty(), "there is no value to publish");
    let mut message = json!({
        "version": "0.1.0",
        "type": "sample",
        "mode": "add",
        "payload": STANDARD.encode(values.to_string()),
    });
    for (member, time) in [("not_before", from), ("not_after", until)] {
        if let Some(time) = time {
            message[member] = time.format(&Rfc3339)?.into();
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "2029-12-31T23:00:00Z";
    const END: &str = "2030-01-01T00:00:00Z";
    /// The same moment elsewhere, which sorts before it as text.
    const SAME: &str = "2029-12-31T23:00:00-01:00";
    const AFTER: &str = "2030-01-01T00:00:00.001Z";

    #[test]
    fn only_other_values_of_the_same_names_end_and_only_those_that_would_hold_longer() {
        let end = moment(END).unwrap();
        let new = json!({ "a": ["x", "y"] });
        let replaced = |name: &str, value: Value, not_after: Option<&str>| {
            let listed = json!({
                "name": name, "value": value, "not_after": not_after, "version": 1, "holds": true,
            });
            is_replaced(&serde_json::from_value(listed).unwrap(), &new, end)
        };
        assert!(replaced("a", json!("z"), None));
        assert!(replaced("a", json!(["x", "z"]), None));
        assert!(!replaced("a", json!("x"), None));
        assert!(!replaced("b", json!("z"), None));
        for (not_after, is_longer) in [(BEFORE, false), (END, false), (SAME, false), (AFTER, true)]
        {
            let found = replaced("a", json!("z"), Some(not_after));
            assert_eq!(found, is_longer, "{not_after}");
            assert!(!replaced("a", json!("x"), Some(not_after)));
        }
    }

    #[test]
    fn a_gap_between_old_and_new_is_refused() {
        let of = |text: &str| Some(moment(text).unwrap());
        for from in [BEFORE, END, SAME] {
            assert!(check_overlap(of(from), of(END)).is_ok(), "{from}");
        }
        let said = check_overlap(of(AFTER), of(END)).unwrap_err().to_string();
        assert!(said.contains("--old-until"), "{said}");
        assert!(check_overlap(of(AFTER), None).is_ok());
        assert!(check_overlap(None, of(BEFORE)).is_ok());
        assert!(moment("2030-01-01").is_err());
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
