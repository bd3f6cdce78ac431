//! The one place that asks the owner's policy.
//!
//! [`Gate::admit`] turns a request into an [`Allowed`] one, and the code that does something takes
//! nothing else, so that no path around the policy compiles. Only `grpc.Health` passes without.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use agent_api::content::{ContentFile, PutContentRequest};
use agent_api::{ErrorCode, GuestError, StreamKind, StreamLine, agent, limit, pull};
use evidence::Tee;
use policies::agent::AgentPolicy;
use rustix::fs::FileType;
use serde::Serialize;
use serde_json::Value;

use crate::content;

const PHASE: &str = "policy";

/// A request that a policy can decide about.
pub trait Gated: Serialize {
    /// The name of the policy's rule: the message's name.
    const RULE: &'static str;

    /// What the policy sees.
    ///
    /// # Errors
    ///
    /// The message has no JSON form.
    fn input(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(self)
    }
}

macro_rules! gated {
    ($($message:ident)*) => {
        $(impl Gated for agent::$message {
            const RULE: &'static str = stringify!($message);
        })*
    };
}

gated! {
    AddARPNeighborsRequest AddSwapPathRequest AddSwapRequest CloseStdinRequest
    CreateContainerRequest CreateSandboxRequest DestroySandboxRequest ExecProcessRequest
    GetDiagnosticDataRequest GetIPTablesRequest GetMetricsRequest GetOOMEventRequest
    GuestDetailsRequest ListInterfacesRequest ListRoutesRequest MemAgentCompactConfig
    MemAgentMemcgConfig MemHotplugByProbeRequest OnlineCPUMemRequest PauseContainerRequest
    ReadStreamRequest RemoveContainerRequest RemoveStaleVirtiofsShareMountsRequest
    ReseedRandomDevRequest ResizeVolumeRequest ResumeContainerRequest SetGuestDateTimeRequest
    SetIPTablesRequest SetPolicyRequest SignalProcessRequest StartContainerRequest
    StatsContainerRequest TtyWinResizeRequest UpdateContainerRequest
    UpdateEphemeralMountsRequest UpdateInterfaceRequest UpdateRoutesRequest VolumeStatsRequest
    WaitProcessRequest WriteStreamRequest
}

impl Gated for pull::WatchPullRequest {
    const RULE: &'static str = "WatchPullRequest";
}

impl Gated for agent::CopyFileRequest {
    const RULE: &'static str = "CopyFileRequest";

    /// Everything but the data, which may be long and which no policy reads. The target of a
    /// symbolic link is data too, but a policy must see it.
    fn input(&self) -> Result<Value, serde_json::Error> {
        let mut input = serde_json::json!({
            "path": self.path,
            "file_size": self.file_size,
            "file_mode": self.file_mode,
            "dir_mode": self.dir_mode,
            "uid": self.uid,
            "gid": self.gid,
            "offset": self.offset,
            "symlink_src": "",
        });
        if FileType::from_raw_mode(self.file_mode) == FileType::Symlink {
            input["symlink_src"] = String::from_utf8_lossy(&self.data).into();
        }
        Ok(input)
    }
}

/// A request that the policy allows. Only a [`Gate`] makes one.
#[derive(Debug)]
pub struct Allowed<R> {
    request: R,
}

impl<R> Allowed<R> {
    /// The request.
    #[must_use]
    pub fn into_request(self) -> R {
        self.request
    }
}

impl<R> std::ops::Deref for Allowed<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.request
    }
}

impl Allowed<PutContentRequest> {
    /// Its files, for the guest to open those that are sealed: the policy has seen all that it is to see.
    pub fn files_mut(&mut self) -> &mut Vec<ContentFile> {
        &mut self.request.files
    }
}

/// Output that a host asks for: shown to it, or taken from the process and dropped.
#[derive(Debug)]
pub enum Output {
    /// The policy shows it.
    Shown(Allowed<agent::ReadStreamRequest>),
    /// The policy hides it.
    Hidden(Drain),
}

/// Leave to take output that nobody sees, so that the process does not wait for a reader for ever.
/// Only [`Gate::admit_read`] makes one.
#[derive(Debug)]
pub struct Drain {
    request: agent::ReadStreamRequest,
}

impl Drain {
    /// The container whose output it is.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.request.container_id
    }

    /// The process in it; empty or the container's id for the first one.
    #[must_use]
    pub fn exec_id(&self) -> &str {
        &self.request.exec_id
    }
}

