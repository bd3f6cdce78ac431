//! What signs for a simulated TEE: it is behind the host port, as a security processor is behind the kernel's
//! interface, and gives the same bytes.

use std::io;
use std::time::Duration;

use agent_api::{TeeCall, limit};
use attestation_agent::attester::{Platform, REGISTER_BYTES, REPORT_DATA_BYTES, Registers, Report};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::host::HostPort;

/// How long an answer may take: the first waits until the host has hashed what it launched.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The firmware of this guest. It is asked from threads that may block.
#[derive(Debug, Clone, Copy)]
pub struct Firmware(pub HostPort);

impl Firmware {
    fn ask(self, call: TeeCall) -> io::Result<Vec<Vec<u8>>> {
        let asking = async {
            let mut stream = self.0.tee(call).await?;
            items(&mut stream, call).await
        };
        Handle::current().block_on(async { timeout(ANSWER_TIMEOUT, asking).await? })
    }
}

/// What a host answers to a question, behind its `OK`.
///
/// # Errors
///
/// An item has more than [`limit::MAX_TEE_ITEM`] bytes, or the answer ends before it is whole.
pub async fn items(
    answer: &mut (impl AsyncRead + Unpin),
    call: TeeCall,
) -> io::Result<Vec<Vec<u8>>> {
    let mut items = Vec::with_capacity(call.items());
    for _ in 0..call.items() {
        let length = answer.read_u32_le().await?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > limit::MAX_TEE_ITEM {
            return Err(io::Error::other("the host's answer is too long"));
        }
        let mut item = vec![0; length];
        answer.read_exact(&mut item).await?;
        items.push(item);
    }
    Ok(items)
}

impl Platform for Firmware {
    fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> io::Result<Report> {
        match <[_; 2]>::try_from(self.ask(TeeCall::Report(*report_data))?) {
            Ok([outblob, auxblob]) => Ok(Report { outblob, auxblob }),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn boot_log(&self) -> io::Result<Option<Vec<u8>>> {
        let log = self.ask(TeeCall::Log)?.pop();
        Ok(log.filter(|log| !log.is_empty()))
    }
}

impl Registers for Firmware {
    fn read(&self, register: usize) -> io::Result<[u8; REGISTER_BYTES]> {
        let value = self.ask(TeeCall::Read(register))?.pop();
        let value = value.unwrap_or_default().try_into();
        value.map_err(|_| io::Error::other("the host's register has another length"))
    }

    fn extend(&self, register: usize, digest: &[u8; REGISTER_BYTES]) -> io::Result<()> {
        self.ask(TeeCall::Extend(register, *digest)).map(drop)
    }
}
