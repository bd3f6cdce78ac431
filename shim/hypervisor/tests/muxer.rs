//! The table of connections, fed with packets by hand: what an honest guest may count on, and that a
//! hostile one gets no further than its own connections.
#![allow(clippy::unwrap_used, reason = "a test says what failed by its line")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use hypervisor::vsock::HOST_CID;
use hypervisor::vsock::credit::BUF_ALLOC;
use hypervisor::vsock::muxer::{MAX_ACCEPTED, MAX_CONNECTIONS, Muxer};
use hypervisor::vsock::packet::{
    HEADER_LEN, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
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
fn a_guest_beyond_its_credit_loses_the_connection() {
    let mut rig = rig();
    let _unread = rig.accepted(7);
    let chunk = vec![0; 64 << 10];
    let mut sent = 0u32;
    loop {
        rig.data(7, PORT, &chunk);
        sent += 64 << 10;
        if rig.ops().contains(&Op::Reset) {
            break;
        }
        assert!(sent < 64 << 20, "the guest was never stopped");
    }
    assert!(sent > BUF_ALLOC);
    assert!(rig.muxer.is_empty());
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

#[test]
fn the_same_ports_over_and_over_do_not_grow_anything() {
    let mut rig = rig();
    for _ in 0..1000 {
        rig.feed(&packet(Op::Request, 7, PORT), b"");
        rig.feed(&packet(Op::Reset, 7, PORT), b"");
        let _ = rig.incoming.try_recv();
    }
    assert!(!rig.muxer.has_output());
    assert!(rig.muxer.is_empty());
}

#[test]
fn packets_for_someone_else_are_not_answered() {
    let mut rig = rig();
    let mut stranger = packet(Op::Request, 7, PORT);
    stranger.src_cid = 4;
    rig.feed(&stranger, b"");
    let mut any = packet(Op::Request, u32::MAX, PORT);
    rig.feed(&any, b"");
    any.src_port = 7;
    any.dst_cid = 1;
    rig.feed(&any, b"");
    assert!(!rig.muxer.has_output());
    assert!(rig.muxer.is_empty());
}

#[test]
fn a_packet_shorter_than_it_says_is_reset() {
    let mut rig = rig();
    let _stream = rig.accepted(7);
    rig.feed(
        &Header {
            len: 10,
            ..packet(Op::Data, 7, PORT)
        },
        b"short",
    );
    assert_eq!(rig.ops(), [Op::Reset]);
}

#[test]
fn connections_that_no_one_accepts_are_refused() {
    let mut rig = rig();
    for port in 0..10 {
        rig.feed(&packet(Op::Request, port, PORT), b"");
    }
    let ops = rig.ops();
    assert_eq!(ops.iter().filter(|op| **op == Op::Response).count(), 4);
    assert_eq!(ops.iter().filter(|op| **op == Op::Reset).count(), 6);
}

#[tokio::test]
async fn a_guest_that_opens_all_that_it_may_leaves_room_for_the_host() {
    let mut rig = rig();
    let mut streams = Vec::new();
    for port in 0..u32::try_from(MAX_ACCEPTED).unwrap() {
        streams.push(rig.accepted(port));
    }
    rig.feed(&packet(Op::Request, 1 << 20, PORT), b"");
    assert_eq!(rig.ops(), [Op::Reset]);
    let (reply, result) = oneshot::channel();
    rig.muxer.connect(80, reply);
    let request = rig.drain().remove(0).0;
    rig.feed(&packet(Op::Response, 80, request.src_port), b"");
    let _stream = result.await.unwrap().unwrap();
    // One that it ends makes room for one.
    rig.feed(&packet(Op::Reset, 0, PORT), b"");
    streams.push(rig.accepted(1 << 20));
}

#[test]
fn a_guest_that_takes_no_resets_stops_only_itself() {
    let mut rig = rig();
    let mut fed = 0;
    while rig.muxer.accepts_packets() {
        rig.feed(&packet(Op::Data, fed, 1), b"");
        fed += 1;
        assert!(fed < 10_000, "resets are not bounded");
    }
    assert_eq!(rig.ops().len(), fed as usize);
    assert!(rig.muxer.accepts_packets());
}

/// Arbitrary packets, most of them near to valid ones, with callers that read, write and leave.
#[test]
fn arbitrary_packets_stay_within_the_bounds() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut rig = rig();
    let mut streams: Vec<UnixStream> = Vec::new();
    let payload = vec![0x5a; 64 << 10];
    for round in 0..10_000 {
        let mut bytes = packet(Op::Data, u32::try_from(random() % 8).unwrap(), PORT).to_bytes();
        bytes[30] = u8::try_from(random() % 9).unwrap();
        bytes[32] = u8::try_from(random() % 4).unwrap();
        bytes[24..26].copy_from_slice(&random().to_le_bytes()[..2]);
        if random() % 8 == 0 {
            let at = usize::try_from(random()).unwrap() % HEADER_LEN;
            bytes[at] = random().to_le_bytes()[0];
        }
        if let Ok(header) = Header::parse(&bytes) {
            let len = if random() % 16 == 0 {
                3
            } else {
                header.len as usize
            };
            rig.feed(&header, &payload[..len]);
        }
        while let Ok(socket) = rig.incoming.try_recv() {
            streams.push(UnixStream::from(socket));
        }
        if round % 16 == 0 && !streams.is_empty() {
            let index = usize::try_from(random()).unwrap() % streams.len();
            let mut buffer = vec![0; 10_000];
            match random() % 3 {
                0 => drop(streams.swap_remove(index)),
                1 => drop(streams[index].read(&mut buffer)),
                _ => drop(streams[index].write(&buffer)),
            }
        }
        if round % 64 == 0 || !rig.muxer.accepts_packets() {
            rig.drain();
        }
        assert!(rig.muxer.len() <= MAX_CONNECTIONS);
    }
    drop(streams);
    rig.drain();
}
