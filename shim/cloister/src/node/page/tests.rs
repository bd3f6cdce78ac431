//! Shims that behave, shims that do not, and what the node tells of them.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use shim::exposition::{Limits, parse};
use shim::spec::pod_name::PodName;

use super::*;

/// A shim's socket that answers each question with these bytes and then keeps the connection open. Its guest has
/// nothing to tell.
fn stand_in(root: &Path, sandbox: &str, answer: Vec<u8>) -> StateDir {
    with_guest(
        root,
        sandbox,
        answer,
        ok("cloister_guest_metrics{outcome=\"denied\"} 1\n"),
    )
}

/// The same with a guest.
fn with_guest(root: &Path, sandbox: &str, answer: Vec<u8>, guests: Vec<u8>) -> StateDir {
    let directory = StateDir::under(root, "k8s.io", sandbox).unwrap();
    directory.create().unwrap();
    directory.record("shim", std::process::id()).unwrap();
    let listener = UnixListener::bind(directory.path().join("shim-monitor.sock")).unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).unwrap_or_default();
            let is_guests = asked[..length].starts_with(b"GET /metrics/guest ");
            let _ = stream.write_all(if is_guests { &guests } else { &answer });
            open.push(stream);
        }
    });
    directory
}

async fn text(node: &Node) -> String {
    String::from_utf8(node.page().await.to_vec()).unwrap()
}

fn ok(page: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}",
        page.len()
    )
    .into_bytes()
}

#[tokio::test]
async fn each_sandbox_has_its_labels_and_the_hostile_and_the_dead_are_told_apart() {
    let root = tempfile::tempdir().unwrap();
    let good = "cloister_sandbox_state{state=\"running\"} 1\n";
    let guests = "# TYPE kata_guest_load counter\nkata_guest_load{item=\"load1\"} 0.5\n";
    let pod = PodName {
        name: "web".into(),
        namespace: "shop".into(),
        uid: "u-1".into(),
    };
    pod.write(&with_guest(root.path(), "good", ok(good), ok(guests)));
    let again = "cloister_sandbox_state{state=\"stopped\"} 1\ncloister_sandbox_state{state=\"running\"} 2\n";
    with_guest(root.path(), "again", ok(good), ok(again));
    stand_in(
        root.path(),
        "other",
        ok("cloister_sandbox_state{state=\"booting\"} 1\n"),
    );
    stand_in(
        root.path(),
        "liar",
        ok("kata_guest_load{sandbox_id=\"good\"} 424242\n"),
    );
    stand_in(
        root.path(),
        "twice",
        ok("kata_shim_threads 1\nkata_shim_threads 2\n"),
    );
    stand_in(root.path(), "huge", ok(&"x".repeat(2 << 20)));
    stand_in(root.path(), "noise", b"\x00\xff\xfe no HTTP\n".to_vec());
    let dead = StateDir::under(root.path(), "k8s.io", "dead").unwrap();
    dead.create().unwrap();
    let node = Node::new(root.path().to_owned());
    let page = text(&node).await;
    parse(
        &page,
        &Limits {
            bytes: 1 << 22,
            samples: 1 << 14,
            ..Limits::SHIM
        },
    )
    .unwrap();
    let labels = "sandbox_id=\"good\",namespace=\"k8s.io\",cri_uid=\"u-1\",cri_name=\"web\",cri_namespace=\"shop\"";
    for line in [
        format!("kata_guest_load{{item=\"load1\",{labels}}} 0.5").as_str(),
        format!("cloister_sandbox_up{{{labels}}} 1").as_str(),
        "# TYPE kata_guest_load gauge",
        "cloister_sandbox_up{sandbox_id=\"liar\",namespace=\"k8s.io\"} 0",
        "cloister_sandbox_up{sandbox_id=\"twice\",namespace=\"k8s.io\"} 0",
        "cloister_node_sandboxes{state=\"running\"} 2",
        "cloister_guest_metrics{outcome=\"malformed\",sandbox_id=\"again\",namespace=\"k8s.io\"} 1",
        "cloister_node_sandboxes{state=\"stopping\"} 0",
        "cloister_node_start_failures_total{code=\"internal\"} 0",
        "cloister_node_sandboxes{state=\"booting\"} 1",
        "cloister_node_sandboxes{state=\"dead\"} 1",
        "cloister_node_sandboxes{state=\"unreachable\"} 4",
        "kata_monitor_running_shim_count 7",
        "kata_monitor_scrape_failed_count 5",
    ] {
        assert!(page.lines().any(|it| it == line), "no `{line}` in:\n{page}");
    }
    assert!(!page.contains("424242"));
    assert_eq!(node.list().lines().count(), 8);
    let one = node.page_of("good", None).await.unwrap();
    assert!(one.contains("kata_guest_load") && !one.contains("kata_monitor"));
    assert_eq!(node.page_of("liar", None).await.unwrap_err().0, 502);
    assert_eq!(node.page_of("good", Some("moby")).await.unwrap_err().0, 404);
}

