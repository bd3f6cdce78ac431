//! `cloister ps`: the runs that there are, and where each is in truth.

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

use super::store::{Phase, Record, Run};
use super::table::Table;

/// How much of a command is shown.
const COMMAND_SHOWN: usize = 32;
/// Where images have them: of a digest this much is shown.
const IMAGE_SHOWN: usize = 48;

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also those that have ended.
    #[arg(long, short)]
    all: bool,
    /// As JSON, an array of one object for each.
    #[arg(long)]
    json: bool,
    /// Only the names.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Of this namespace alone; else of every one.
    #[arg(long, env = "CONTAINERD_NAMESPACE")]
    namespace: Option<String>,
}

/// One run, as JSON has it.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) started: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) ended: Option<OffsetDateTime>,
    pub(crate) phase: Phase,
    pub(crate) exit_code: Option<u32>,
    /// The VM's process on the host.
    pub(crate) vm_pid: Option<u32>,
}

impl Row {
    /// What is known of a run now.
    pub(crate) fn of(run: &Run, record: &Record) -> Self {
        Self {
            name: run.name.clone(),
            namespace: run.namespace.clone(),
            image: record.image.clone(),
            command: record.args.clone(),
            created: record.created,
            started: record.started,
            ended: record.ended.as_ref().map(|ended| ended.at),
            phase: run.phase(record),
            exit_code: record.ended.as_ref().map(|ended| ended.code),
            vm_pid: run.vmm().map(|process| process.pid),
        }
    }
}

impl Ps {
    pub(crate) fn run(self) -> Result<()> {
        let mut rows = Vec::new();
        for run in Run::all(self.namespace.as_deref())? {
            match run.read() {
                Ok(record) => rows.push(Row::of(&run, &record)),
                // One that goes at this moment.
                Err(_) if !run.path().exists() => {}
                Err(error) => eprintln!("cloister: {}", crate::words(&error)),
            }
        }
        rows.retain(|row| self.all || row.phase.is_alive());
        if self.json {
            println!("{}", serde_json::to_string_pretty(&rows)?);
        } else if self.quiet {
            rows.iter().for_each(|row| println!("{}", row.name));
        } else {
            print!("{}", table(&rows, OffsetDateTime::now_utc()));
        }
        Ok(())
    }
}

fn table(rows: &[Row], now: OffsetDateTime) -> String {
    let mut table = Table::new(&["NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"]);
    for row in rows {
        let command = match row.command.is_empty() {
            true => "-".to_owned(),
            false => row.command.join(" "),
        };
        table.row([
            row.name.clone(),
            image_rs::shown_up_to(&row.image, IMAGE_SHOWN),
            image_rs::shown_up_to(&command, COMMAND_SHOWN),
            format!("{} ago", ago(now - row.created)),
            status(row, now),
        ]);
    }
    table.to_string()
}

fn status(row: &Row, now: OffsetDateTime) -> String {
    let since = |time: Option<OffsetDateTime>| ago(now - time.unwrap_or(row.created));
    match row.phase {
        Phase::Creating => "Creating".to_owned(),
        Phase::Running => format!("Up {}", since(row.started)),
        Phase::Unkept => format!("Up {} (its keeper was killed)", since(row.started)),
        Phase::Exited => format!(
            "Exited ({}) {} ago",
            row.exit_code.unwrap_or_default(),
            since(row.ended)
        ),
        Phase::Lost => "Lost (keeper and VM were killed)".to_owned(),
    }
}

/// A duration in its largest unit.
pub(crate) fn ago(duration: time::Duration) -> String {
    let seconds = duration.whole_seconds().max(0);
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_where_a_run_is() {
        let created = OffsetDateTime::UNIX_EPOCH;
        let mut row = Row {
            name: "web".into(),
            namespace: "default".into(),
            image: "a.example/b:1".into(),
            command: vec!["sh".into(), "-c".into(), "\u{1b}[2J".into()],
            created,
            started: Some(created),
            ended: None,
            phase: Phase::Running,
            exit_code: None,
            vm_pid: Some(1),
        };
        let now = created + time::Duration::minutes(2);
        let text = table(std::slice::from_ref(&row), now);
        assert!(
            text.contains("Up 2 minutes") && !text.contains('\u{1b}'),
            "{text}"
        );
        row.phase = Phase::Exited;
        row.exit_code = Some(137);
        row.ended = Some(now - time::Duration::seconds(1));
        assert_eq!(status(&row, now), "Exited (137) 1 second ago");
    }
}
