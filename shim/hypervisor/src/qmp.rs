//! QEMU's control protocol, as far as a VM needs it (QEMU docs, interop/qmp-spec).
//!
//! ```text
//!   QEMU ── greeting {"QMP":..} ──► we ── {"execute":"qmp_capabilities"} ──► QEMU ── {"return":{}}
//!   then: one command at a time, answered by "return" or "error" with its id; events in between
//! ```
//!
//! What QEMU says is not trusted further than a guest that took it over: lines have a cap, and an
//! unknown reply ends the connection with a named error.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

/// The longest line of QEMU that is read. The replies we ask for have a few hundred bytes.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Events waiting to be taken; more than these are dropped with a warning.
const MAX_EVENTS: usize = 64;
/// Commands waiting for QEMU.
const MAX_COMMANDS: usize = 16;

/// How long QEMU may take to answer. It opens and closes devices of the host meanwhile, which may be slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a command or the connection failed.
#[derive(Debug, Error)]
pub enum QmpError {
    /// Reading from or writing to the socket.
    #[error("QMP socket")]
    Socket(#[source] io::Error),
    /// QEMU closed the socket: it is ending.
    #[error("QEMU closed its control socket")]
    Closed,
    /// QEMU did not answer in time. What it was asked for may be done later.
    #[error("QEMU did not answer {0} in {seconds} s", seconds = ANSWER_TIMEOUT.as_secs())]
    Silent(&'static str),
    /// A line was longer than [`MAX_MESSAGE`].
    #[error("QEMU sent a control message of more than {MAX_MESSAGE} bytes")]
    TooLong,
    /// A line was no JSON of a known shape.
    #[error("QEMU sent an unknown control message: {0}")]
    Unknown(String),
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of the error.
        class: String,
        /// QEMU's words.
        description: String,
    },
}

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// As in 7.2.22: the 7.
    pub major: u32,
    /// The 2.
    pub minor: u32,
    /// The 22.
    pub micro: u32,
}

/// Something that happened in the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The VM is ending; QEMU's `ShutdownCause`.
    Shutdown {
        /// As QEMU names it, for example `guest-reset`.
        reason: String,
    },
    /// The guest told its panic device.
    GuestPanicked,
    /// Any other event, by its name.
    Other(String),
}

/// A connection after its handshake. Cheap to clone; commands of all clones take turns.
#[derive(Debug, Clone)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
struct Command {
    name: &'static str,
    arguments: Value,
    descriptor: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        qmp: Greeting,
    },
    Return {
        #[serde(rename = "return")]
        value: Value,
        id: Option<u64>,
    },
    Error {
        error: Refusal,
        id: Option<u64>,
    },
    Event {
        event: String,
        #[serde(default)]
        data: Value,
    },
}

#[derive(Deserialize)]
struct Greeting {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: Version,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

impl Qmp {
    /// Does the handshake, and serves the connection from then on in a task.
    ///
    /// # Errors
    /// [`QmpError`] when QEMU ends or says something else than a greeting.
    pub async fn connect(
        stream: UnixStream,
    ) -> Result<(Self, Version, mpsc::Receiver<Event>), QmpError> {
        let (events, event_receiver) = mpsc::channel(MAX_EVENTS);
        let (reader, writer) = stream.into_split();
        let mut wire = Wire {
            reader: BufReader::new(reader),
            writer,
            events,
            next_id: 0,
        };
        let version = match wire.receive().await? {
            Message::Greeting { qmp } => qmp.version.qemu,
            _ => {
                return Err(QmpError::Unknown(
                    "something before the greeting".to_owned(),
                ));
            }
        };
        wire.execute("qmp_capabilities", &json!({}), None).await?;
        let (commands, command_receiver) = mpsc::channel(MAX_COMMANDS);
        tokio::spawn(serve(wire, command_receiver));
        Ok((Self { commands }, version, event_receiver))
    }

