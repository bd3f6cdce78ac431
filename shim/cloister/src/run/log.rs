//! The log of a run: what its program wrote, line by line in the form of the container runtime interface,
//! which other tools read too.
//!
//! ```text
//!   2026-11-26T12:00:00.123456789Z stdout F a whole line
//!   2026-11-26T12:00:00.123456789Z stderr P a piece of one, which the next of its stream goes on with
//! ```
//!
//! At [`MAX_FILE`] the file becomes `log.1` in place of the one before: a run takes at most twice that.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The size at which a file is put aside.
const MAX_FILE: u64 = 10 << 20;
/// The longest text of one line of the file; a longer one of the program's comes in pieces.
const MAX_TEXT: usize = 16 * 1024;
/// The longest line of the file.
const MAX_LINE: u64 = MAX_TEXT as u64 + 128;

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The file that was put aside.
pub(crate) fn before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    PathBuf::from(name)
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    cap: u64,
}

impl Log {
    /// Opens it, for its owner alone.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::with_cap(path, MAX_FILE)
    }

    fn with_cap(path: &Path, cap: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
            cap,
        })
    }

    /// Writes what a stream brought.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        let now = now.unwrap_or_default();
        let mut lines = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = line.strip_suffix(b"\n");
            let mut pieces = text.unwrap_or(line).chunks(MAX_TEXT).peekable();
            if pieces.peek().is_none() {
                // An empty line.
                push(&mut lines, &now, stream, true, b"");
            }
            while let Some(piece) = pieces.next() {
                let is_end = text.is_some() && pieces.peek().is_none();
                push(&mut lines, &now, stream, is_end, piece);
            }
        }
        let size = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(size) > self.cap {
            std::fs::rename(&self.path, before(&self.path))?;
            *self = Self::with_cap(&self.path, self.cap)?;
        }
        self.file.write_all(&lines)?;
        self.size = self.size.saturating_add(size);
        Ok(())
    }
}

fn push(lines: &mut Vec<u8>, now: &str, stream: Stream, is_end: bool, text: &[u8]) {
    let tag = if is_end { 'F' } else { 'P' };
    lines.extend_from_slice(format!("{now} {} {tag} ", stream.name()).as_bytes());
    lines.extend_from_slice(text);
    lines.push(b'\n');
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) at: OffsetDateTime,
    pub(crate) stream: Stream,
    /// Whether the program's line ends with it.
    pub(crate) is_end: bool,
    pub(crate) text: Vec<u8>,
}

impl Line {
    /// `None` where it is not of our form: a crash may have cut one.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut word = || std::str::from_utf8(parts.next()?).ok();
        let at = OffsetDateTime::parse(word()?, &Rfc3339).ok()?;
        let stream = match word()? {
            "stdout" => Stream::Stdout,
            "stderr" => Stream::Stderr,
            _ => return None,
        };
        let is_end = match word()? {
            "F" => true,
            "P" => false,
            _ => return None,
        };
        let text = parts.next()?.to_vec();
        Some(Self {
            at,
            stream,
            is_end,
            text,
        })
    }
}

/// The reading end: what is there, and then what comes.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    /// Files that are read before the one that still grows.
    files: VecDeque<BufReader<File>>,
    /// The start of a line whose rest is not written yet.
    part: Vec<u8>,
    inode: Option<u64>,
}

impl Tail {
    /// From the oldest line that there is.
    pub(crate) fn open(path: &Path) -> Self {
        let mut tail = Self {
            path: path.to_owned(),
            files: VecDeque::new(),
            part: Vec::new(),
            inode: None,
        };
        if let Ok(file) = File::open(before(path)) {
            tail.files.push_back(BufReader::new(file));
        }
        tail.look();
        tail
    }

    /// Takes up the file that is there now, where it is another one.
    fn look(&mut self) {
        if let Ok(file) = File::open(&self.path)
            && let Ok(metadata) = file.metadata()
            && self.inode != Some(metadata.ino())
        {
            self.inode = Some(metadata.ino());
            self.files.push_back(BufReader::new(file));
        }
    }

    /// The next line; `None` where nobody has written one yet.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let Some(file) = self.files.front_mut() else {
                self.look();
                if self.files.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            let room = MAX_LINE.saturating_sub(u64::try_from(self.part.len()).unwrap_or(MAX_LINE));
            let read = file.take(room).read_until(b'\n', &mut self.part)?;
            if self.part.last() == Some(&b'\n') || room == 0 {
                let mut line = std::mem::take(&mut self.part);
                line.pop();
                if let Some(line) = Line::parse(&line) {
                    return Ok(Some(line));
                }
            } else if read == 0 {
                // Its end so far. Where another file took its place, what was written to it before that is
                // read first.
                if self.files.len() > 1 {
                    self.part.clear();
                    self.files.pop_front();
                    continue;
                }
                self.look();
                if self.files.len() == 1 {
                    return Ok(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tail: &mut Tail) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(line) = tail.next().unwrap() {
            let end = if line.is_end { "" } else { "…" };
            texts.push(format!("{}{end}", String::from_utf8_lossy(&line.text)));
        }
        texts
    }

    #[test]
    fn lines_and_pieces_come_back_as_they_were_written() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("log");
        let mut log = Log::open(&path).unwrap();
        let mut tail = Tail::open(&path);
        assert!(texts(&mut tail).is_empty());
        log.append(Stream::Stdout, b"one\n\ntwo").unwrap();
        assert_eq!(texts(&mut tail), ["one", "", "two…"]);
        log.append(Stream::Stderr, b"\xff err\n").unwrap();
        let line = tail.next().unwrap().unwrap();
        assert_eq!(
            (line.stream, line.text.as_slice()),
            (Stream::Stderr, &b"\xff err"[..])
        );
        log.append(Stream::Stdout, &vec![b'x'; MAX_TEXT + 1])
            .unwrap();
        assert_eq!(texts(&mut tail).len(), 2);
    }

    #[test]
    fn a_log_is_put_aside_at_its_cap_and_followed_across() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("log");
        let mut log = Log::with_cap(&path, 1000).unwrap();
        let mut tail = Tail::open(&path);
        let mut read = Vec::new();
        for number in 0..100 {
            log.append(Stream::Stdout, format!("{number}\n").as_bytes())
                .unwrap();
            read.extend(texts(&mut tail));
        }
        let all: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(read, all);
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) <= 1000 && size(&before(&path)) <= 1000);
        // Who comes late has the last of it.
        let late = texts(&mut Tail::open(&path));
        assert!(late.len() >= 20 && all.ends_with(&late), "{late:?}");
    }

    #[test]
    fn a_line_that_is_none_is_passed_over() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("log");
        std::fs::write(&path, b"rubbish\n2026-11-26T12:00:00Z stdout F good\n2026").unwrap();
        assert_eq!(texts(&mut Tail::open(&path)), ["good"]);
    }
}
