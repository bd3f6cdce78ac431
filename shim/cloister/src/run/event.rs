//! What happened to runs, as lines of JSON in one file for all of a user's: what their shims publish, as
//! containerd would get it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use containerd_shim_protos::events::task as told;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::Events;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ttrpc::r#async::TtrpcContext;

use super::store::Run;

/// The file, and what it may have before it is put aside.
const FILE: &str = "@events";
const MAX_FILE: u64 = 4 << 20;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) time: OffsetDateTime,
    /// The run's namespace.
    pub(crate) namespace: String,
    /// The run.
    pub(crate) name: String,
    /// What: `create`, `start`, `exec-added`, `exec-started`, `exit`, `oom`, `paused`, `resumed`, `delete`, `remove`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The further process, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exec: Option<String>,
    /// The exit code, where something ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<u32>,
}

impl Event {
    /// Of a run, now.
    pub(crate) fn now(run: &Run, kind: &str) -> Self {
        Self {
            time: OffsetDateTime::now_utc(),
            namespace: run.namespace.clone(),
            name: run.name.clone(),
            kind: kind.to_owned(),
            exec: None,
            code: None,
        }
    }

    fn of(run: &Run, topic: &str, any: &Any) -> Self {
        let kind = topic.rsplit('/').next().unwrap_or(topic);
        let mut event = Self::now(run, kind);
        let exec = |id: String| Some(id).filter(|id| !id.is_empty() && *id != run.name);
        match kind {
            "exit" => {
                if let Ok(told) = told::TaskExit::parse_from_bytes(&any.value) {
                    event.code = Some(told.exit_status);
                    event.exec = exec(told.id);
                }
            }
            "exec-added" => {
                if let Ok(told) = told::TaskExecAdded::parse_from_bytes(&any.value) {
                    event.exec = exec(told.exec_id);
                }
            }
            "exec-started" => {
                if let Ok(told) = told::TaskExecStarted::parse_from_bytes(&any.value) {
                    event.exec = exec(told.exec_id);
                }
            }
            _ => {}
        }
        event
    }

    /// Appends it to the file of all. Two writers wait for each other, so that lines stay whole.
    pub(crate) fn append(&self, root: &Path) -> io::Result<()> {
        let path = path(root);
        let open = || {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600).open(&path)
        };
        let mut file = open()?;
        flock(&file, FlockOperation::LockExclusive)?;
        if file.metadata()?.len() > MAX_FILE {
            std::fs::rename(&path, super::log::before(&path))?;
            file = open()?;
        }
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

/// Where the events of all runs are.
pub(crate) fn path(root: &Path) -> PathBuf {
    root.join(FILE)
}

/// Reads the file's lines from a place on; returns the events and the place after the last whole line.
pub(crate) fn read(file: &mut File, from: u64) -> io::Result<(Vec<Event>, u64)> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(2 * MAX_FILE).read_to_end(&mut bytes)?;
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let lines = bytes
        .get(..whole)
        .unwrap_or_default()
        .split(|byte| *byte == b'\n');
    let events = lines.filter_map(|line| serde_json::from_slice(line).ok());
    Ok((
        events.collect(),
        from + u64::try_from(whole).unwrap_or_default(),
    ))
}

/// Takes a shim's events in containerd's place.
pub(crate) struct Receiver(pub(crate) Run);

#[async_trait]
impl Events for Receiver {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let event = Event::of(&self.0, &envelope.topic, &envelope.event);
        // An event that cannot be written must not hold up the run.
        let _ = event.append(self.0.root());
        Ok(Empty::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shims_event_says_what_ended_and_how() {
        let run = Run::of("default", "web").unwrap();
        let exit = |id: &str| {
            let told = told::TaskExit {
                container_id: "web".into(),
                id: id.into(),
                exit_status: 7,
                ..Default::default()
            };
            let any = shim::event::any(&told).unwrap();
            Event::of(&run, "/tasks/exit", &any)
        };
        let first = exit("web");
        assert_eq!(
            (first.kind.as_str(), first.exec, first.code),
            ("exit", None, Some(7))
        );
        assert_eq!(exit("e1").exec.as_deref(), Some("e1"));
    }

    #[test]
    fn events_are_read_on_from_where_one_stopped() {
        let state = tempfile::tempdir().unwrap();
        let run = Run::of("default", "web").unwrap();
        Event::now(&run, "create").append(state.path()).unwrap();
        let mut file = File::open(path(state.path())).unwrap();
        let (events, at) = read(&mut file, 0).unwrap();
        assert_eq!(events.len(), 1);
        Event::now(&run, "start").append(state.path()).unwrap();
        let (events, _) = read(&mut file, at).unwrap();
        assert_eq!(
            events.iter().map(|it| it.kind.as_str()).collect::<Vec<_>>(),
            ["start"]
        );
    }
}
