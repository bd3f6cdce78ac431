//! One connection: a socket whose other end the caller has, and what was said to and by the guest.
//!
//! ```text
//!   host connects:   Requested ── RESPONSE ──► Established        (RST: refused)
//!   guest connects:                            Established
//!   Established ── caller closed, SHUTDOWN sent ──► Closing ── RST of the guest ──► gone
//!   Established ── guest's SHUTDOWN of both, queue written out ── RST sent ──► gone
//!   Established ── guest's RST after its SHUTDOWN, queue not empty ──► Draining ──► gone
//!   any ── rule broken ── RST sent ──► gone
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use tokio::sync::oneshot;

use super::credit::Credit;
use super::packet::{MAX_PAYLOAD, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::transfer::{Buffer, Payload};

/// What the caller of a connect waits for.
pub(crate) type ConnectReply = oneshot::Sender<io::Result<OwnedFd>>;

#[derive(Debug)]
pub(crate) enum State {
    /// The guest was asked; both ends of the socket wait here.
    Requested {
        reply: ConnectReply,
        caller_end: OwnedFd,
    },
    Established,
    /// The caller is gone, and the guest knows.
    Closing,
    /// The guest is gone; what it sent before is still being taken.
    Draining,
}

/// Packets that the guest is owed, apart from payload.
#[derive(Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
    shutdown: u32,
}

/// What to do with a connection after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Keep,
    /// Forget it; the guest knows or does not care.
    Forget,
    /// Tell the guest, then forget it.
    Reset,
}

/// What to put into a buffer of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Packet { op: Op, flags: u32, len: u32 },
    Nothing,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    pub(crate) state: State,
    pub(crate) credit: Credit,
    /// Bytes of the guest that the caller's socket had no room for.
    queue: VecDeque<u8>,
    owed: Owed,
    /// The caller's socket may have bytes, or its end.
    readable: bool,
    /// The caller has closed, not only shut down.
    hung_up: bool,
    /// Directions whose end the guest was told of.
    shut_by_us: u32,
    /// Directions that the guest has ended.
    shut_by_guest: u32,
    /// The caller's reads end where the queue did.
    ended_for_caller: bool,
    /// Credit was asked for and has not changed since.
    credit_asked: bool,
    /// Whether the muxer has it in its list of connections with something for the guest.
    pub(crate) queued: bool,
}

impl Connection {
    pub(crate) fn requested(socket: OwnedFd, reply: ConnectReply, caller_end: OwnedFd) -> Self {
        let mut connection = Self::new(socket, State::Requested { reply, caller_end });
        connection.owed.request = true;
        connection
    }

    pub(crate) fn accepted(socket: OwnedFd) -> Self {
        let mut connection = Self::new(socket, State::Established);
        connection.owed.response = true;
        connection
    }

