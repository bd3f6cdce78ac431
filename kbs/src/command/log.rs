//! The log: lines on stderr, as JSON or for people, and a panic as one of them.

use std::{
    io::{self, IsTerminal},
    panic,
};

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::Format;

/// What the log tells unless told; `KBS_LOG` is the same as tracing's filters.
const FILTER: &str = "info";

/// Starts it. It is done once.
pub(super) fn start(format: Format) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("KBS_LOG").unwrap_or_else(|_| EnvFilter::new(FILTER));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let lines = match format {
        Format::Json => lines.json().boxed(),
        Format::Text => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()?;
    // Where it was, and not what it says: that may hold what a request held.
    panic::set_hook(Box::new(|panicked| {
        let place = panicked.location().map(ToString::to_string);
        tracing::error!(place, "a defect: the program panicked");
    }));
    Ok(())
}