/// Leave to find one stream of a process, and to carry it for as long as the policy allows. Only
/// [`Gate::admit_stream`] makes one.
#[derive(Debug)]
pub struct Leave {
    line: StreamLine,
    allowed: bool,
    /// The policy that was asked.
    policy: u64,
}

impl Leave {
    /// Which stream of which process.
    #[must_use]
    pub fn line(&self) -> &StreamLine {
        &self.line
    }
}

/// Holds the policy in force.
#[derive(Debug)]
pub struct Gate {
    policy: RwLock<Arc<AgentPolicy>>,
    /// How many policies were in force before.
    replaced: AtomicU64,
    /// Whoever replaces it.
    turn: tokio::sync::Mutex<()>,
    is_confidential: bool,
    /// Nothing is kept from the host, which may as well be told why it is refused.
    tells_why: bool,
}

impl Gate {
    /// The gate of a guest: the owner's policy where init-data has one; without one a plain VM
    /// allows all, and a guest in a TEE nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::PolicyInvalid`]: the policy does not compile.
    pub fn new(tee: Option<Tee>, policy: Option<&str>) -> Result<Self, GuestError> {
        let policy = match (policy, tee) {
            (Some(rego), _) => AgentPolicy::from_rego(rego),
            (None, None) => {
                tracing::info!("no policy in a plain VM: every request is allowed");
                AgentPolicy::allow_all()
            }
            (None, Some(_)) => AgentPolicy::deny_all(),
        };
        let policy = policy.map_err(|e| GuestError::new(ErrorCode::PolicyInvalid, PHASE, e))?;
        Ok(Self {
            policy: RwLock::new(Arc::new(policy)),
            replaced: AtomicU64::new(0),
            turn: tokio::sync::Mutex::default(),
            is_confidential: tee.is_some(),
            tells_why: tee.is_none_or(|tee| !tee.is_hardware()),
        })
    }

    /// Whether the guest is in a TEE.
    #[must_use]
    pub fn is_confidential(&self) -> bool {
        self.is_confidential
    }

    /// Asks the policy about output. A refusal hides the output and stops no process.
    pub fn admit_read(&self, request: agent::ReadStreamRequest) -> Output {
        match self.decide(agent::ReadStreamRequest::RULE, request.input()) {
            Ok(()) => Output::Shown(Allowed { request }),
            Err(_) => Output::Hidden(Drain { request }),
        }
    }

    /// Asks the policy about a stream that a connection of its own is to carry, as Kata's calls for it would
    /// ask: by `ReadStreamRequest`, or by `WriteStreamRequest` before there are data. A refusal hides
    /// output and stops no process.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::PolicyDenied`] for input.
    pub fn admit_stream(&self, line: StreamLine) -> Result<Leave, GuestError> {
        let policy = self.replaced.load(Ordering::Acquire);
        let asked = self.ask_stream(&line);
        if line.kind() == StreamKind::Stdin {
            asked.clone()?;
        }
        let allowed = asked.is_ok();
        Ok(Leave {
            line,
            allowed,
            policy,
        })
    }

    /// Whether a stream may be carried now: the policy is asked again after it was replaced.
    pub fn still_allows(&self, leave: &mut Leave) -> bool {
        let policy = self.replaced.load(Ordering::Acquire);
        if policy != leave.policy {
            leave.allowed = self.ask_stream(&leave.line).is_ok();
            leave.policy = policy;
        }
        leave.allowed
    }

