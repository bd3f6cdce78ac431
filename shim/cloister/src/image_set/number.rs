//! An image's number: what makes an older image known as such, though its signature is as good as ever.
//!
//! The owner counts images of one name, and the number is signed with the rest of the manifest. The highest that was
//! published is kept by the broker itself, as a reference value that no policy asks for, so that whoever publishes
//! next finds it wherever that is:
//!
//! ```text
//!   cloister_image_number/NAME   {"number": 7, "manifest": "<SHA-256 of the manifest>"}
//! ```
//!
//! One image may be published again, with another window or for another TEE. What publishes is an administrator,
//! who could also write reference values by hand: this stops a mistake, or an old image in a new one's place, and no
//! administrator.

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use guest_image::manifest::Manifest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::broker::Broker;

/// What a reference value's name begins with, before that of the image.
const NAME: &str = "cloister_image_number/";

/// An image by its number. The default is what has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Numbered {
    number: u64,
    /// The manifest's SHA-256 in hex.
    manifest: String,
}

impl Numbered {
    pub(super) fn of(manifest: &Manifest) -> anyhow::Result<Self> {
        Ok(Self {
            number: manifest.number,
            manifest: hex::encode(Sha256::digest(manifest.to_bytes()?)),
        })
    }

    /// The one with the highest number that was published by this name.
    pub(super) async fn published(broker: &Broker, image: &str) -> anyhow::Result<Self> {
        highest(broker.reference_values(&name(image)).await?)
    }

    /// Refuses what is no newer than what was published; that again is good.
    pub(super) fn follows(&self, published: &Self, image: &str) -> anyhow::Result<()> {
        ensure!(
            self.number > published.number
                || self.number == 0 && published.number == 0
                || self == published,
            "the image has number {}, and {} was published as {image:?} before: build or sign a newer one with a \
             greater number (`cloister image-set sign --number`), or say --rollback if just this image is meant",
            self.number,
            published.number,
        );
        Ok(())
    }

    /// Lets the broker remember it, where it is the highest.
    pub(super) async fn keep(
        &self,
        broker: &Broker,
        published: &Self,
        image: &str,
    ) -> anyhow::Result<()> {
        if self.number <= published.number {
            return Ok(());
        }
        let values = json!({ name(image): self });
        let message = json!({
            "version": "0.1.0",
            "type": "sample",
            "mode": "replace",
            "payload": STANDARD.encode(values.to_string()),
        });
        broker.add_reference_values(&message).await
    }
}

/// Refuses an image with a smaller number than this.
pub(super) fn at_least(manifest: &Manifest, least: u64) -> anyhow::Result<()> {
    ensure!(
        manifest.number >= least,
        "it has number {}, and --least asks for {least}: get the newer image from its owner",
        manifest.number
    );
    Ok(())
}

fn name(image: &str) -> String {
    format!("{NAME}{image}")
}

fn highest(listed: Vec<Value>) -> anyhow::Result<Numbered> {
    let mut highest = Numbered::default();
    for mut listed in listed {
        let known: Numbered = serde_json::from_value(listed["value"].take())
            .context("the broker has a number of an image in another form: withdraw it with `kbs reference delete`")?;
        if known.number > highest.number {
            highest = known;
        }
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(number: u64, manifest: &str) -> Numbered {
        Numbered {
            number,
            manifest: manifest.to_owned(),
        }
    }

    #[test]
    fn only_a_greater_number_follows_and_the_same_image_again() {
        let published = image(7, "a");
        for (next, is_good) in [
            (image(8, "b"), true),
            (image(7, "a"), true),
            (image(7, "b"), false),
            (image(6, "a"), false),
            (image(0, "b"), false),
        ] {
            let followed = next.follows(&published, "guest");
            assert_eq!(followed.is_ok(), is_good, "{next:?}");
        }
        let said = image(3, "b").follows(&published, "guest").unwrap_err();
        let said = said.to_string();
        for named in ["number 3", "7 was published", "\"guest\"", "--rollback"] {
            assert!(said.contains(named), "{said}");
        }
        // Who does not count is not stopped.
        let none = Numbered::default();
        assert!(image(0, "b").follows(&none, "guest").is_ok());
    }

    #[test]
    fn the_highest_of_a_name_counts_and_what_is_none_is_an_error() {
        let listed = |number: Value| json!({ "value": { "number": number, "manifest": "a" } });
        let all = vec![listed(json!(3)), listed(json!(u64::MAX)), listed(json!(5))];
        assert_eq!(highest(all).unwrap(), image(u64::MAX, "a"));
        assert_eq!(highest(Vec::new()).unwrap(), Numbered::default());
        let said = highest(vec![json!({ "value": "7" })]).unwrap_err();
        assert!(said.to_string().contains("withdraw"), "{said}");
    }
}
