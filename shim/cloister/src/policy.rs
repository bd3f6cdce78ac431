//! `cloister policy`: what the owner's policy says of requests, told to the owner.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use evidence::init_data::content::POLICY_REGO;
use policies::POLICY_BYTES;
use policies::agent::AgentPolicy;
use serde::Deserialize;
use serde_json::Value;

use crate::init_data;
use crate::measure::read_file;

/// The exit codes of a request that is refused, and of files that cannot be read.
const REFUSED: u8 = 1;
const UNREADABLE: u8 = 2;
/// Bytes of one line of requests.
const REQUEST_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tell of requests whether the owner's policy allows them, and why not.
    ///
    /// The reason is one line: the innermost rule that does not hold, its line in the policy, the statement, and
    /// the places in the request that it looks at with what stands there.
    ///
    /// Exits with 1 where a request is refused, and with 2 where a file cannot be read.
    Explain(Explain),
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        match self {
            Self::Explain(explain) => explain.run(),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The policy, in Rego.
    #[arg(long, value_name = "FILE", required_unless_present = "init_data")]
    policy: Option<PathBuf>,
    /// Init-data that has the policy; with --policy, that one is asked in its place.
    #[arg(long, value_name = "FILE")]
    init_data: Option<PathBuf>,
    /// The requests, one a line, decided in their order with the policy's memory:
    /// {"rule": "CreateContainerRequest", "input": {...}}, or {"kind": ..., "request": {...}} as in
    /// /tmp/policy.jsonl, which Kata's agent writes.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
}

/// A request, in our words or in those of Kata's log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(alias = "kind")]
    rule: String,
    #[serde(alias = "request")]
    input: Value,
}

impl Explain {
    fn run(&self) -> anyhow::Result<u8> {
        let answered = self.answer(&mut std::io::stdout().lock());
        answered.or_else(|error| {
            eprintln!("cloister: {}", crate::words(&error));
            Ok(UNREADABLE)
        })
    }

    /// Writes a line for each request; returns the exit code.
    fn answer(&self, to: &mut impl Write) -> anyhow::Result<u8> {
        let policy = AgentPolicy::from_rego(&self.rego()?)?;
        let file = File::open(&self.request)
            .with_context(|| format!("read {}", self.request.display()))?;
        let mut requests = BufReader::new(file);
        let mut code = 0;
        for number in 1.. {
            let request = next_line(&mut requests)
                .and_then(|line| line.map(|line| parse(&line)).transpose())
                .with_context(|| format!("{} line {number}", self.request.display()))?;
            match request {
                None => break,
                // A line without anything.
                Some(None) => {}
                Some(Some(request)) => code = code.max(tell(&policy, request, to)?),
            }
        }
        Ok(code)
    }

    fn rego(&self) -> anyhow::Result<String> {
        let data = self.init_data.as_deref().map(init_data::read).transpose()?;
        match (&self.policy, data) {
            (Some(path), _) => {
                let text = String::from_utf8(read_file(path, POLICY_BYTES)?);
                text.with_context(|| format!("{} is no text", path.display()))
            }
            (None, Some(data)) => data.data().get(POLICY_REGO).cloned().with_context(|| {
                format!("init-data has no {POLICY_REGO}: name the policy with --policy")
            }),
            (None, None) => bail!("name the policy with --policy or --init-data"),
        }
    }
}

/// `None` at the end.
fn next_line(from: &mut impl BufRead) -> anyhow::Result<Option<Vec<u8>>> {
    use std::io::Read;

    let mut line = Vec::new();
    from.take(REQUEST_BYTES).read_until(b'\n', &mut line)?;
    if line.len() as u64 == REQUEST_BYTES {
        bail!("it is longer than {REQUEST_BYTES} bytes");
    }
    Ok((!line.is_empty()).then_some(line))
}

fn parse(line: &[u8]) -> anyhow::Result<Option<Request>> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let request = serde_json::from_slice(line);
    Ok(Some(request.context(
        "it is no request: write {\"rule\": \"<name>\", \"input\": {...}} on one line",
    )?))
}

