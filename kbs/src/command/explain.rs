//! `kbs explain`: why a guest was refused, and what to do.

use anyhow::Context;
use http::Method;

use super::{
    Connection,
    out::{self, say},
};
use crate::{
    explain::Explained,
    record::{Entry, Judged, Kind, Outcome},
};

pub(super) async fn explain(
    connection: &Connection,
    ticket: &str,
    json: bool,
) -> anyhow::Result<()> {
    if !ticket.bytes().all(|b| b.is_ascii_alphanumeric()) {
        anyhow::bail!("`{ticket}` is no ticket");
    }
    let path = format!("explain/{ticket}");
    let answer = connection.ask(Method::GET, &path, "").await?;
    if json {
        out::bytes(&answer)?;
        say!("");
        return Ok(());
    }
    let explained: Explained = serde_json::from_slice(&answer).context("read the answer")?;
    out::bytes(text(&explained).as_bytes())
}

/// A decision in words.
fn text(explained: &Explained) -> String {
    let Explained {
        decision,
        attestation,
        causes,
    } = explained;
    let mut lines = vec![headline(decision)];
    if let Some(earlier) = attestation {
        lines.push(format!("with the token of {}", headline(earlier)));
    }
    lines.push(format!("by {}", deciders(decision)));
    lines.extend(causes.iter().map(cause));
    if causes.is_empty() {
        let judged = attestation.iter().flat_map(|earlier| &earlier.claims);
        lines.extend(decision.claims.iter().chain(judged).map(fact));
    }
    lines.join("\n") + "\n"
}

fn headline(entry: &Entry) -> String {
    let step = match entry.kind {
        Kind::Attest => "attestation",
        Kind::Release => "release",
        Kind::Resource | Kind::Policy | Kind::Reference => "administration",
    };
    let result = match entry.result {
        Outcome::Allowed => "allowed",
        Outcome::Denied => "refused",
        Outcome::Absent => "allowed, but there is no such resource",
        Outcome::Set => "set",
        Outcome::Deleted => "deleted",
    };
    let Entry {
        resource,
        subject,
        time,
        ..
    } = entry;
    let version = match entry.versions.resource {
        0 => String::new(),
        version => format!(", version {version},"),
    };
    let [resource, subject, time] = [resource, subject, time].map(|text| plain(text));
    format!("{step} of {resource}{version} {result} at {time} ({subject})")
}

fn deciders(entry: &Entry) -> String {
    let versions = &entry.versions;
    let policy = |version: i64| match version {
        0 => "built in".to_owned(),
        version => format!("version {version}"),
    };
    match entry.kind {
        Kind::Attest => {
            let device = |(class, version): (&String, &i64)| {
                format!(", its policy for {} ({})", plain(class), policy(*version))
            };
            let devices: String = versions.devices.iter().map(device).collect();
            format!(
                "the appraisal policy {} ({}){devices} and reference values {}",
                plain(&versions.policy),
                policy(versions.appraisal),
                versions.references
            )
        }
        Kind::Release => format!(
            "the release policy {} ({})",
            plain(&versions.policy),
            policy(versions.release)
        ),
        Kind::Resource | Kind::Policy | Kind::Reference => "an administrator".to_owned(),
    }
}

fn cause(one: &Judged) -> String {
    let Judged {
        claim,
        expected,
        found,
        rule,
        fix,
        ..
    } = one;
    let claim = named(one, claim);
    let [claim, expected, found, fix] = [&claim, expected, found, fix].map(|text| plain(text));
    let rule = match plain(rule).as_str() {
        "" => String::new(),
        rule => format!("\n  rule      {rule}"),
    };
    format!(
        "\n  claim     {claim}\n  expected  {expected}\n  found     {found}{rule}\n  fix       {fix}"
    )
}

fn fact(one: &Judged) -> String {
    let sign = if one.holds { "holds" } else { "fails" };
    let claim = named(one, &one.claim);
    let [claim, found, expected] = [&claim, &one.found, &one.expected].map(|text| plain(text));
    format!("  {sign}  {claim}: {found} (expected {expected})")
}

/// A claim with the part of the guest that it is about, where that is not the CPU.
fn named(one: &Judged, claim: &str) -> String {
    match one.submod.as_str() {
        "" => claim.to_owned(),
        submod => format!("{submod}: {claim}"),
    }
}

/// What a guest may have written, as one line in which nothing moves the cursor, hides a letter or
/// turns the direction of writing: a terminal shows what was said, and no more.
fn plain(text: &str) -> String {
    const SHOWN: usize = 2000;
    let moves = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    let mut line = String::new();
    for letter in text.chars().take(SHOWN) {
        if moves(letter) {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    if text.chars().nth(SHOWN).is_some() {
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_wrote_stays_on_its_line() {
        let hostile = "A\n  fix       run this\u{1b}]0;x\u{7}\u{202e}";
        let shown = plain(hostile);
        assert_eq!(shown, "A\\n  fix       run this\\u{1b}]0;x\\u{7}\\u{202e}");
        assert_eq!(plain("größer als 3"), "größer als 3");
        assert_eq!(plain(&"x".repeat(5000)).len(), 2003);
        let one = Judged {
            claim: hostile.to_owned(),
            expected: hostile.to_owned(),
            found: hostile.to_owned(),
            rule: hostile.to_owned(),
            fix: hostile.to_owned(),
            holds: false,
            submod: hostile.to_owned(),
        };
        assert_eq!(cause(&one).lines().count(), 6);
        assert_eq!(fact(&one).lines().count(), 1);
    }
}
