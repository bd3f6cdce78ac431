//! A real guest on a real QEMU: what the crate promises, held against a booted kernel. One boot per
//! machine type serves all assertions about connections; each way to end has a boot of its own.
#![allow(clippy::unwrap_used, reason = "a test says what failed by its line")]

mod booted;

use std::io;
use std::time::{Duration, Instant};

use booted::{Guest, boot, boot_ended, pattern};
use hypervisor::{Cause, Disk, Machine};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const MEBIBYTE: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_q35_guest_and_its_host_can_talk() {
    let Some(guest) = boot(Machine::Q35, |_| {}).await else {
        return;
    };
    connections(guest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microvm_guest_and_its_host_can_talk() {
    let Some(guest) = boot(Machine::Microvm, |_| {}).await else {
        return;
    };
    connections(guest).await;
}

async fn connections(mut guest: Guest) {
    assert!(guest.ready.contains("reboot=t"), "{}", guest.ready);
    large_writes_of_the_guest_arrive(&mut guest).await;
    large_writes_of_the_host_arrive(&guest).await;
    refusals_are_immediate(&guest).await;
    many_connections_at_once_keep_their_bytes(&guest).await;
    a_reader_that_stops_stops_only_its_own_connection(&guest).await;
    a_closed_connection_is_seen_by_the_other_end(&guest).await;
    guest.power_off().await;
    let start = Instant::now();
    let exit = guest.vm.shutdown(Duration::from_secs(20)).await;
    assert_eq!(
        exit.cause,
        Cause::PoweredOff,
        "{exit}; {}",
        guest.vm.console_tail()
    );
    eprintln!("power-off took {:?}", start.elapsed());
    assert!(guest.vm.connect(7).await.is_err());
    assert!(guest.incoming.accept().await.is_none());
}

/// More than 32 KiB in one write come as one packet of several descriptors.
async fn large_writes_of_the_guest_arrive(guest: &mut Guest) {
    for len in [1, 32 << 10, 33 << 10, MEBIBYTE, 16 * MEBIBYTE] {
        let start = Instant::now();
        let mut stream = guest.vm.connect(19).await.unwrap();
        stream
            .write_all(format!("{len}\n").as_bytes())
            .await
            .unwrap();
        let mut bytes = Vec::new();
        timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes))
            .await
            .expect("stalled")
            .unwrap();
        assert!(
            bytes == pattern(len),
            "{len} bytes were asked for, {} came",
            bytes.len()
        );
        eprintln!("guest to host: {len} bytes in {:?}", start.elapsed());
    }
    let mut stream = guest.vm.connect(22).await.unwrap();
    stream
        .write_all(format!("{MEBIBYTE}\n").as_bytes())
        .await
        .unwrap();
    let mut pushed = guest.incoming.accept().await.unwrap().unwrap();
    let mut bytes = Vec::new();
    pushed.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == pattern(MEBIBYTE), "{} bytes came", bytes.len());
}

async fn large_writes_of_the_host_arrive(guest: &Guest) {
    for len in [1, 64 << 10, 16 * MEBIBYTE] {
        let start = Instant::now();
        assert_eq!(guest.send(&pattern(len)).await, len.to_string());
        eprintln!("host to guest: {len} bytes in {:?}", start.elapsed());
    }
}

async fn refusals_are_immediate(guest: &Guest) {
    let start = Instant::now();
    let error = guest.vm.connect(4711).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    eprintln!("refused by the guest after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_millis(500));

    let answer = guest.ask(21, "4711\n").await;
    let (error, microseconds) = answer.split_once(' ').unwrap();
    eprintln!("refused by the host after {microseconds} us");
    assert_eq!(error, "104", "ECONNRESET was expected");
    assert!(microseconds.parse::<u64>().unwrap() < 500_000);
}

async fn many_connections_at_once_keep_their_bytes(guest: &Guest) {
    let echoes = (0..32).map(|index| async move {
        let mut stream = guest.vm.connect(7).await.unwrap();
        let bytes = pattern(200_000 + index)[index..].to_vec();
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let write = async {
            writer.write_all(&bytes).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let ((), read) = tokio::join!(write, reader.read_to_end(&mut back));
        read.unwrap();
        assert!(
            back == bytes,
            "{} bytes of connection {index} came back",
            back.len()
        );
    });
    futures(echoes).await;
}

async fn futures(all: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if all.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

async fn a_reader_that_stops_stops_only_its_own_connection(guest: &Guest) {
    let mut idle = guest.vm.connect(19).await.unwrap();
    idle.write_all(format!("{}\n", 8 * MEBIBYTE).as_bytes())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let answer = guest.send(b"abc").await;
    assert_eq!(answer, "3");
    let mut bytes = Vec::new();
    idle.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == pattern(8 * MEBIBYTE));
}

async fn a_closed_connection_is_seen_by_the_other_end(guest: &Guest) {
    // The guest's echo ends when the caller is gone, and its socket goes with it: after many
    // rounds the guest would otherwise have no descriptors left.
    for _ in 0..50 {
        let mut stream = guest.vm.connect(7).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_and_processors_reach_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a,b.img");
    std::fs::write(&path, vec![7; MEBIBYTE]).unwrap();
    let disk = Disk {
        path,
        format: hypervisor::spec::DiskFormat::Raw,
        serial: "seven".to_owned(),
    };
    let guest = boot(Machine::Microvm, |spec| {
        spec.disks = vec![disk];
        spec.vcpus = 2;
        spec.kernel_params = vec!["cloister.log=info".to_owned()];
    });
    let Some(guest) = guest.await else { return };
    assert!(guest.ready.starts_with("READY 1 "), "{}", guest.ready);
    // A clock that is as fine with two processors as with one.
    assert!(
        ["tsc", "kvm"]
            .iter()
            .any(|clock| guest.ready.starts_with(&format!("READY 1 {clock}"))),
        "{}",
        guest.ready
    );
    assert!(guest.ready.contains("cloister.log=info"), "{}", guest.ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_panic_is_told_with_its_line() {
    let Some(exit) = boot_ended(Machine::Microvm, "panic").await else {
        return;
    };
    match &exit.cause {
        Cause::Panic(line) => assert!(line.contains("Attempted to kill init"), "{line}"),
        cause => panic!("{cause:?}: {exit}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_the_vm() {
    let Some(exit) = boot_ended(Machine::Q35, "reset").await else {
        return;
    };
    assert_eq!(exit.cause, Cause::Reset, "{exit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_is_known_at_once_and_its_streams_end() {
    let Some(mut guest) = boot(Machine::Microvm, |_| {}).await else {
        return;
    };
    let mut stream = guest.vm.connect(7).await.unwrap();
    let start = Instant::now();
    let exit = guest.vm.kill().await;
    assert_eq!(exit.cause, Cause::Stopped, "{exit}");
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut rest))
        .await
        .expect("no end");
    assert!(guest.incoming.accept().await.is_none());
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_before_the_driver_is_up_fails_at_once() {
    let Some(spec) = booted::spec(Machine::Q35) else {
        return;
    };
    let vm = hypervisor::Vm::boot(spec.vm).await.unwrap();
    eprintln!("{:?}", vm.timings());
    let start = Instant::now();
    let error = vm.connect(7).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    assert!(
        start.elapsed() < Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
}