    fn ask_stream(&self, line: &StreamLine) -> Result<(), GuestError> {
        let (container_id, exec_id) = (line.container().to_owned(), line.exec().to_owned());
        if line.kind() == StreamKind::Stdin {
            let request = agent::WriteStreamRequest {
                container_id,
                exec_id,
                ..Default::default()
            };
            return self.admit(request).map(drop);
        }
        let request = agent::ReadStreamRequest {
            container_id,
            exec_id,
            len: u32::try_from(limit::STREAM_CHUNK).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let rule = agent::ReadStreamRequest::RULE;
        self.decide(rule, request.input())
            .map_err(|why| blocked(rule, why))
    }

    /// Asks the policy.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::PolicyDenied`]. What the policy printed is the owner's and stays here: the host of a guest in
    /// a hardware TEE learns only which request it was. That of any other guest is told why, in one line.
    pub fn admit<R: Gated>(&self, request: R) -> Result<Allowed<R>, GuestError> {
        self.ask(R::RULE, || request.input())?;
        Ok(Allowed { request })
    }

    /// Asks the policy about content of the host, as Kata's `CopyFile` for the same would ask: for a new
    /// slot at `place`, and for each file at its place below.
    ///
    /// # Errors
    ///
    /// As [`Gate::admit`], at the first that it does not allow.
    pub fn admit_content(
        &self,
        request: PutContentRequest,
        place: &str,
        new: bool,
    ) -> Result<Allowed<PutContentRequest>, GuestError> {
        let rule = agent::CopyFileRequest::RULE;
        for entry in content::entries(&request, place, new) {
            self.ask(rule, || entry.input())?;
        }
        Ok(Allowed { request })
    }

    /// Asks the policy about what a container wants of its guest. A policy without such a rule allows what is
    /// usual, and nothing else.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::PolicyDenied`].
    pub fn admit_workload(
        &self,
        rule: &str,
        input: &Value,
        is_usual: bool,
    ) -> Result<(), GuestError> {
        let has_rule = self.policy().has_rule(rule).unwrap_or(true);
        if !has_rule && is_usual {
            return Ok(());
        }
        self.ask(rule, || Ok(input.clone()))
    }

    fn ask(
        &self,
        rule: &str,
        input: impl Fn() -> Result<Value, serde_json::Error>,
    ) -> Result<(), GuestError> {
        let Err(why) = self.decide(rule, input()) else {
            return Ok(());
        };
        let line = match input() {
            Ok(input) if self.tells_why => self.policy().explain(rule, input),
            Ok(_) | Err(_) => None,
        };
        Err(blocked(
            rule,
            &line.map_or(why.to_owned(), |line| format!(": {line}")),
        ))
    }

    /// Why not, as far as every host may know it.
    fn decide(
        &self,
        rule: &str,
        input: Result<Value, serde_json::Error>,
    ) -> Result<(), &'static str> {
        let input = input.map_err(|_| ": it has no JSON form")?;
        let decision = self
            .policy()
            .decide(rule, input)
            .map_err(|_| ": the rule cannot be evaluated; test it with the same input")?;
        if !decision.allowed {
            return Err("");
        }
        if decision.forced {
            tracing::warn!(
                rule,
                "denied by policy, and let pass by AllowRequestsFailingPolicy"
            );
        }
        Ok(())
    }

