//! `cloister logs` and `cloister events`: what was written down, and what comes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::event::{self, Event};
use super::log::{self, Line, Stream, Tail};
use super::store::Run;
use super::{Named, since};

/// How often to look for more.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Which log.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    of: Named,
    /// Go on until the program ends.
    #[arg(long, short)]
    follow: bool,
    /// Only what was written since then: a time, or how long ago, as 10m.
    #[arg(long)]
    since: Option<String>,
    /// Only the last lines, so many.
    #[arg(long, short = 'n')]
    tail: Option<usize>,
    /// With the time of each line.
    #[arg(long, short)]
    timestamps: bool,
}

impl Logs {
    pub(crate) async fn run(self) -> Result<()> {
        let run = self.of.find()?;
        let since = self.since.as_deref();
        let since = since.map(|text| since::parse(text, OffsetDateTime::now_utc()));
        let since = since.transpose()?;
        let mut tail = Tail::open(&run.log());
        let mut writer = Writer {
            with_times: self.timestamps,
            ..Writer::default()
        };
        let is_wanted = |line: &Line| since.is_none_or(|since| line.at >= since);
        for line in last(&mut tail, self.tail, is_wanted)? {
            writer.write(&line)?;
        }
        if self.follow {
            follow(&run, &mut tail, &mut writer).await?;
        }
        Ok(())
    }
}

/// Writes what comes, until the run has ended.
async fn follow(run: &Run, tail: &mut Tail, writer: &mut Writer) -> Result<()> {
    loop {
        // Looked at first: what comes after it has ended is nothing.
        let goes_on = run.read().is_ok_and(|record| run.phase(&record).is_alive());
        while let Some(line) = tail.next().context("read the log")? {
            writer.write(&line)?;
        }
        if !goes_on {
            return Ok(());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The last lines of what is there; pieces of a line count as one.
fn last(
    tail: &mut Tail,
    count: Option<usize>,
    is_wanted: impl Fn(&Line) -> bool,
) -> Result<VecDeque<Line>> {
    let mut lines = VecDeque::new();
    let mut ends = 0;
    while let Some(line) = tail.next().context("read the log")? {
        if !is_wanted(&line) {
            continue;
        }
        ends += usize::from(line.is_end);
        lines.push_back(line);
        let Some(count) = count else { continue };
        // One that is not ended yet is the last.
        let open = usize::from(lines.back().is_some_and(|line| !line.is_end));
        while ends + open > count {
            match lines.pop_front() {
                Some(line) => ends -= usize::from(line.is_end),
                None => break,
            }
        }
    }
    Ok(lines)
}

/// Writes lines to the streams from which they came.
#[derive(Debug, Default)]
struct Writer {
    with_times: bool,
    in_line: bool,
}

impl Writer {
    fn write(&mut self, line: &Line) -> io::Result<()> {
        match line.stream {
            Stream::Stdout => self.write_to(&mut io::stdout().lock(), line),
            Stream::Stderr => self.write_to(&mut io::stderr().lock(), line),
        }
    }

    fn write_to(&mut self, to: &mut impl Write, line: &Line) -> io::Result<()> {
        if self.with_times && !self.in_line {
            write!(to, "{} ", line.at.format(&Rfc3339).unwrap_or_default())?;
        }
        to.write_all(&line.text)?;
        if line.is_end {
            to.write_all(b"\n")?;
        }
        self.in_line = !line.is_end;
        to.flush()
    }
}

/// Which events.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only what there is; else it goes on until it is interrupted.
    #[arg(long)]
    no_follow: bool,
    /// Also what happened since then: a time, or how long ago, as 10m.
    #[arg(long)]
    since: Option<String>,
    /// Of this namespace alone.
    #[arg(long, env = "CONTAINERD_NAMESPACE")]
    namespace: Option<String>,
    /// Of this run alone.
    name: Option<String>,
}

impl Events {
    pub(crate) async fn run(self) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        let since = match &self.since {
            Some(text) => since::parse(text, now)?,
            None if self.no_follow => OffsetDateTime::UNIX_EPOCH,
            None => now,
        };
        let path = event::path(&shim::state_dir::root());
        if let Ok(mut file) = File::open(log::before(&path)) {
            self.print(&event::read(&mut file, 0)?.0, since)?;
        }
        let mut open: Option<(File, u64)> = None;
        loop {
            if let Some((file, at)) = &mut open {
                let (events, end) = event::read(file, *at)?;
                *at = end;
                self.print(&events, since)?;
            }
            let there = File::open(&path).ok();
            let inode = |file: &File| file.metadata().map(|it| it.ino()).ok();
            let ours = open.as_ref().and_then(|(file, _)| inode(file));
            // Put aside meanwhile, or there for the first time.
            if let Some(file) = there.filter(|file| inode(file) != ours) {
                open = Some((file, 0));
                continue;
            }
            if self.no_follow {
                return Ok(());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn print(&self, events: &[Event], since: OffsetDateTime) -> Result<()> {
        let mut out = io::stdout().lock();
        let is_ours = |asked: Option<&String>, is: &str| asked.is_none_or(|asked| asked == is);
        for event in events {
            if event.time >= since
                && is_ours(self.namespace.as_ref(), &event.namespace)
                && is_ours(self.name.as_ref(), &event.name)
            {
                writeln!(out, "{}", serde_json::to_string(event)?)?;
            }
        }
        Ok(out.flush()?)
    }
}

/// The end of a run's log, as text.
pub(crate) fn log_tail(run: &Run, lines: usize) -> Result<Vec<Line>> {
    Ok(last(&mut Tail::open(&run.log()), Some(lines), |_| true)?.into())
}

#[cfg(test)]
mod tests {
    use super::log::Log;
    use super::*;

    #[test]
    fn the_last_lines_are_whole_ones() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("log");
        let mut log = Log::open(&path).unwrap();
        log.append(Stream::Stdout, b"one\ntw").unwrap();
        log.append(Stream::Stdout, b"o\nthr").unwrap();
        let texts = |count| {
            let lines = last(&mut Tail::open(&path), count, |_| true).unwrap();
            let texts = lines
                .iter()
                .map(|line| String::from_utf8_lossy(&line.text).into_owned());
            texts.collect::<Vec<_>>()
        };
        assert_eq!(texts(None), ["one", "tw", "o", "thr"]);
        assert_eq!(texts(Some(2)), ["tw", "o", "thr"]);
        assert_eq!(texts(Some(1)), ["thr"]);
        assert!(texts(Some(0)).is_empty());
    }

    #[test]
    fn pieces_become_lines_again() {
        let at = OffsetDateTime::UNIX_EPOCH;
        let line = |text: &[u8], is_end| Line {
            at,
            stream: Stream::Stdout,
            is_end,
            text: text.to_vec(),
        };
        let mut writer = Writer {
            with_times: true,
            ..Writer::default()
        };
        let mut out = Vec::new();
        writer.write_to(&mut out, &line(b"a", false)).unwrap();
        writer.write_to(&mut out, &line(b"b", true)).unwrap();
        assert_eq!(out, b"1970-01-01T00:00:00Z ab\n");
    }
}
