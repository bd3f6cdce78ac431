//! `kbs explain`: why a guest was refused, and what to do.

use std::io::{self, Write};

use anyhow::Context;
use http::Method;

use super::Connection;
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
        io::stdout().write_all(&answer)?;
        println!();
        return Ok(());
    }
    let explained: Explained = serde_json::from_slice(&answer).context("read the answer")?;
    print!("{}", text(&explained));
    Ok(())
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
                format!(", its policy for {class} ({})", policy(*version))
            };
            let devices: String = versions.devices.iter().map(device).collect();
            format!(
                "the appraisal policy {} ({}){devices} and reference values {}",
                versions.policy,
                policy(versions.appraisal),
                versions.references
            )
        }
        Kind::Release => format!(
            "the release policy {} ({})",
            versions.policy,
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
    let rule = match rule.as_str() {
        "" => String::new(),
        rule => format!("\n  rule      {rule}"),
    };
    format!(
        "\n  claim     {claim}\n  expected  {expected}\n  found     {found}{rule}\n  fix       {fix}"
    )
}

fn fact(one: &Judged) -> String {
    let sign = if one.holds { "holds" } else { "fails" };
    format!(
        "  {sign}  {}: {} (expected {})",
        one.claim, one.found, one.expected
    )
}
