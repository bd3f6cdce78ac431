//! `kbs reference`: what good evidence has, from whom, and from when until when.

use std::{fmt::Write, path::PathBuf};

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Map, Value};

use super::{Connection, out::say, read_capped};
use crate::{
    route::{CORIM, MESSAGE_VERSION, ReferenceMessage, SAMPLE},
    store::{Mode, Page, ReferenceVersion},
};

const ENDPOINT: &str = "reference-value";
/// What a CoRIM's CBOR begins with: tag 18, and tags 500 to 502.
const CORIM_STARTS: [&[u8]; 4] = [
    &[0xd2],
    &[0xd9, 0x01, 0xf4],
    &[0xd9, 0x01, 0xf5],
    &[0xd9, 0x01, 0xf6],
];

#[derive(Debug, Subcommand)]
pub(super) enum Reference {
    /// Let values hold beside those that a name has: the start of an upgrade.
    Add(Given),
    /// Let values hold in the place of those that a name has.
    Set(Given),
    /// List what holds now or will.
    List {
        /// Names that begin with this.
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Show everything that is remembered of a name, the oldest first.
    History {
        /// The name.
        name: String,
    },
    /// Take back what a name has; its history stays.
    Delete {
        /// The name.
        name: String,
        /// Only what came with the change of this number.
        #[arg(long)]
        version: Option<i64>,
    },
    /// Register a document: a JSON map from name to value or list, or a CoRIM.
    Import {
        /// The document.
        file: PathBuf,
        /// Leave what the names have beside it.
        #[arg(long)]
        add: bool,
        /// Take a CoRIM that nobody signed.
        #[arg(long)]
        accept_unsigned: bool,
        #[command(flatten)]
        window: Window,
    },
}

#[derive(Debug, Args)]
pub(super) struct Given {
    /// The name that appraisal policies ask for.
    name: String,
    /// The values; policies see them as a list.
    #[arg(required = true)]
    values: Vec<String>,
    /// What the values are.
    #[arg(long = "as", value_enum, default_value_t = Form::Text)]
    form: Form,
    /// Register the one value itself, and no list.
    #[arg(long)]
    single: bool,
    #[command(flatten)]
    window: Window,
}

#[derive(Debug, Args)]
pub(super) struct Window {
    /// The first moment at which they hold, in RFC 3339.
    #[arg(long)]
    from: Option<String>,
    /// The first moment at which they no longer hold, in RFC 3339.
    #[arg(long)]
    until: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Integer,
    Bool,
}

impl Reference {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        match self {
            Self::Add(given) => set(connection, given, Mode::Add).await,
            Self::Set(given) => set(connection, given, Mode::Replace).await,
            Self::List { prefix } => list(connection, prefix).await,
            Self::History { name } => {
                let path = format!("{ENDPOINT}-history/{}", escaped(&name));
                let answer = connection.ask(Method::GET, &path, "").await?;
                show(&serde_json::from_slice::<Vec<_>>(&answer).context("read the answer")?)
            }
            Self::Delete { name, version } => {
                let query = version.map_or_else(String::new, |number| format!("?version={number}"));
                let path = format!("{ENDPOINT}/{}{query}", escaped(&name));
                connection.ask(Method::DELETE, &path, "").await?;
                Ok(())
            }
            Self::Import {
                file,
                add,
                accept_unsigned,
                window,
            } => {
                let document = read_capped(Some(&file))?;
                let corim = CORIM_STARTS.iter().any(|start| document.starts_with(start));
                let mode = if add { Mode::Add } else { Mode::Replace };
                let mut message = message(&document, mode, window);
                if corim {
                    CORIM.clone_into(&mut message.kind);
                }
                message.accept_unsigned = accept_unsigned;
                send(connection, &message).await
            }
        }
    }
}

async fn set(connection: &Connection, given: Given, mode: Mode) -> anyhow::Result<()> {
    let mut values = given
        .values
        .iter()
        .map(|text| match given.form {
            Form::Text => Ok(Value::String(text.clone())),
            Form::Integer => Ok(text.parse::<i64>()?.into()),
            Form::Bool => Ok(text.parse::<bool>()?.into()),
        })
        .collect::<anyhow::Result<Vec<Value>>>()
        .context("--as")?;
    let value = match (given.single, values.len()) {
        (true, 1) => values.remove(0),
        (true, _) => anyhow::bail!("--single: give one value"),
        (false, _) => Value::Array(values),
    };
    let map = Map::from_iter([(given.name, value)]);
    let document = serde_json::to_vec(&map).context("make the request")?;
    send(connection, &message(&document, mode, given.window)).await
}

fn message(document: &[u8], mode: Mode, window: Window) -> ReferenceMessage {
    ReferenceMessage {
        version: MESSAGE_VERSION.to_owned(),
        kind: SAMPLE.to_owned(),
        payload: BASE64_STANDARD.encode(document),
        not_before: window.from,
        not_after: window.until,
        mode,
        accept_unsigned: false,
    }
}

async fn send(connection: &Connection, message: &ReferenceMessage) -> anyhow::Result<()> {
    let body = serde_json::to_vec(message).context("make the request")?;
    connection.ask(Method::POST, ENDPOINT, body).await?;
    Ok(())
}

async fn list(connection: &Connection, prefix: String) -> anyhow::Result<()> {
    let mut page = Page {
        prefix,
        ..Page::default()
    };
    loop {
        let path = format!("{ENDPOINT}?{}", serde_urlencoded::to_string(&page)?);
        let answer = connection.ask(Method::GET, &path, "").await?;
        let found: Vec<ReferenceVersion> =
            serde_json::from_slice(&answer).context("read the answer")?;
        let Some(last) = found.last() else {
            return Ok(());
        };
        page.after.clone_from(&last.name);
        show(&found)?;
    }
}

fn show(versions: &[ReferenceVersion]) -> anyhow::Result<()> {
    for version in versions {
        say!("{}", serde_json::to_string(version)?);
    }
    Ok(())
}

/// A name as the end of a path: what is not plain goes as its bytes in hex.
fn escaped(name: &str) -> String {
    let mut path = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // A `String` takes any text.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_slashes_and_nothing_in_it_ends_the_path() {
        assert_eq!(escaped("rvps:///ns/x:1.0"), "rvps:///ns/x:1.0");
        assert_eq!(escaped("a b?c#d%e"), "a%20b%3Fc%23d%25e");
        assert_eq!(escaped("é"), "%C3%A9");
    }
}
