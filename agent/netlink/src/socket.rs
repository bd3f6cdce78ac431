//! A question to the kernel and its answer.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;

/// The most objects of one list. A node's full routing table is within it; a pod's has a handful.
const MAX_OBJECTS: usize = 65_536;
/// How often a list is asked for that changes while the kernel writes it.
const MAX_TRIES: u32 = 8;

/// `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket to ask through.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The question did not go out, or no answer came.
    #[error("{what}: ask the kernel")]
    Transfer {
        /// What was to be done.
        what: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses.
    #[error("{what}")]
    Refused {
        /// What was to be done.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The answer is not one.
    #[error("{what}: the kernel's answer is malformed: {cause}")]
    Malformed {
        /// What was to be done.
        what: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The list is longer than anybody's network.
    #[error("{what}: more than {MAX_OBJECTS} objects")]
    TooMany {
        /// What was to be listed.
        what: String,
    },
    /// The list changes faster than it can be read.
    #[error("{what}: the list changed each of the {MAX_TRIES} times that it was read")]
    Unsteady {
        /// What was to be listed.
        what: String,
    },
}

impl Error {
    /// Whether the kernel refused for this reason, one of errno(3).
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(errno))
    }
}

/// A socket to the network of the namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
}

impl Socket {
    /// Opens one in the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // The kernel, and no other sender.
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(Error::Open)?,
            sequence: 0,
        })
    }

    /// Has the kernel do something; `flags` are of `NLM_F_CREATE` and its like.
    ///
    /// # Errors
    /// [`Error`] with `what` was to be done.
    pub fn act(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        self.send(what, message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for message in self.receive(what)? {
                match message.payload {
                    NetlinkPayload::Error(error) => return answer(what, error.raw_code()),
                    NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// All objects of a kind.
    ///
    /// # Errors
    /// [`Error`] with `what` was to be listed.
    pub fn list(
        &mut self,
        what: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..MAX_TRIES {
            self.send(what, message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let Some(objects) = self.dump(what)? {
                return Ok(objects);
            }
        }
        Err(Error::Unsteady {
            what: what.to_owned(),
        })
    }

    /// The list that was asked for; none where it changed meanwhile.
    fn dump(&mut self, what: &str) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let (mut objects, mut steady) = (Vec::new(), true);
        loop {
            for message in self.receive(what)? {
                steady &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Done(done) => {
                        answer(what, done.code)?;
                        return Ok(steady.then_some(objects));
                    }
                    NetlinkPayload::Error(error) => {
                        answer(what, error.raw_code())?;
                        return Ok(steady.then_some(objects));
                    }
                    _ => {}
                }
            }
            if objects.len() > MAX_OBJECTS {
                return Err(Error::TooMany {
                    what: what.to_owned(),
                });
            }
        }
    }

    fn send(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .map(drop)
            .map_err(|source| transfer(what, source))
    }

    /// The messages of one datagram that answer the last question.
    fn receive(&mut self, what: &str) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
        let malformed = |cause: String| Error::Malformed {
            what: what.to_owned(),
            cause,
        };
        let (bytes, sender) = loop {
            match self.socket.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(transfer(what, source)),
                Ok(received) => break received,
            }
        };
        let mut messages = Vec::new();
        if sender.port_number() != 0 {
            return Ok(messages);
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::deserialize(rest).map_err(|e| malformed(e.to_string()))?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            if length < HEADER {
                return Err(malformed("a message is shorter than its header".to_owned()));
            }
            if message.header.sequence_number == self.sequence {
                messages.push(message);
            }
            // The last one may end without its padding.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn transfer(what: &str, source: io::Error) -> Error {
    Error::Transfer {
        what: what.to_owned(),
        source,
    }
}

/// Zero, or the negative of an errno.
fn answer(what: &str, code: i32) -> Result<(), Error> {
    match code {
        0 => Ok(()),
        code => Err(Error::Refused {
            what: what.to_owned(),
            source: io::Error::from_raw_os_error(code.saturating_neg()),
        }),
    }
}
