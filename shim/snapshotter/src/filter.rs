//! The filters by which containerd asks for some snapshots of all: `kind==committed,labels."a.b"~=/c.*/`.
//!
//! A filter is a list of selectors that must all hold; of several filters one must. A selector is a path of fields,
//! alone (it is there) or with `==`, `!=` or `~=` and a value. Fields and values may be quoted by `"`, and a value
//! also by `/` or `|`, so that a regular expression needs no escapes.
//! <https://pkg.go.dev/github.com/containerd/containerd/v2/pkg/filters>

use regex_lite::Regex;

use crate::record::Record;
use crate::status::Status;

/// Cap on the filters of one call.
const FILTERS_MAX: usize = 64;
/// Cap on a filter, in bytes.
const FILTER_BYTES_MAX: usize = 16 * 1024;

/// The filters of one call.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
    Matches(Regex),
}

impl Filters {
    /// Reads them; none match everything.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, Status> {
        if texts.len() > FILTERS_MAX {
            return Err(Status::invalid(format!("more than {FILTERS_MAX} filters")));
        }
        let filters = texts.iter().map(|text| filter(text));
        filters.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a snapshot is asked for.
    pub(crate) fn match_record(&self, record: &Record) -> bool {
        let holds = |filter: &Vec<Selector>| filter.iter().all(|one| one.holds(record));
        self.0.is_empty() || self.0.iter().any(holds)
    }
}

impl Selector {
    fn holds(&self, record: &Record) -> bool {
        let value = field(record, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::Unequal(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(expression) => value.is_some_and(|value| expression.is_match(value)),
        }
    }
}

fn field<'a>(record: &'a Record, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&record.name),
        "parent" => Some(&record.parent),
        "kind" => Some(record.kind.name()),
        "labels" => record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

fn filter(text: &str) -> Result<Vec<Selector>, Status> {
    let bad = |reason: &str| Status::invalid(format!("filter {text:?}: {reason}"));
    if text.len() > FILTER_BYTES_MAX {
        return Err(Status::invalid(format!(
            "a filter of more than {FILTER_BYTES_MAX} bytes"
        )));
    }
    let mut selectors = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (selector, after) = selector(rest).map_err(|reason| bad(&reason))?;
        selectors.push(selector);
        rest = match after.strip_prefix(',') {
            Some("") => return Err(bad("a comma at its end")),
            Some(after) => after,
            None if after.is_empty() => after,
            None => return Err(bad("a comma is missing between two selectors")),
        };
    }
    Ok(selectors)
}

fn selector(text: &str) -> Result<(Selector, &str), String> {
    let (first, mut rest) = name(text)?;
    let mut path = vec![first];
    while let Some(after) = rest.strip_prefix('.') {
        let (next, after) = name(after)?;
        path.push(next);
        rest = after;
    }
    let Some((operator, after)) = ["==", "!=", "~="]
        .iter()
        .find_map(|word| Some((*word, rest.strip_prefix(word)?)))
    else {
        let test = Test::Present;
        return Ok((Selector { path, test }, rest));
    };
    let (value, rest) = value(after)?;
    let test = match operator {
        "==" => Test::Equal(value),
        "!=" => Test::Unequal(value),
        _ => Test::Matches(Regex::new(&value).map_err(|error| format!("{value:?}: {error}"))?),
    };
    Ok((Selector { path, test }, rest))
}

/// A field's name, and what follows.
fn name(text: &str) -> Result<(String, &str), String> {
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let is_name =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '/');
    let end = text.find(|letter| !is_name(letter)).unwrap_or(text.len());
    match text.split_at(end) {
        ("", _) => Err("a field without a name".to_owned()),
        (name, rest) => Ok((name.to_owned(), rest)),
    }
}

/// A value, and what follows.
fn value(text: &str) -> Result<(String, &str), String> {
    if let Some(quote) = text.chars().next().filter(|one| "\"/|".contains(*one)) {
        return quoted(text, quote);
    }
    let end = text.find([',', ' ', '\t', '\n']).unwrap_or(text.len());
    let (value, rest) = text.split_at(end);
    Ok((value.to_owned(), rest))
}

/// What stands between two quotes, without the escapes of quote and backslash, and what follows.
fn quoted(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut out = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == quote {
            return Ok((out, text.get(at + 1..).unwrap_or_default()));
        }
        if letter != '\\' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some((_, next)) if next == quote || next == '\\' => out.push(next),
            // It means something to a regular expression.
            Some((_, next)) if quote != '"' => out.extend(['\\', next]),
            Some((_, next)) => return Err(format!("\\{next} in quotes is not known")),
            None => break,
        }
    }
    Err(format!("a {quote} is not closed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Kind;

    fn holds(filters: &[&str]) -> bool {
        let labels = [
            ("containerd.io/snapshot.ref", "sha256:ab"),
            ("plain", "yes, it is"),
        ];
        let record = Record {
            name: "k8s.io/1/a".into(),
            kind: Kind::Committed,
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..Record::new(1)
        };
        let texts: Vec<_> = filters.iter().map(|one| (*one).to_owned()).collect();
        Filters::parse(&texts).unwrap().match_record(&record)
    }

    #[test]
    fn what_containerd_asks_by_is_understood() {
        for filters in [
            &[][..],
            &[""],
            &[r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="""#],
            &["kind==active", "kind==committed"],
            &["labels.plain"],
            &[r#"labels.plain=="yes, it is",name!=other"#],
            &["labels.plain~=/^yes.*s$/"],
            &[r"name~=|^k8s\.io/\d+/a$|"],
            &["labels.absent!=x"],
        ] {
            assert!(holds(filters), "{filters:?}");
        }
        for filters in [
            &[r#"labels."containerd.io/snapshot.ref"==sha256:abc"#][..],
            &["kind==committed,parent==p"],
            &["labels.absent"],
            &["labels.absent==x"],
            &["nothing==x"],
        ] {
            assert!(!holds(filters), "{filters:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_with_its_text() {
        let long = "a".repeat(FILTER_BYTES_MAX + 1);
        for text in [
            "=a",
            "a=b",
            "a==b,",
            "a,,b",
            "\"a",
            "a~=(",
            "a==\"b\"c",
            "a==\"\\x\"",
            &long,
        ] {
            let refused = Filters::parse(&[text.to_owned()]).unwrap_err();
            assert!(refused.reason.contains("filter"), "{refused}");
        }
        assert!(Filters::parse(&vec![String::new(); FILTERS_MAX + 1]).is_err());
    }
}
