//! A guest that breaks the rules, or asks for all that it can have: it loses what is its own, and nothing grows.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use hypervisor::vsock::credit::BUF_ALLOC;
use hypervisor::vsock::muxer::{MAX_ACCEPTED, MAX_CONNECTIONS};
use hypervisor::vsock::packet::{HEADER_LEN, Header, Op};
use tokio::sync::oneshot;

use crate::{PORT, packet, rig};

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