    /// Replaces the policy, if the one in force allows it, after `recorded` has come to its end. One after another, so
    /// that the last one recorded is the one in force.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::PolicyDenied`], [`ErrorCode::PolicyInvalid`], or that of `recorded`: the old policy stays.
    pub async fn replace(
        &self,
        request: agent::SetPolicyRequest,
        recorded: impl Future<Output = Result<(), GuestError>>,
    ) -> Result<(), GuestError> {
        let _turn = self.turn.lock().await;
        let request = self.admit(request)?;
        let policy = AgentPolicy::from_rego(&request.policy)
            .map_err(|e| GuestError::new(ErrorCode::PolicyInvalid, PHASE, e))?;
        recorded.await?;
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        // After the policy: who sees the new number asks the new policy.
        self.replaced.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn policy(&self) -> Arc<AgentPolicy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn blocked(rule: &str, why: &str) -> GuestError {
    let message = format!("{rule} is blocked by policy{why}");
    GuestError::new(ErrorCode::PolicyDenied, PHASE, message)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use agent::{CopyFileRequest, CreateContainerRequest, SetPolicyRequest, StartContainerRequest};

    fn code<T: std::fmt::Debug>(result: Result<T, GuestError>) -> ErrorCode {
        result.unwrap_err().code
    }

    #[test]
    fn without_a_policy_a_plain_vm_allows_and_a_tee_denies() {
        let plain = Gate::new(None, None).unwrap();
        assert!(plain.admit(StartContainerRequest::new()).is_ok());
        let tee = Gate::new(Some(Tee::Sample), None).unwrap();
        assert_eq!(
            code(tee.admit(StartContainerRequest::new())),
            ErrorCode::PolicyDenied
        );
        assert_eq!(
            code(tee.admit(SetPolicyRequest::new())),
            ErrorCode::PolicyDenied
        );
    }

    #[test]
    fn a_policy_without_a_rule_for_workloads_allows_what_is_usual() {
        let ask = |rego: &str, is_usual| {
            let gate = Gate::new(Some(Tee::Sample), Some(rego)).unwrap();
            let input = serde_json::json!({"container": {"name": "web"}});
            gate.admit_workload("GetResourceRequest", &input, is_usual)
                .is_ok()
        };
        let none = "package agent_policy\nX := true";
        assert!(ask(none, true) && !ask(none, false));
        let web = "package agent_policy\nGetResourceRequest if input.container.name == \"web\"";
        assert!(ask(web, true) && ask(web, false));
        // A rule that is undefined for this caller is no missing rule.
        let other = "package agent_policy\nGetResourceRequest if input.container.name == \"db\"";
        assert!(!ask(other, true) && !ask(other, false));
    }

    #[test]
    fn how_far_a_pull_is_is_told_as_the_policy_says() {
        let request = || pull::WatchPullRequest {
            container_id: "c".to_owned(),
            ..Default::default()
        };
        let plain = Gate::new(None, None).unwrap();
        assert_eq!(plain.admit(request()).unwrap().container_id, "c");
        let rego = "package agent_policy\n\
            import rego.v1\n\
            default WatchPullRequest := false\n\
            WatchPullRequest if input == {\"container_id\": \"c\", \"seen\": 0}\n";
        let gate = Gate::new(Some(Tee::Sample), Some(rego)).unwrap();
        assert!(gate.admit(request()).is_ok());
        let other = pull::WatchPullRequest::new();
        assert_eq!(code(gate.admit(other)), ErrorCode::PolicyDenied);
    }

    #[test]
    fn output_that_the_policy_does_not_show_is_only_drained() {
        let mut request = agent::ReadStreamRequest::new();
        request.container_id = "c".to_owned();
        let plain = Gate::new(None, None).unwrap();
        assert!(matches!(
            plain.admit_read(request.clone()),
            Output::Shown(_)
        ));
        let tee = Gate::new(Some(Tee::Sample), None).unwrap();
        let Output::Hidden(drain) = tee.admit_read(request) else {
            panic!("a guest in a TEE without a policy shows nothing");
        };
        assert_eq!((drain.container_id(), drain.exec_id()), ("c", ""));
    }

    #[tokio::test]
    async fn a_stream_is_carried_for_as_long_as_the_policy_in_force_allows() {
        let stream = |kind| StreamLine::new(kind, "c", "").unwrap();
        let gate = Gate::new(None, None).unwrap();
        let mut output = gate.admit_stream(stream(StreamKind::Stdout)).unwrap();
        let mut input = gate.admit_stream(stream(StreamKind::Stdin)).unwrap();
        assert!(gate.still_allows(&mut output) && gate.still_allows(&mut input));
        let mut request = SetPolicyRequest::new();
        request.policy = "package agent_policy\n\
            import rego.v1\n\
            default ReadStreamRequest := false\n\
            default WriteStreamRequest := false\n\
            WriteStreamRequest if input.container_id == \"c\"\n"
            .into();
        gate.replace(request, ready(Ok(()))).await.unwrap();
        assert!(!gate.still_allows(&mut output));
        assert!(gate.still_allows(&mut input));
        // Output is hidden, input is refused.
        let mut hidden = gate.admit_stream(stream(StreamKind::Stderr)).unwrap();
        assert!(!gate.still_allows(&mut hidden));
        let other = StreamLine::new(StreamKind::Stdin, "d", "").unwrap();
        assert_eq!(code(gate.admit_stream(other)), ErrorCode::PolicyDenied);
    }

    #[test]
    fn the_policy_sees_the_request_as_kata_prints_it() {
        let rego = "package agent_policy\n\
            import rego.v1\n\
            default CreateContainerRequest := false\n\
            CreateContainerRequest if input.OCI.Process.Args == [\"true\"]\n";
        let gate = Gate::new(Some(Tee::Sample), Some(rego)).unwrap();
        let mut request = CreateContainerRequest::new();
        request
            .OCI
            .mut_or_insert_default()
            .Process
            .mut_or_insert_default()
            .Args = vec!["true".into()];
        assert_eq!(
            gate.admit(request.clone()).unwrap().OCI.Process.Args,
            ["true"]
        );
        request
            .OCI
            .mut_or_insert_default()
            .Process
            .mut_or_insert_default()
            .Args = vec!["false".into()];
        assert_eq!(code(gate.admit(request.clone())), ErrorCode::PolicyDenied);
        // A rule that is not there denies.
        assert_eq!(
            code(gate.admit(StartContainerRequest::new())),
            ErrorCode::PolicyDenied
        );
    }

    #[test]
    fn the_host_learns_why_only_where_nothing_is_kept_from_it() {
        let rego = "package agent_policy\n\
            import rego.v1\n\
            default StartContainerRequest := false\n\
            StartContainerRequest if input.container_id == \"web\"\n\
            SignalProcessRequest if count(input.signal) == 0\n";
        let told = |tee, request: &StartContainerRequest| {
            let gate = Gate::new(tee, Some(rego)).unwrap();
            let fails = gate.admit(agent::SignalProcessRequest::new()).unwrap_err();
            (
                gate.admit(request.clone()).unwrap_err().message,
                fails.message,
            )
        };
        let mut request = StartContainerRequest::new();
        request.container_id = "db".into();
        for tee in [Some(Tee::Snp), Some(Tee::Tdx)] {
            let (refused, fails) = told(tee, &request);
            assert_eq!(refused, "StartContainerRequest is blocked by policy");
            assert_eq!(
                fails,
                "SignalProcessRequest is blocked by policy: the rule cannot be evaluated; test it with the same input"
            );
        }
        let soft = [Some(Tee::Sample), Some(Tee::SimSnp), Some(Tee::SimTdx)];
        for tee in [None].into_iter().chain(soft) {
            let (refused, fails) = told(tee, &request);
            assert_eq!(
                refused,
                "StartContainerRequest is blocked by policy: StartContainerRequest (line 4): \
                 input.container_id == \"web\"; input.container_id is \"db\""
            );
            assert!(
                fails.contains("blocked by policy: the evaluation fails in line 5"),
                "{fails}"
            );
        }
    }

    #[tokio::test]
    async fn a_policy_is_replaced_only_when_the_one_in_force_allows_it_and_it_is_recorded() {
        let gate = Gate::new(None, None).unwrap();
        let mut request = SetPolicyRequest::new();
        request.policy = "package agent_policy\ndefault SetPolicyRequest := false\n".into();
        let full = GuestError::new(ErrorCode::ResourceExhausted, "attest", "the log is full");
        let unrecorded = gate.replace(request.clone(), ready(Err(full))).await;
        assert_eq!(code(unrecorded), ErrorCode::ResourceExhausted);
        gate.replace(request.clone(), ready(Ok(()))).await.unwrap();
        let denied = gate.replace(request, ready(Ok(()))).await;
        assert_eq!(code(denied), ErrorCode::PolicyDenied);
        assert_eq!(
            code(Gate::new(None, Some("no rego"))),
            ErrorCode::PolicyInvalid
        );
    }

    #[test]
    fn content_is_judged_file_by_file_where_the_guest_puts_it() {
        let rego = "package agent_policy\n\
            import rego.v1\n\
            default CopyFileRequest := false\n\
            CopyFileRequest if regex.match(\"^/slots/c-[a-z0-9]+-cfg(/[a-z]+)?$\", input.path)\n";
        let gate = Gate::new(Some(Tee::Sample), Some(rego)).unwrap();
        let request = |path: &str| PutContentRequest {
            kind: agent_api::content::put_content_request::Kind::DIRECTORY.into(),
            files: vec![agent_api::content::ContentFile {
                path: path.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert!(
            gate.admit_content(request("key"), "/slots/c-0a-cfg", true)
                .is_ok()
        );
        let denied = gate.admit_content(request("key2"), "/slots/c-0a-cfg", false);
        assert_eq!(code(denied), ErrorCode::PolicyDenied);
        for new in [true, false] {
            let denied = gate.admit_content(PutContentRequest::new(), "/slots/d-0a-cfg", new);
            assert_eq!(code(denied), ErrorCode::PolicyDenied);
        }
    }

    #[test]
    fn a_copied_file_is_shown_without_its_data_and_a_link_with_its_target() {
        let mut request = CopyFileRequest {
            data: b"secret".to_vec(),
            ..Default::default()
        };
        assert!(!request.input().unwrap().to_string().contains("secret"));
        assert_eq!(request.input().unwrap()["symlink_src"], "");
        request.file_mode = 0o120_777;
        request.data = b"../x".to_vec();
        assert_eq!(request.input().unwrap()["symlink_src"], "../x");
    }
}
