//! The table of connections, fed with packets by hand: what an honest guest may count on, and that a
//! hostile one gets no further than its own connections.
#![allow(clippy::unwrap_used, reason = "a test says what failed by its line")]

mod hostile;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use hypervisor::vsock::HOST_CID;
use hypervisor::vsock::credit::BUF_ALLOC;
use hypervisor::vsock::muxer::Muxer;
use hypervisor::vsock::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use tokio::sync::{mpsc, oneshot};

const GUEST: u64 = 3;
const PORT: u32 = 1030;

struct Rig {
    muxer: Muxer,
    incoming: mpsc::Receiver<OwnedFd>,
}

fn rig() -> Rig {
    let (sender, incoming) = mpsc::channel(4);
    Rig {
        muxer: Muxer::new(GUEST, PORT, sender).unwrap(),
        incoming,
    }
}

fn packet(op: Op, guest_port: u32, host_port: u32) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        len: 0,
        socket_type: TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
    }
}

impl Rig {
    fn feed(&mut self, header: &Header, mut payload: &[u8]) {
        self.muxer.guest_packet(header, &mut payload);
    }

    fn data(&mut self, guest_port: u32, host_port: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        self.feed(
            &Header {
                len,
                ..packet(Op::Data, guest_port, host_port)
            },
            payload,
        );
    }

    /// All packets for the guest, each with its payload.
    fn drain(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.muxer.take_events();
            let mut buffer = vec![0; 4096];
            let Some(header) = self.muxer.output(&mut &mut buffer[..]) else {
                return packets;
            };
            buffer.truncate(header.len as usize);
            packets.push((header, buffer));
        }
    }

    fn ops(&mut self) -> Vec<Op> {
        self.drain()
            .into_iter()
            .map(|(header, _)| header.op)
            .collect()
    }

    /// A connection opened by the guest.
    fn accepted(&mut self, guest_port: u32) -> UnixStream {
        self.feed(&packet(Op::Request, guest_port, PORT), b"");
        assert_eq!(self.ops(), [Op::Response]);
        UnixStream::from(self.incoming.try_recv().unwrap())
    }
}

#[test]
fn the_guest_reaches_the_listening_port() {
    let mut rig = rig();
    let mut stream = rig.accepted(7);
    rig.data(7, PORT, b"hello");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    stream.write_all(b"world").unwrap();
    let packets = rig.drain();
    assert_eq!(packets.len(), 1);
    assert_eq!(
        (packets[0].0.op, &packets[0].1[..]),
        (Op::Data, &b"world"[..])
    );
    assert_eq!(packets[0].0.fwd_cnt, 5);
}

#[test]
fn other_ports_are_reset_at_once() {
    let mut rig = rig();
    rig.feed(&packet(Op::Request, 7, PORT + 1), b"");
    assert!(rig.muxer.has_output());
    assert_eq!(rig.ops(), [Op::Reset]);
    assert!(rig.muxer.is_empty());
}

#[tokio::test]
async fn the_host_is_refused_or_let_in() {
    let mut rig = rig();
    for (answer, accepted) in [(Op::Reset, false), (Op::Response, true)] {
        let (reply, result) = oneshot::channel();
        rig.muxer.connect(80, reply);
        let request = rig.drain().remove(0).0;
        assert_eq!((request.op, request.dst_port), (Op::Request, 80));
        rig.feed(&packet(answer, 80, request.src_port), b"");
        let result = result.await.unwrap();
        assert_eq!(result.is_ok(), accepted);
    }
}

#[test]
fn a_caller_that_gave_up_is_not_waited_for() {
    let mut rig = rig();
    let (reply, result) = oneshot::channel();
    rig.muxer.connect(80, reply);
    let request = rig.drain().remove(0).0;
    drop(result);
    rig.feed(&packet(Op::Response, 80, request.src_port), b"");
    assert_eq!(rig.ops(), [Op::Reset]);
    assert!(rig.muxer.is_empty());
}

#[test]
fn no_more_is_sent_than_the_guest_can_hold() {
    let mut rig = rig();
    let mut request = packet(Op::Request, 7, PORT);
    request.buf_alloc = 6;
    rig.feed(&request, b"");
    rig.drain();
    let mut stream = UnixStream::from(rig.incoming.try_recv().unwrap());
    stream.write_all(b"0123456789").unwrap();
    let packets = rig.drain();
    assert_eq!(packets[0].1, b"012345");
    assert_eq!(packets[1].0.op, Op::CreditRequest);
    assert_eq!(packets.len(), 2);
    let mut update = packet(Op::CreditUpdate, 7, PORT);
    (update.buf_alloc, update.fwd_cnt) = (6, 6);
    rig.feed(&update, b"");
    assert_eq!(rig.drain()[0].1, b"6789");
}

#[test]
fn queued_bytes_arrive_in_order_when_the_caller_reads_again() {
    let mut rig = rig();
    let mut stream = rig.accepted(7);
    stream.set_nonblocking(true).unwrap();
    let bytes: Vec<u8> = (0..600_000)
        .map(|index| u8::try_from(index % 251).unwrap())
        .collect();
    let (mut sent, mut forwarded, mut got) = (0, 0u32, Vec::new());
    while got.len() < bytes.len() {
        let credit = BUF_ALLOC as usize - (sent - forwarded as usize);
        let count = credit.min(64 << 10).min(bytes.len() - sent);
        if count > 0 {
            rig.data(7, PORT, &bytes[sent..sent + count]);
            sent += count;
        } else {
            let mut buffer = vec![0; 100_000];
            let count = stream.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
        }
        for (header, _) in rig.drain() {
            forwarded = header.fwd_cnt;
        }
        if sent == bytes.len() {
            let mut buffer = vec![0; 100_000];
            if let Ok(count) = stream.read(&mut buffer) {
                got.extend_from_slice(&buffer[..count]);
            }
        }
    }
    assert!(got == bytes);
}

#[test]
fn a_closed_caller_is_told_to_the_guest_and_its_reset_ends_it() {
    let mut rig = rig();
    drop(rig.accepted(7));
    let packets = rig.drain();
    assert_eq!(packets[0].0.op, Op::Shutdown);
    assert_eq!(packets[0].0.flags, SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
    rig.feed(&packet(Op::Reset, 7, PORT), b"");
    assert!(rig.muxer.is_empty());
    assert!(rig.drain().is_empty());
}

#[test]
fn a_half_closed_caller_still_receives() {
    let mut rig = rig();
    let mut stream = rig.accepted(7);
    stream.write_all(b"last").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let packets = rig.drain();
    assert_eq!(packets[0].1, b"last");
    assert_eq!(
        (packets[1].0.op, packets[1].0.flags),
        (Op::Shutdown, SHUTDOWN_SEND)
    );
    rig.data(7, PORT, b"answer");
    let shutdown = Header {
        flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
        ..packet(Op::Shutdown, 7, PORT)
    };
    rig.feed(&shutdown, b"");
    assert_eq!(rig.ops(), [Op::Reset]);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
}

#[test]
fn a_guest_that_ends_its_direction_can_still_be_sent_to() {
    let mut rig = rig();
    let mut stream = rig.accepted(7);
    rig.data(7, PORT, b"all");
    rig.feed(
        &Header {
            flags: SHUTDOWN_SEND,
            ..packet(Op::Shutdown, 7, PORT)
        },
        b"",
    );
    assert!(rig.ops().is_empty());
    let mut text = String::new();
    // The socket does not block: its end must be there already.
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all");
    stream.write_all(b"thanks").unwrap();
    assert_eq!(rig.drain()[0].1, b"thanks");
}
