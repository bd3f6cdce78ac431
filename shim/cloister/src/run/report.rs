//! What a bug report has of runs, and what it must not have.

use serde_json::Value;

use super::list::Row;
use super::read::log_tail;
use super::store::{Record, Run};

/// The shortest argument that may be a secret; shorter ones are words of every text.
const MIN_ARGUMENT: usize = 8;
/// The largest specification that is read, in bytes.
const MAX_SPEC: u64 = 4 << 20;

/// All runs of which there is a record.
fn all() -> Vec<(Run, Record)> {
    let runs = Run::all(None).unwrap_or_default().into_iter();
    runs.filter_map(|run| Some((run.clone(), run.read().ok()?)))
        .collect()
}

/// Where each run is, without what it runs.
pub(crate) fn states() -> Vec<Value> {
    let state = |(run, record): (Run, Record)| {
        let mut state = serde_json::to_value(Row::of(&run, &record)).ok()?;
        state.as_object_mut()?.remove("command");
        Some(state)
    };
    all().into_iter().filter_map(state).collect()
}

/// The last lines of what each run's program wrote, by its name.
pub(crate) fn log_tails(lines: usize) -> Vec<(String, String)> {
    let tail = |(run, _): (Run, Record)| {
        let lines = log_tail(&run, lines).ok()?;
        let text = lines.iter().map(|line| {
            let end = if line.is_end { "\n" } else { "" };
            format!("{}{end}", String::from_utf8_lossy(&line.text))
        });
        Some((format!("{}.{}", run.namespace, run.name), text.collect()))
    };
    all().into_iter().filter_map(tail).collect()
}

/// The values that runs were given and nobody else may see: their environments and arguments.
pub(crate) fn secrets() -> Vec<String> {
    let mut secrets = Vec::new();
    for (run, record) in all() {
        secrets.extend(record.args.into_iter().filter(|arg| may_be_secret(arg)));
        let path = run.bundle().join("config.json");
        let is_small = std::fs::metadata(&path).is_ok_and(|it| it.len() <= MAX_SPEC);
        let text = is_small.then(|| std::fs::read(&path).ok()).flatten();
        let spec: Value = serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default();
        secrets.extend(values(&spec));
    }
    secrets
}

/// The values of a specification's environment, and its annotations: init-data is in one.
fn values(spec: &Value) -> Vec<String> {
    let entries = spec["process"]["env"].as_array().into_iter().flatten();
    let environment = entries.filter_map(|entry| Some(entry.as_str()?.split_once('=')?.1));
    let annotations = spec["annotations"].as_object().into_iter().flatten();
    let annotations = annotations.filter_map(|(_, value)| value.as_str());
    environment.chain(annotations).map(str::to_owned).collect()
}

/// Paths and options are words of every text.
fn may_be_secret(argument: &str) -> bool {
    argument.len() >= MIN_ARGUMENT && !argument.starts_with(['/', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn environment_and_annotations_are_secret() {
        let spec = json!({
            "process": {"env": ["A=one=two", "B"]},
            "annotations": {"k": "v"},
        });
        assert_eq!(values(&spec), ["one=two", "v"]);
        assert!(values(&Value::Null).is_empty());
        assert!(may_be_secret("hunter2-hunter2") && !may_be_secret("/usr/bin/x"));
    }
}