    fn new(socket: OwnedFd, state: State) -> Self {
        Self {
            socket,
            state,
            credit: Credit::default(),
            queue: VecDeque::new(),
            owed: Owed::default(),
            readable: false,
            hung_up: false,
            shut_by_us: 0,
            shut_by_guest: 0,
            ended_for_caller: false,
            credit_asked: false,
            queued: false,
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the guest has to be given a packet.
    pub(crate) fn has_output(&self) -> bool {
        let Owed {
            request,
            response,
            credit_update,
            credit_request,
            shutdown,
        } = self.owed;
        request || response || credit_update || credit_request || shutdown != 0 || self.may_read()
    }

    fn may_read(&self) -> bool {
        let open = matches!(self.state, State::Established)
            && (self.shut_by_us & SHUTDOWN_SEND) == 0
            && (self.shut_by_guest & SHUTDOWN_RECEIVE) == 0;
        open && self.readable && (self.credit.free() > 0 || !self.credit_asked)
    }

    /// The caller's socket has news.
    pub(crate) fn socket_event(&mut self, readable: bool, writable: bool, hung_up: bool) -> Next {
        self.readable |= readable || hung_up;
        self.hung_up |= hung_up;
        if hung_up {
            // Without a reader, no read will find the end: say it now.
            let unread = (self.shut_by_guest & SHUTDOWN_RECEIVE) == 0
                && (self.shut_by_us & SHUTDOWN_SEND) == 0;
            if matches!(self.state, State::Established) && !unread {
                self.owe_shutdown(SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
            }
        }
        if writable || hung_up {
            self.flush()
        } else {
            Next::Keep
        }
    }

    /// The guest said where its counters are.
    pub(crate) fn guest_credit(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        let before = self.credit.free();
        self.credit.update(buf_alloc, fwd_cnt);
        if self.credit.free() != before {
            self.credit_asked = false;
        }
    }

    /// The guest wants to know where ours are.
    pub(crate) fn owe_credit(&mut self) {
        self.owed.credit_update = true;
    }

    /// The guest accepted: the caller gets its end, unless it has given up.
    pub(crate) fn guest_accepted(&mut self) -> Next {
        match std::mem::replace(&mut self.state, State::Established) {
            State::Requested { reply, caller_end } => match reply.send(Ok(caller_end)) {
                Ok(()) => Next::Keep,
                Err(_given_up) => Next::Reset,
            },
            _ => Next::Reset,
        }
    }

    /// The guest reset the connection, or refused it.
    pub(crate) fn guest_reset(&mut self) -> Next {
        match std::mem::replace(&mut self.state, State::Draining) {
            State::Requested { reply, .. } => {
                let _ = reply.send(Err(io::ErrorKind::ConnectionRefused.into()));
                Next::Forget
            }
            State::Established
                if (self.shut_by_guest & SHUTDOWN_SEND) != 0 && !self.queue.is_empty() =>
            {
                self.owed = Owed::default();
                Next::Keep
            }
            State::Established | State::Closing | State::Draining => Next::Forget,
        }
    }

    /// The guest ends one or both directions.
    pub(crate) fn guest_shutdown(&mut self, flags: u32) -> Next {
        if !matches!(self.state, State::Established | State::Closing) {
            return Next::Reset;
        }
        self.shut_by_guest |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if (self.shut_by_guest & SHUTDOWN_RECEIVE) != 0 {
            let _ = shutdown(&self.socket, Shutdown::Read);
        }
        self.after_flush()
    }

    /// Payload of the guest.
    pub(crate) fn guest_data(&mut self, payload: &mut dyn Payload) -> Next {
        let Ok(len) = u32::try_from(payload.len()) else {
            return Next::Reset;
        };
        let open =
            matches!(self.state, State::Established) && (self.shut_by_guest & SHUTDOWN_SEND) == 0;
        if matches!(self.state, State::Closing) {
            // It crossed our SHUTDOWN. The caller is gone; the guest's answer will follow.
            return Next::Keep;
        }
        if !open || !self.credit.receive(len) {
            return Next::Reset;
        }
        while self.queue.is_empty() && !payload.is_empty() {
            match payload.write_to(self.socket.as_fd()) {
                Ok(written) => self.forwarded(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_closed) => return self.lost_caller(),
            }
        }
        payload.append_to(&mut self.queue);
        Next::Keep
    }

    /// Writes out what waits for the caller.
    fn flush(&mut self) -> Next {
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            match send(&self.socket, front, SendFlags::NOSIGNAL) {
                Ok(written) => {
                    self.queue.drain(..written);
                    self.forwarded(written);
                }
                Err(Errno::AGAIN) => return Next::Keep,
                Err(Errno::INTR) => {}
                Err(_closed) => return self.lost_caller(),
            }
        }
        self.after_flush()
    }

    fn after_flush(&mut self) -> Next {
        if !self.queue.is_empty() {
            return Next::Keep;
        }
        if matches!(self.state, State::Draining) {
            return Next::Forget;
        }
        let both = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        if self.shut_by_guest == both {
            return Next::Reset;
        }
        if (self.shut_by_guest & SHUTDOWN_SEND) != 0 && !self.ended_for_caller {
            // Once: each call is an event of the socket, which would lead here again.
            self.ended_for_caller = true;
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
        Next::Keep
    }

    fn lost_caller(&self) -> Next {
        match self.state {
            State::Draining => Next::Forget,
            _ => Next::Reset,
        }
    }

    fn forwarded(&mut self, bytes: usize) {
        // Never more than the buffer that the guest was promised.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.owed.credit_update |= self.credit.forward(bytes);
    }

    fn owe_shutdown(&mut self, flags: u32) {
        self.owed.shutdown |= flags & !self.shut_by_us;
    }

    /// The next packet for the guest, its payload put into `buffer`.
    pub(crate) fn output(&mut self, buffer: &mut dyn Buffer) -> Output {
        let packet = |op| Output::Packet {
            op,
            flags: 0,
            len: 0,
        };
        if std::mem::take(&mut self.owed.request) {
            return packet(Op::Request);
        }
        if std::mem::take(&mut self.owed.response) {
            return packet(Op::Response);
        }
        if self.may_read() {
            if self.credit.free() == 0 {
                self.credit_asked = true;
                return packet(Op::CreditRequest);
            }
            match self.read(buffer) {
                Output::Nothing => {}
                output => return output,
            }
        }
        let flags = std::mem::take(&mut self.owed.shutdown) & !self.shut_by_us;
        if flags != 0 {
            self.shut_by_us |= flags;
            if self.shut_by_us == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
                self.state = State::Closing;
            }
            return Output::Packet {
                op: Op::Shutdown,
                flags: self.shut_by_us,
                len: 0,
            };
        }
        if std::mem::take(&mut self.owed.credit_update) {
            return packet(Op::CreditUpdate);
        }
        Output::Nothing
    }

    fn read(&mut self, buffer: &mut dyn Buffer) -> Output {
        let most = self.credit.free().min(MAX_PAYLOAD);
        let most = buffer.capacity().min(most as usize);
        loop {
            match buffer.read_from(self.socket.as_fd(), most) {
                Ok(0) => {
                    let flags = if self.hung_up {
                        SHUTDOWN_RECEIVE | SHUTDOWN_SEND
                    } else {
                        SHUTDOWN_SEND
                    };
                    self.owe_shutdown(flags);
                    return Output::Nothing;
                }
                Ok(count) => {
                    let Ok(len) = u32::try_from(count) else {
                        return Output::Reset;
                    };
                    self.credit.sent(len);
                    // Every packet carries the counters.
                    self.owed.credit_update = false;
                    return Output::Packet {
                        op: Op::Data,
                        flags: 0,
                        len,
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Output::Nothing;
                }
                Err(_) => return Output::Reset,
            }
        }
    }

    /// Whether no one waits for this connection any more, so that it may make room for another.
    pub(crate) fn is_abandoned(&self) -> bool {
        match &self.state {
            State::Requested { reply, .. } => reply.is_closed(),
            State::Closing => true,
            State::Established | State::Draining => false,
        }
    }
}
