//! `start`: one server for each pod. The pod's first container gets a new one, the others its
//! address.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim::Flags;
use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;

use super::{BootstrapError, bundle, socket_path, step};
use crate::spec;
use crate::spec::group::{self, Role};

/// What containerd pipes to a shim is at most this large.
const MAX_INPUT: u64 = 10 * 1024 * 1024;
/// What the server says when it listens.
pub(super) const LISTENING: &str = "listening\n";
/// What a server that fails says is at most this long.
const MAX_COMPLAINT: u64 = 64 * 1024;
/// The version of the task service that every containerd since 1.3 speaks.
const TASK_VERSION: i32 = 2;
/// The environment variable for the address to which events go.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";

/// Starts a server or finds it, and writes its address for containerd.
pub(super) fn start(flags: &Flags) -> Result<(), BootstrapError> {
    let bundle = bundle(flags)?;
    let params = bootstrap_params(flags)?;
    let containerd = match &params {
        Some(params) if !params.containerd_grpc_address.is_empty() => {
            &params.containerd_grpc_address
        }
        _ => &flags.address,
    };
    let spec = spec::read(&bundle).map_err(BootstrapError::Spec)?;
    let role = group::role(&spec.annotations)?;
    let sandbox = role.sandbox_of(&flags.id);
    let socket = socket_path(containerd, &flags.namespace, sandbox);
    let address = format!("unix://{}", socket.display());
    let answers = UnixStream::connect(&socket).is_ok();
    let pid = match (&role, answers) {
        (Role::Member { .. }, true) => None,
        (Role::Member { .. }, false) => {
            return Err(BootstrapError::NoSandbox {
                sandbox: sandbox.to_owned(),
                address,
            });
        }
        (Role::Single | Role::Sandbox, true) => {
            return Err(BootstrapError::Running(sandbox.to_owned()));
        }
        (Role::Single | Role::Sandbox, false) => {
            let events = params
                .as_ref()
                .map(|params| params.containerd_ttrpc_address.as_str());
            Some(spawn_server(flags, &bundle, &socket, events)?)
        }
    };
    // containerd finds the server again by this file after a restart.
    std::fs::write(bundle.join("address"), &address).map_err(step("write the address"))?;
    if let Some(pid) = pid {
        std::fs::write(bundle.join("shim.pid"), pid.to_string())
            .map_err(step("write the pid file"))?;
    }
    let reply = match params {
        None => address.into_bytes(),
        Some(_) => {
            let result = BootstrapResult {
                version: TASK_VERSION,
                address,
                protocol: "ttrpc".to_owned(),
                ..Default::default()
            };
            result.write_to_bytes().unwrap_or_default()
        }
    };
    std::io::stdout()
        .write_all(&reply)
        .map_err(step("write the answer"))
}

/// What containerd 2.3 and later pipe in. Earlier ones pipe in the runtime's options, or nothing.
fn bootstrap_params(flags: &Flags) -> Result<Option<BootstrapParams>, BootstrapError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(None);
    }
    let mut input = Vec::new();
    stdin
        .lock()
        .take(MAX_INPUT)
        .read_to_end(&mut input)
        .map_err(step("read the input"))?;
    let params = BootstrapParams::parse_from_bytes(&input).ok();
    // Options decode as this message too, with odd values.
    Ok(params
        .filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace))
}

/// Starts the server and waits until it listens or says why it does not.
fn spawn_server(
    flags: &Flags,
    bundle: &Path,
    socket: &Path,
    events: Option<&str>,
) -> Result<u32, BootstrapError> {
    let program = std::env::current_exe().map_err(step("find the shim's own program"))?;
    let mut command = Command::new(program);
    command
        .args([
            "-namespace",
            &flags.namespace,
            "-id",
            &flags.id,
            "-address",
            &flags.address,
        ])
        .arg("-bundle")
        .arg(bundle)
        .arg("-socket")
        .arg(socket)
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // containerd waits for the end of our error output, which the server must not hold.
        .stderr(Stdio::null())
        .process_group(0);
    if flags.debug {
        command.arg("-debug");
    }
    if let Some(events) = events.filter(|events| !events.is_empty()) {
        command.env(EVENTS_VARIABLE, events);
    }
    let mut server = command.spawn().map_err(step("start the server"))?;
    let pid = server.id();
    // The server lives on: an out-of-memory kill should rather hit it than containerd.
    let _ = containerd_shim::cgroup::adjust_oom_score(pid);
    let mut said = String::new();
    if let Some(stdout) = server.stdout.take() {
        stdout
            .take(MAX_COMPLAINT)
            .read_to_string(&mut said)
            .map_err(step("listen to the server"))?;
    }
    if said == LISTENING {
        return Ok(pid);
    }
    let _ = server.kill();
    let _ = server.wait();
    let text = if said.is_empty() {
        "it ended without a word".to_owned()
    } else {
        said.trim().to_owned()
    };
    Err(BootstrapError::Server(text))
}
