//! The table of connections: packets of the guest in, packets for the guest out, and the sockets of
//! the callers in between. It knows nothing of queues or guest memory, so that it can be fed with
//! anything.
//!
//! Sockets are watched edge-triggered by one epoll descriptor; a connection remembers that it may
//! be read until a read finds nothing. Connections with something for the guest wait in a list and
//! take turns, one packet each.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::sync::mpsc;
use tracing::debug;

use super::HOST_CID;
use super::connection::{ConnectReply, Connection, Next, Output};
use super::credit::BUF_ALLOC;
use super::packet::{Header, Op, TYPE_STREAM};
use super::transfer::{Buffer, Payload};

/// The most connections of one VM: three for each of a thousand processes, and more. Each has a socket pair
/// and up to [`BUF_ALLOC`] bytes queued.
pub const MAX_CONNECTIONS: usize = 4096;
/// The most that the guest opened: it must not take the room of those that the host opens.
pub const MAX_ACCEPTED: usize = 1024;
/// The most resets for packets without a connection that wait for a buffer of the guest. Beyond
/// these no packet is taken from the guest, so it can only stop itself.
const MAX_RESETS: usize = 256;
/// Send buffer of a socket, as far as the host's limit allows: several of the guest's packets.
const SOCKET_BUFFER: usize = 1 << 20;
/// Where the host's ephemeral ports begin, above all that a user would choose.
const FIRST_EPHEMERAL_PORT: u32 = 1 << 30;
/// Events taken from the kernel at once.
const EVENTS: usize = 64;
/// The port that means any, which no connection has (`VMADDR_PORT_ANY`).
const PORT_ANY: u32 = u32::MAX;

/// A connection's name: ports of the guest and of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest_port: u32,
    host_port: u32,
}

impl Key {
    fn token(self) -> u64 {
        u64::from(self.guest_port) << 32 | u64::from(self.host_port)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves of what `token` joined"
    )]
    fn from_token(token: u64) -> Self {
        Self {
            guest_port: (token >> 32) as u32,
            host_port: token as u32,
        }
    }
}

/// The table of connections of one VM.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    listening: u32,
    incoming: mpsc::Sender<OwnedFd>,
    connections: HashMap<Key, Connection>,
    /// How many of them the guest opened.
    accepted: usize,
    /// Connections with something for the guest, each once.
    ready: VecDeque<Key>,
    resets: VecDeque<Header>,
    epoll: OwnedFd,
    next_port: u32,
}

