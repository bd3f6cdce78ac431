//! `kbs explain`: why a guest was refused, and what to do.

use std::io::{self, Write};

use anyhow::Context;
use http::Method;

use super::Connection;
use crate::denial::Denial;

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
    let denial: Denial = serde_json::from_slice(&answer).context("read the answer")?;
    println!(
        "{} refused at {}: {}",
        denial.step, denial.time, denial.subject
    );
    for reason in &denial.reasons {
        println!("\n  claim     {}", reason.claim);
        println!("  expected  {}", reason.expected);
        println!("  found     {}", reason.found);
        println!("  fix       {}", reason.fix);
    }
    Ok(())
}