#[tokio::test]
async fn who_says_nothing_holds_up_nobody() {
    let root = tempfile::tempdir().unwrap();
    stand_in(
        root.path(),
        "good",
        ok("cloister_sandbox_state{state=\"running\"} 1\n"),
    );
    stand_in(
        root.path(),
        "drip",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nup".to_vec(),
    );
    for number in 0..40 {
        stand_in(root.path(), &format!("a-stuck-{number}"), Vec::new());
    }
    let good = ok("cloister_sandbox_state{state=\"running\"} 1\n");
    with_guest(root.path(), "stalled", good, Vec::new());
    let mut node = Node::new(root.path().to_owned());
    node.patience.own = Duration::from_millis(500);
    node.patience.guest = Duration::from_millis(500);
    let page = text(&node).await;
    for line in [
        "cloister_sandbox_up{sandbox_id=\"good\",namespace=\"k8s.io\"} 1",
        "cloister_sandbox_up{sandbox_id=\"stalled\",namespace=\"k8s.io\"} 1",
        "cloister_guest_metrics{outcome=\"unreachable\",sandbox_id=\"stalled\",namespace=\"k8s.io\"} 1",
        "cloister_node_sandboxes{state=\"running\"} 2",
        "cloister_node_sandboxes{state=\"unreachable\"} 41",
    ] {
        assert!(page.lines().any(|it| it == line), "no `{line}` in:\n{page}");
    }
}

#[tokio::test]
async fn who_waits_for_a_page_shares_it_and_who_comes_later_has_a_new_one() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::new(root.path().to_owned());
    let held = node.last.lock().await;
    let mut all = Box::pin(async { tokio::join!(node.page(), node.page(), node.page()) });
    // All three wait now.
    assert!(polled(&mut all).await.is_none());
    drop(held);
    let (first, second, third) = all.await;
    assert!(first == second && second == third);
    assert_eq!(node.counts().scrapes, 1);
    assert_ne!(node.page().await, first);
    assert_eq!(node.counts().scrapes, 2);
}

/// Polls once.
async fn polled<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = std::future::ready(()) => None,
    }
}

#[test]
fn reports_are_counted_and_nonsense_is_counted_apart() {
    let node = Node::new("/nonexistent".into());
    for report in [
        "{\"outcome\":\"started\",\"phases\":{\"vmm\":120,\"create\":30}}",
        "{\"outcome\":\"started\",\"phases\":{\"create\":40}}",
        "{\"outcome\":\"failed\",\"code\":\"vmm-exited\"}",
        "{\"outcome\":\"failed\",\"code\":\"made-up\"}",
        "\u{0}",
    ] {
        node.take(report.as_bytes());
    }
    let page = shim::exposition::write(node.own(&[], 0, Instant::now()));
    for line in [
        "cloister_node_starts_total 2",
        "cloister_node_start_failures_total{code=\"vmm-exited\"} 1",
        "cloister_node_reports_refused_total 2",
        "cloister_node_start_phase_seconds_count{phase=\"create\"} 2",
        "cloister_node_start_phase_seconds_bucket{phase=\"vmm\",le=\"0.25\"} 1",
    ] {
        assert!(page.lines().any(|it| it == line), "no `{line}` in:\n{page}");
    }
}