    /// The VM's run state, for example `running`.
    ///
    /// # Errors
    /// [`QmpError`] when the connection is gone or the reply has no status.
    pub async fn query_status(&self) -> Result<String, QmpError> {
        let reply = self.execute("query-status").await?;
        match reply.get("status").and_then(Value::as_str) {
            Some(status) => Ok(status.to_owned()),
            None => Err(QmpError::Unknown(shorten(&reply.to_string()))),
        }
    }

    /// Lets a stopped VM run.
    ///
    /// # Errors
    /// [`QmpError`] when the connection is gone or QEMU refuses.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.execute("cont").await.map(drop)
    }

    /// Ends QEMU, without asking the guest.
    ///
    /// # Errors
    /// [`QmpError`] when the connection is gone, which may mean that QEMU has ended already.
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.execute("quit").await.map(drop)
    }

    async fn execute(&self, name: &'static str) -> Result<Value, QmpError> {
        self.ask(name, json!({})).await
    }

    /// Gives a command with its arguments, and returns the answer.
    pub(crate) async fn ask(
        &self,
        name: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.ask_with(name, arguments, None).await
    }

    /// The same with a descriptor that QEMU is to have.
    pub(crate) async fn ask_with(
        &self,
        name: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            name,
            arguments,
            descriptor,
            reply,
        };
        let answered = async {
            let sent = self.commands.send(command).await;
            sent.map_err(|_| QmpError::Closed)?;
            answer.await.map_err(|_| QmpError::Closed)?
        };
        // An answer that comes later is the one of this command still, and nobody's.
        match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(QmpError::Silent(name)),
        }
    }
}

/// Serves commands and events until either end is gone. A failure of the connection is the answer
/// of the command at hand, and of no other: those that follow find it closed.
async fn serve(mut wire: Wire, mut commands: mpsc::Receiver<Command>) {
    loop {
        tokio::select! {
            command = commands.recv() => {
                let Some(Command { name, arguments, descriptor, reply }) = command else { return };
                let result = wire.execute(name, &arguments, descriptor).await;
                let broken = matches!(&result, Err(error) if !matches!(error, QmpError::Refused { .. }));
                let _ = reply.send(result);
                if broken { return }
            }
            // Cancel-safe: waiting for bytes takes none.
            ready = wire.reader.fill_buf() => {
                match ready {
                    Ok([]) | Err(_) => return,
                    Ok(_) => {}
                }
                match wire.receive().await {
                    Ok(Message::Event { event, data }) => wire.publish(&event, &data),
                    Ok(_) => warn!("QEMU answered a command that was not given"),
                    Err(error) => {
                        debug!(%error, "QMP connection ended");
                        return;
                    }
                }
            }
        }
    }
}

struct Wire {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    events: mpsc::Sender<Event>,
    next_id: u64,
}

impl Wire {
    async fn execute(
        &mut self,
        name: &str,
        arguments: &Value,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let wanted = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "execute": name, "arguments": arguments, "id": wanted }).to_string();
        line.push('\n');
        self.send(line.as_bytes(), descriptor)
            .await
            .map_err(QmpError::Socket)?;
        loop {
            match self.receive().await? {
                Message::Event { event, data } => self.publish(&event, &data),
                Message::Return { value, id } if id == Some(wanted) => return Ok(value),
                Message::Error { error, id } if id == Some(wanted) => {
                    return Err(QmpError::Refused {
                        command: name.to_owned(),
                        class: shorten(&error.class),
                        description: shorten(&error.desc),
                    });
                }
                Message::Greeting { .. } | Message::Return { .. } | Message::Error { .. } => {
                    return Err(QmpError::Unknown(format!(
                        "no answer to {name} number {wanted}"
                    )));
                }
            }
        }
    }

    /// A descriptor travels with the first bytes.
    async fn send(&mut self, line: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
        let mut sent = 0;
        if let Some(descriptor) = descriptor {
            let socket: &UnixStream = self.writer.as_ref();
            let send = || send_with(socket.as_fd(), line, descriptor.as_fd());
            sent = socket.async_io(Interest::WRITABLE, send).await?;
        }
        self.writer
            .write_all(line.get(sent..).unwrap_or_default())
            .await
    }

    async fn receive(&mut self) -> Result<Message, QmpError> {
        let mut line = Vec::new();
        let limit = MAX_MESSAGE as u64 + 1;
        (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut line)
            .await
            .map_err(QmpError::Socket)?;
        match line.len() {
            0 => return Err(QmpError::Closed),
            length if length > MAX_MESSAGE => return Err(QmpError::TooLong),
            _ => {}
        }
        serde_json::from_slice(&line)
            .map_err(|_| QmpError::Unknown(shorten(&String::from_utf8_lossy(&line))))
    }

    fn publish(&self, name: &str, data: &Value) {
        let event = match name {
            "SHUTDOWN" => Event::Shutdown {
                reason: shorten(
                    data.get("reason")
                        .and_then(Value::as_str)
                        .unwrap_or("unknown"),
                ),
            },
            "GUEST_PANICKED" => Event::GuestPanicked,
            _ => Event::Other(shorten(name)),
        };
        if let Err(error) = self.events.try_send(event) {
            debug!(%error, "QMP event dropped");
        }
    }
}

