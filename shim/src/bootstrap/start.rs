//! `start`: one server for each pod. The pod's first container gets a new one, the others its
//! address. A pod without a sandbox container has a bundle without a specification.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim::Flags;

use super::asked::Asked;
use super::{BootstrapError, bundle, socket_path, step};
use crate::spec::group::{self, Role};
use crate::{cgroup, config, spec};

/// What containerd pipes to a shim is at most this large.
const MAX_INPUT: u64 = 10 * 1024 * 1024;
/// What the server says when it listens.
pub(super) const LISTENING: &str = "listening\n";
/// What a server that fails says is at most this long.
const MAX_COMPLAINT: u64 = 64 * 1024;
/// The environment variable for the address to which events go.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";

/// Starts a server or finds it, and writes its address for containerd.
pub(super) fn start(flags: &Flags) -> Result<(), BootstrapError> {
    let bundle = bundle(flags)?;
    let asked = Asked::read(&input()?, &flags.id, &flags.namespace)?;
    let containerd = asked.containerd.as_ref().unwrap_or(&flags.address);
    let role = match spec::read(&bundle) {
        Ok(spec) => group::role(&spec.annotations)?,
        // What a pod is that has no sandbox container comes with CreateSandbox.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Role::Sandbox,
        Err(error) => return Err(BootstrapError::Spec(error)),
    };
    let sandbox = role.sandbox_of(&flags.id);
    let socket = socket_path(
        containerd,
        &flags.namespace,
        sandbox,
        asked.sockets.as_deref(),
    );
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
            Some(spawn_server(flags, &bundle, &socket, &asked)?)
        }
    };
    // containerd finds the server again by this file after a restart.
    std::fs::write(bundle.join("address"), &address).map_err(step("write the address"))?;
    if let Some(pid) = pid {
        std::fs::write(bundle.join("shim.pid"), pid.to_string())
            .map_err(step("write the pid file"))?;
    }
    let reply = asked.reply(address);
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

/// Starts the server and waits until it listens or says why it does not.
fn spawn_server(
    flags: &Flags,
    bundle: &Path,
    socket: &Path,
    asked: &Asked,
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
    if let Some(events) = &asked.events {
        command.env(EVENTS_VARIABLE, events);
    }
    // A pod without a sandbox container is asked for without options.
    if let Some(path) = &asked.config {
        command.env(config::PATH_VARIABLE, path);
    }
    if let Some(path) = &asked.shim_cgroup {
        command.env(cgroup::SHIM_VARIABLE, path);
    }
    let mut server = command.spawn().map_err(step("start the server"))?;
    let pid = server.id();
    if let Some(path) = &asked.shim_cgroup
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