impl Muxer {
    /// A table that accepts connections of the guest to one port.
    ///
    /// # Errors
    /// When there is no descriptor left for epoll.
    pub fn new(
        guest_cid: u64,
        listening: u32,
        incoming: mpsc::Sender<OwnedFd>,
    ) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            listening,
            incoming,
            connections: HashMap::new(),
            accepted: 0,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            next_port: FIRST_EPHEMERAL_PORT,
        })
    }

    /// Readable when [`Self::take_events`] has something to do.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether a packet of the guest may be taken now.
    #[must_use]
    pub fn accepts_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether the guest has to be given a packet.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Opens a connection to a port of the guest. The reply is the caller's end of a socket pair.
    pub fn connect(&mut self, guest_port: u32, reply: ConnectReply) {
        let made = self.room(false).and_then(|()| socket_pair());
        let (socket, caller_end) = match made {
            Ok(pair) => pair,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let key = self.free_key(guest_port);
        let connection = Connection::requested(socket, reply, caller_end);
        if let Err(error) = self.insert(key, connection) {
            debug!(%error, "connection cannot be watched");
        }
    }

    /// Takes a packet of the guest. `payload` has what followed the header, as far as it came.
    pub fn guest_packet(&mut self, header: &Header, payload: &mut dyn Payload) {
        let key = Key {
            guest_port: header.src_port,
            host_port: header.dst_port,
        };
        let addressed = header.src_cid == self.guest_cid && header.dst_cid == HOST_CID;
        let named = key.guest_port != PORT_ANY && key.host_port != PORT_ANY;
        if !addressed || !named {
            // From or to someone else: there is no one to answer to.
            return;
        }
        let complete = payload.len() == header.len as usize;
        if header.socket_type != TYPE_STREAM || !complete {
            return self.refuse(key, header);
        }
        if header.op == Op::Request {
            return self.accept(key, header);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.refuse(key, header);
        };
        connection.guest_credit(header.buf_alloc, header.fwd_cnt);
        let next = match header.op {
            Op::Response => connection.guest_accepted(),
            Op::Reset => connection.guest_reset(),
            Op::Shutdown => connection.guest_shutdown(header.flags),
            Op::Data => connection.guest_data(payload),
            Op::CreditRequest => {
                connection.owe_credit();
                Next::Keep
            }
            Op::CreditUpdate | Op::Request => Next::Keep,
        };
        self.settle(key, next);
    }

    /// Puts the next packet for the guest into `buffer` and returns its header.
    pub fn output(&mut self, buffer: &mut dyn Buffer) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            match connection.output(buffer) {
                Output::Packet { op, flags, len } => {
                    let header = Header {
                        len,
                        flags,
                        buf_alloc: BUF_ALLOC,
                        fwd_cnt: connection.credit.tell(),
                        ..self.header(key, op)
                    };
                    self.settle(key, Next::Keep);
                    return Some(header);
                }
                Output::Nothing => {}
                Output::Reset => {
                    self.remove(key);
                    return Some(self.header(key, Op::Reset));
                }
            }
        }
        None
    }

    /// Looks which sockets have news. True when there was any.
    pub fn take_events(&mut self) -> bool {
        let mut any = false;
        loop {
            let mut events = Vec::with_capacity(EVENTS);
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) | Err(_) => return any,
                Ok(_) => any = true,
            }
            for event in events {
                let epoll::Event { flags, data } = event;
                self.socket_event(Key::from_token(data.u64()), flags);
            }
        }
    }

    fn socket_event(&mut self, key: Key, flags: epoll::EventFlags) {
        use epoll::EventFlags as Flags;
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let readable = flags.intersects(Flags::IN | Flags::RDHUP);
        let hung_up = flags.intersects(Flags::HUP | Flags::ERR);
        let next = connection.socket_event(readable, flags.contains(Flags::OUT), hung_up);
        self.settle(key, next);
    }

    /// The guest connects.
    fn accept(&mut self, key: Key, header: &Header) {
        if self.remove(key) {
            // The guest has forgotten a connection of this name, so it is no one's any more.
            debug!("the guest used the ports of a connection again");
        }
        if key.host_port != self.listening || self.room(true).is_err() {
            return self.refuse(key, header);
        }
        let Ok(permit) = self.incoming.clone().try_reserve_owned() else {
            return self.refuse(key, header);
        };
        let Ok((socket, caller_end)) = socket_pair() else {
            return self.refuse(key, header);
        };
        let mut connection = Connection::accepted(socket);
        connection.guest_credit(header.buf_alloc, header.fwd_cnt);
        match self.insert(key, connection) {
            Ok(()) => drop(permit.send(caller_end)),
            Err(_) => self.refuse(key, header),
        }
    }

    fn insert(&mut self, key: Key, connection: Connection) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        let interest = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
        let data = epoll::EventData::new_u64(key.token());
        epoll::add(&self.epoll, connection.socket(), data, interest)?;
        self.connections.insert(key, connection);
        self.accepted += usize::from(self.is_of_guest(key));
        self.settle(key, Next::Keep);
        Ok(())
    }

    /// Follows up on a step of a connection.
    fn settle(&mut self, key: Key, next: Next) {
        match next {
            Next::Keep => {
                if let Some(connection) = self.connections.get_mut(&key)
                    && !connection.queued
                    && connection.has_output()
                {
                    connection.queued = true;
                    self.ready.push_back(key);
                }
            }
            Next::Forget => {
                self.remove(key);
            }
            Next::Reset => {
                self.remove(key);
                let reset = self.header(key, Op::Reset);
                self.resets.push_back(reset);
            }
        }
    }

    /// Forgets a connection, its place in the list included: a guest that uses the same ports over
    /// and over would make the list grow. True when there was one.
    fn remove(&mut self, key: Key) -> bool {
        let Some(connection) = self.connections.remove(&key) else {
            return false;
        };
        self.accepted -= usize::from(self.is_of_guest(key));
        if connection.queued {
            self.ready.retain(|other| *other != key);
        }
        true
    }

    /// Answers a packet that has no connection, or breaks the rules of the one it has.
    fn refuse(&mut self, key: Key, header: &Header) {
        self.remove(key);
        if header.op != Op::Reset {
            self.resets.push_back(header.reset());
        }
    }

    /// Ports that the host chooses itself are others than the one on which it listens.
    fn is_of_guest(&self, key: Key) -> bool {
        key.host_port == self.listening
    }

    /// Makes sure that one more connection fits, which the guest opens or the host.
    fn room(&mut self, of_guest: bool) -> io::Result<()> {
        let is_full = self.connections.len() >= MAX_CONNECTIONS;
        let guest_has_all = of_guest && self.accepted >= MAX_ACCEPTED;
        if !is_full && !guest_has_all {
            return Ok(());
        }
        let abandoned = self.connections.iter().find(|(key, connection)| {
            connection.is_abandoned() && (!guest_has_all || self.is_of_guest(**key))
        });
        match abandoned.map(|(key, _)| *key) {
            Some(key) => {
                self.settle(key, Next::Reset);
                Ok(())
            }
            None => Err(io::Error::other(
                "the VM has as many vsock connections as it may",
            )),
        }
    }

    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.next_port;
            self.next_port = match host_port {
                PORT_ANY => FIRST_EPHEMERAL_PORT,
                port => port + 1,
            };
            let key = Key {
                guest_port,
                host_port,
            };
            if host_port != PORT_ANY && !self.connections.contains_key(&key) {
                return key;
            }
        }
    }

    fn header(&self, key: Key, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            len: 0,
            socket_type: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// Our end and the caller's.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, callers) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Only speed is lost where the host does not allow it.
    let _ = set_socket_send_buffer_size(&ours, SOCKET_BUFFER);
    let _ = set_socket_send_buffer_size(&callers, SOCKET_BUFFER);
    Ok((ours, callers))
}