fn send_with(socket: BorrowedFd<'_>, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    beside.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(line)], &mut beside, flags)?)
}

fn shorten(text: &str) -> String {
    text.chars()
        .take(200)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}"#;

    async fn connect(script: &[&str]) -> Result<(Qmp, Version, mpsc::Receiver<Event>), QmpError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut text = script.join("\n");
        text.push('\n');
        let (reader, mut writer) = theirs.into_split();
        writer.write_all(text.as_bytes()).await.unwrap();
        // The peer stays open, so that what is tested is the text and not the end.
        std::mem::forget((reader, writer));
        Qmp::connect(ours).await
    }

    #[tokio::test]
    async fn replies_are_matched_and_events_in_between_are_kept() {
        let (qmp, version, mut events) = connect(&[
            GREETING,
            r#"{"return":{},"id":0}"#,
            r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"},"timestamp":{}}"#,
            r#"{"event":"RTC_CHANGE","timestamp":{}}"#,
        ])
        .await
        .unwrap();
        assert_eq!(
            version,
            Version {
                major: 7,
                minor: 2,
                micro: 22
            }
        );
        let reason = "guest-reset".to_owned();
        assert_eq!(events.recv().await.unwrap(), Event::Shutdown { reason });
        assert_eq!(
            events.recv().await.unwrap(),
            Event::Other("RTC_CHANGE".to_owned())
        );
        drop(qmp);
    }

    #[tokio::test]
    async fn a_refusal_is_named() {
        let error = connect(&[
            GREETING,
            r#"{"error":{"class":"CommandNotFound","desc":"no such"},"id":0}"#,
        ])
        .await
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "QEMU refused qmp_capabilities: no such (CommandNotFound)"
        );
    }

    #[tokio::test]
    async fn an_unknown_reply_is_an_error() {
        let error = connect(&[r#"{"hello":1}"#]).await.unwrap_err();
        assert!(matches!(error, QmpError::Unknown(_)), "{error}");
        let error = connect(&[GREETING, r#"{"return":{},"id":7}"#])
            .await
            .unwrap_err();
        assert!(matches!(error, QmpError::Unknown(_)), "{error}");
    }

    #[tokio::test]
    async fn a_line_beyond_the_cap_is_an_error() {
        let long = format!("{{\"QMP\":\"{}\"}}", "x".repeat(MAX_MESSAGE));
        assert!(matches!(
            connect(&[&long]).await.unwrap_err(),
            QmpError::TooLong
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_qemu_that_says_nothing_is_named_with_the_command() {
        let (qmp, ..) = connect(&[GREETING, r#"{"return":{},"id":0}"#])
            .await
            .unwrap();
        let error = qmp.query_status().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "QEMU did not answer query-status in 60 s"
        );
    }

    #[tokio::test]
    async fn the_end_of_qemu_is_an_error_at_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(Qmp::connect(ours).await.is_err());
    }
}
