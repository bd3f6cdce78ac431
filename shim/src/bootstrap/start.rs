//! `start`: one server for each pod. The pod's first container gets a new one, the others its
//! address.
//!
//! containerd pipes the runtime's options in. Of runc's, which it sends to shims that it does not know,
//! one counts here: the cgroup in which it wants the shim.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim::Flags;
use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::rt::WireType;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};

use super::{BootstrapError, bundle, socket_path, step};
use crate::cgroup;
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
/// The name of runc's options, and the tag of their `shim_cgroup`: number << 3 | 2.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
const SHIM_CGROUP: u32 = 3 << 3 | 2;
/// The environment variable for the address to which events go.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";

/// Starts a server or finds it, and writes its address for containerd.
pub(super) fn start(flags: &Flags) -> Result<(), BootstrapError> {
    let bundle = bundle(flags)?;
    let input = input()?;
    let params = bootstrap_params(flags, &input);
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
            let cgroup = shim_cgroup(&input)?;
            Some(spawn_server(
                flags,
                &bundle,
                &socket,
                events,
                cgroup.as_deref(),
            )?)
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

/// What containerd pipes in.
fn input() -> Result<Vec<u8>, BootstrapError> {
    let stdin = std::io::stdin();
    let mut input = Vec::new();
    if stdin.is_terminal() {
        return Ok(input);
    }
    stdin
        .lock()
        .take(MAX_INPUT)
        .read_to_end(&mut input)
        .map_err(step("read the input"))?;
    Ok(input)
}

/// What containerd 2.3 and later pipe in. Earlier ones pipe in the runtime's options, or nothing.
fn bootstrap_params(flags: &Flags, input: &[u8]) -> Option<BootstrapParams> {
    let params = BootstrapParams::parse_from_bytes(input).ok();
    // Options decode as this message too, with odd values.
    params.filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace)
}

/// `ShimCgroup` of runc's options (`containerd.runc.v1.Options`).
fn shim_cgroup(input: &[u8]) -> Result<Option<String>, BootstrapError> {
    let Some(options) = Any::parse_from_bytes(input).ok() else {
        return Ok(None);
    };
    if !options.type_url.ends_with(RUNC_OPTIONS) {
        return Ok(None);
    }
    let malformed = |error: containerd_shim_protos::protobuf::Error| {
        step("read the runtime's options")(std::io::Error::other(error))
    };
    let mut stream = CodedInputStream::from_bytes(&options.value);
    let mut path = None;
    while let Some(tag) = stream.read_raw_tag_or_eof().map_err(malformed)? {
        if tag == SHIM_CGROUP {
            path = Some(stream.read_string().map_err(malformed)?);
            continue;
        }
        let odd = || std::io::Error::other("unknown wire type");
        let wire_type = WireType::new(tag & 7)
            .ok_or_else(odd)
            .map_err(step("read the runtime's options"))?;
        stream.skip_field(wire_type).map_err(malformed)?;
    }
    Ok(path.filter(|path| !path.is_empty()))
}

/// Starts the server and waits until it listens or says why it does not.
fn spawn_server(
    flags: &Flags,
    bundle: &Path,
    socket: &Path,
    events: Option<&str>,
    shim_cgroup: Option<&str>,
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
    if let Some(path) = shim_cgroup {
        command.env(cgroup::SHIM_VARIABLE, path);
    }
    let mut server = command.spawn().map_err(step("start the server"))?;
    let pid = server.id();
    if let Some(path) = shim_cgroup
        && let Err(error) = cgroup::join(path, pid)
    {
        let _ = server.kill();
        let _ = server.wait();
        return Err(BootstrapError::Server(error.to_string()));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(type_url: &str, value: &[u8]) -> Vec<u8> {
        let any = Any {
            type_url: type_url.into(),
            value: value.into(),
            ..Default::default()
        };
        any.write_to_bytes().unwrap()
    }

    #[test]
    fn the_shims_cgroup_is_read_from_runcs_options_and_no_others() {
        let value = b"\x08\x01\x1a\x05/shim\x48\x01";
        let of = |input: &[u8]| shim_cgroup(input).unwrap();
        assert_eq!(of(&options(RUNC_OPTIONS, value)).as_deref(), Some("/shim"));
        assert_eq!(of(&options("runtimeoptions.v1.Options", value)), None);
        assert_eq!(of(&options(RUNC_OPTIONS, b"\x1a\x00")), None);
        assert_eq!(of(b""), None);
        assert!(shim_cgroup(&options(RUNC_OPTIONS, b"\x1a\xff")).is_err());
    }
}
