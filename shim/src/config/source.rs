//! A configuration file with its drop-ins as one flat list of settings, each with its place.
//!
//! ```text
//!   configuration.toml ─┐
//!   config.d/10-a.toml ─┼─► "hypervisor.qemu.path" = value, file:line     the later one counts
//!   config.d/20-b.toml ─┘
//! ```
//!
//! Tables merge and everything else is replaced, as Kata does it. Nothing here knows a key.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::problem::{Place, Problem};

/// No configuration of people's is larger.
const MAX_FILE: u64 = 1024 * 1024;
/// No directory of drop-ins has more.
const MAX_DROP_INS: usize = 256;
/// Settings of one file; Kata's own have some 120.
const MAX_SETTINGS: usize = 4096;

/// One key's value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// All files together.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// By the key with its table.
    pub(super) settings: BTreeMap<String, Setting>,
    /// The tables that are named, also empty ones, and where first.
    pub(super) tables: BTreeMap<String, Place>,
    /// The files that were read, in their order.
    pub(super) files: Vec<PathBuf>,
}

impl Source {
    /// Reads a file and its drop-ins. What cannot be read is a problem, and the rest is read on.
    pub(super) fn read(path: &Path, problems: &mut Vec<Problem>) -> Self {
        let mut source = Self::default();
        source.add(path, problems);
        match drop_ins(path) {
            Ok(paths) => paths.iter().for_each(|path| source.add(path, problems)),
            Err(problem) => problems.push(problem),
        }
        source
    }

    /// The value and the place of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Setting> {
        self.settings.get(key)
    }

    fn add(&mut self, path: &Path, problems: &mut Vec<Problem>) {
        self.files.push(path.to_owned());
        if let Err(problem) = read_text(path).and_then(|text| self.add_text(path, &text)) {
            problems.push(problem);
        }
    }

    fn add_text(&mut self, path: &Path, text: &str) -> Result<(), Problem> {
        let lines = Lines::new(path, text);
        let not_toml = |error: &toml::de::Error| Problem {
            place: Some(lines.place(error.span().unwrap_or_default())),
            key: String::new(),
            reason: format!("is not TOML: {}", error.message()),
            fix: String::new(),
        };
        let spans = DeTable::parse(text).map_err(|error| not_toml(&error))?;
        let values: Table = text.parse().map_err(|error| not_toml(&error))?;
        let mut found = Vec::new();
        self.flatten("", spans.get_ref(), &values, &lines, &mut found);
        if found.len() > MAX_SETTINGS {
            return Err(whole(path, format!("has more than {MAX_SETTINGS} keys")));
        }
        self.settings.extend(found);
        Ok(())
    }

    /// Walks the places and the values of one document side by side. The parser bounds the depth.
    fn flatten(
        &mut self,
        above: &str,
        spans: &DeTable<'_>,
        values: &Table,
        lines: &Lines,
        found: &mut Vec<(String, Setting)>,
    ) {
        for (key, span) in spans {
            let Some(value) = values.get(key.get_ref().as_ref()) else {
                continue;
            };
            let path = join(above, key.get_ref());
            let place = lines.place(key.span());
            match (span.get_ref(), value) {
                (DeValue::Table(spans), Value::Table(values)) => {
                    self.tables.entry(path.clone()).or_insert(place);
                    self.flatten(&path, spans, values, lines, found);
                }
                (_, value) => {
                    let value = value.clone();
                    found.push((path, Setting { value, place }));
                }
            }
        }
    }
}

/// Where lines begin, for the place of a byte.
struct Lines {
    path: Arc<PathBuf>,
    starts: Vec<usize>,
}

impl Lines {
    fn new(path: &Path, text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            path: Arc::new(path.to_owned()),
            starts: ends.map(|(index, _)| index + 1).collect(),
        }
    }

    fn place(&self, span: Range<usize>) -> Place {
        Place {
            path: Arc::clone(&self.path),
            line: self.starts.partition_point(|start| *start <= span.start) + 1,
        }
    }
}

/// A key below its table. One that is not a bare key is quoted, so that it is never taken for a
/// path of two.
fn join(above: &str, key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let key = match !key.is_empty() && key.bytes().all(bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    };
    match above {
        "" => key,
        above => format!("{above}.{key}"),
    }
}

fn read_text(path: &Path) -> Result<String, Problem> {
    let failed = |error: std::io::Error| whole(path, format!("cannot be read: {error}"));
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    match u64::try_from(text.len()).is_ok_and(|len| len > MAX_FILE) {
        true => Err(whole(path, format!("has more than {MAX_FILE} bytes"))),
        false => Ok(text),
    }
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    // A link leads to the real file, whose directory the drop-ins are in.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(directory) = real.parent().map(|parent| parent.join("config.d")) else {
        return Ok(Vec::new());
    };
    let failed = |error: std::io::Error| whole(&directory, format!("cannot be read: {error}"));
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
        if paths.len() > MAX_DROP_INS {
            let reason = format!("has more than {MAX_DROP_INS} drop-ins");
            return Err(whole(&directory, reason));
        }
    }
    paths.sort();
    Ok(paths)
}

fn whole(path: &Path, reason: String) -> Problem {
    Problem {
        place: Some(Place::file(path.to_owned())),
        key: String::new(),
        reason,
        fix: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<Source, Problem> {
        let mut source = Source::default();
        source.add_text(Path::new("/c.toml"), text)?;
        Ok(source)
    }

    fn at(source: &Source, key: &str) -> String {
        source.get(key).unwrap().place.to_string()
    }

    #[test]
    fn each_setting_knows_its_line() {
        let source =
            source("# c\n[a.b]\nx = 1\n\ny = [\n 2,\n]\n[a.b.c]\nz = true\n[[a.d]]\nq=1\n");
        let source = source.unwrap();
        assert_eq!(at(&source, "a.b.x"), "/c.toml:3");
        assert_eq!(at(&source, "a.b.y"), "/c.toml:5");
        assert_eq!(at(&source, "a.b.c.z"), "/c.toml:9");
        assert!(source.get("a.d").unwrap().value.is_array());
        assert!(source.tables.contains_key("a.b"));
    }

    #[test]
    fn a_key_with_a_dot_is_not_taken_for_a_path() {
        let source = source("[a]\n\"b.c\" = 1").unwrap();
        assert!(source.get("a.b.c").is_none());
        assert!(source.get("a.\"b.c\"").is_some());
    }

    #[test]
    fn what_is_not_toml_has_its_line() {
        let problem = source("a = 1\nb = = 2\n").unwrap_err();
        assert!(problem.to_string().starts_with("/c.toml:2: "), "{problem}");
    }

    #[test]
    fn a_drop_in_replaces_single_keys() {
        let mut all = source("[a]\nx = 1\ny = [1, 2]\n").unwrap();
        all.add_text(Path::new("/d.toml"), "[a]\ny = []").unwrap();
        assert_eq!(at(&all, "a.x"), "/c.toml:2");
        assert_eq!(at(&all, "a.y"), "/d.toml:2");
        assert_eq!(all.get("a.y").unwrap().value, Value::Array(Vec::new()));
    }
}
