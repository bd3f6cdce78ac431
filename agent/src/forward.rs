//! Ports of the pod that the host forwards connections to, as `kubectl port-forward` asks for it.
//!
//! A connection of the host opens with a port, two bytes, the higher first. The agent answers as the host
//! does on its own port ([`DialAnswer`]), and carries bytes from then on. What listens is reached by the
//! pod's loopback, as with any other runtime; the owner's policy decides by `PortForwardRequest`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use agent_api::{DialAnswer, ErrorCode, GuestError, limit, ports};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::fault::{OrFail, invalid};
use crate::gate::{Gate, Gated};
use crate::workload;

const PHASE: &str = "forward";
/// How long the host may take to name a port, and the pod to take a connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after an error of accept(2), which is one of memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the policy is asked.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PortForwardRequest {
    /// The TCP port.
    pub port: u16,
}

impl Gated for PortForwardRequest {
    const RULE: &'static str = "PortForwardRequest";
}

/// The port of the ports, for as long as it is held.
#[derive(Debug)]
pub struct Forwards {
    accepting: JoinHandle<()>,
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Listens; connections are forwarded from now on.
///
/// # Errors
///
/// There is no vsock in this guest.
pub fn serve(gate: Arc<Gate>) -> Result<Forwards, GuestError> {
    let address = VsockAddr::new(VMADDR_CID_ANY, ports::FORWARD);
    let listener = VsockListener::bind(address).or_internal("boot", "the port for forwarding")?;
    Ok(Forwards {
        accepting: tokio::spawn(accept_all(listener, gate)),
    })
}

async fn accept_all(listener: VsockListener, gate: Arc<Gate>) {
    let slots = Arc::new(Semaphore::new(limit::MAX_FORWARDS));
    loop {
        let (connection, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Containers can reach what listens in the guest, and are not the host.
        if peer.cid() != ports::HOST_CID {
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!("more than {} forwarded connections", limit::MAX_FORWARDS);
            continue;
        };
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            carry(connection, &gate).await;
            drop(slot);
        });
    }
}

async fn carry(mut connection: VsockStream, gate: &Gate) {
    let Ok(Ok(port)) = timeout(OPEN_TIMEOUT, connection.read_u16()).await else {
        return tracing::debug!("a connection named no port");
    };
    let opened = open(port, gate).await;
    let answer = match &opened {
        Ok(_) => DialAnswer::Ok,
        Err(error) => DialAnswer::Err(error.code, error.message.clone()),
    };
    let answered = connection.write_all(format!("{answer}\n").as_bytes()).await;
    if let (Ok(mut pod), Ok(())) = (opened, answered) {
        let _ = copy_bidirectional(&mut connection, &mut pod).await;
    }
}

async fn open(port: u16, gate: &Gate) -> Result<TcpStream, GuestError> {
    if port == 0 {
        return Err(invalid(PHASE, "0 is no port"));
    }
    workload::check_forward(port, gate.is_confidential())?;
    gate.admit(PortForwardRequest { port })?;
    // As containerd does it: an application may listen in one family alone.
    let mut refused = None;
    for host in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ] {
        match timeout(OPEN_TIMEOUT, TcpStream::connect((host, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => refused = refused.or(Some(error.to_string())),
            Err(_) => refused = refused.or(Some("no answer in time".to_owned())),
        }
    }
    let why = refused.unwrap_or_default();
    let message = format!("port {port} of the pod: {why}");
    Err(GuestError::new(ErrorCode::NotFound, PHASE, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_reached_where_the_policy_allows_it() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let allows = Gate::new(None, None).unwrap();
        open(port, &allows).await.unwrap();
        let rego = format!(
            "package agent_policy\ndefault PortForwardRequest := false\n\
             PortForwardRequest if input.port != {port}\n"
        );
        let denies = Gate::new(None, Some(&rego)).unwrap();
        let error = open(port, &denies).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::PolicyDenied);
        drop(listener);
        let error = open(port, &allows).await.unwrap_err();
        assert!(error.message.contains(&port.to_string()), "{error}");
        assert!(open(0, &allows).await.is_err());
    }
}