fn tell(policy: &AgentPolicy, request: Request, to: &mut impl Write) -> anyhow::Result<u8> {
    let Request { rule, input } = request;
    // Before the decision, which the policy may remember.
    let why = policy.explain(&rule, input.clone());
    let shown = image_rs::shown_up_to(&rule, 64);
    let decided = policy.decide(&rule, input);
    let (code, answer) = match (decided, why) {
        (Ok(decision), _) if decision.allowed && !decision.forced => (0, "allowed".to_owned()),
        (Ok(decision), Some(why)) if decision.allowed => (
            0,
            format!("allowed by AllowRequestsFailingPolicy alone: {why}"),
        ),
        (Ok(_), why) => (REFUSED, why.unwrap_or_else(|| "refused".to_owned())),
        (Err(error), why) => (REFUSED, why.unwrap_or_else(|| error.to_string())),
    };
    writeln!(to, "{shown}: {answer}")?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const POLICY: &str = r#"package agent_policy
default CreateContainerRequest := false
CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/used", "value": true}]} if {
    not data.pstate.used
}
ExecProcessRequest if input.process.Args == ["ls"]
"#;

    fn explain(policy: &str, requests: &str) -> anyhow::Result<(u8, String)> {
        let directory = tempfile::tempdir()?;
        let explain = Explain {
            policy: Some(directory.path().join("policy.rego")),
            init_data: None,
            request: directory.path().join("policy.jsonl"),
        };
        fs::write(explain.policy.as_ref().unwrap(), policy)?;
        fs::write(&explain.request, requests)?;
        let mut told = Vec::new();
        let code = explain.answer(&mut told)?;
        Ok((code, String::from_utf8(told)?))
    }

    #[test]
    fn requests_are_decided_in_order_with_what_the_policy_remembers() {
        let requests = r#"{"rule": "CreateContainerRequest", "input": {}}

{"kind":"CreateContainerRequest","request":{}}
{"kind":"ExecProcessRequest","request":{"process":{"Args":["rm"]}}}
{"rule": "ExecProcessRequest", "input": {"process": {"Args": ["ls"]}}}"#;
        let (code, told) = explain(POLICY, requests).unwrap();
        assert_eq!(code, REFUSED);
        assert_eq!(
            told,
            "CreateContainerRequest: allowed\n\
             CreateContainerRequest: CreateContainerRequest (line 4): not data.pstate.used; data.pstate.used is true\n\
             ExecProcessRequest: ExecProcessRequest (line 6): input.process.Args == [\"ls\"]; \
             input.process.Args is [\"rm\"]\n\
             ExecProcessRequest: allowed\n"
        );
        let (code, _) = explain(POLICY, requests.lines().next().unwrap()).unwrap();
        assert_eq!(code, 0);
    }

    #[test]
    fn a_policy_that_forces_is_told() {
        let policy = format!("{POLICY}AllowRequestsFailingPolicy := true\n");
        let request = r#"{"rule": "ExecProcessRequest", "input": {"process": {"Args": []}}}"#;
        let (code, told) = explain(&policy, request).unwrap();
        assert_eq!(code, 0);
        assert!(
            told.contains("AllowRequestsFailingPolicy alone: ExecProcessRequest (line 6)"),
            "{told}"
        );
    }

    #[test]
    fn what_is_no_request_is_named_by_its_line() {
        let lines = "{\"rule\": \"X\", \"input\": {}}\n{\"rule\": \"X\"}\n";
        let error = explain(POLICY, lines).unwrap_err();
        assert!(
            crate::words(&error).contains("policy.jsonl line 2"),
            "{error:?}"
        );
        assert!(explain("no rego", "").is_err());
        let missing = Explain {
            policy: Some(PathBuf::from("/nonexistent/policy.rego")),
            init_data: None,
            request: PathBuf::from("/nonexistent/policy.jsonl"),
        };
        assert_eq!(missing.run().unwrap(), UNREADABLE);
    }
}
