//! Logs, and the streams of a runtime's streaming server.

use std::time::{Duration, Instant};

use support::cri::{AttachRequest, ExecRequest, PortForwardRequest, StreamingResponse};
use support::streaming::{Channels, channel};

use super::Place;

/// How long a line may take into its log.
const LOG_TIME: Duration = Duration::from_secs(10);

pub(crate) fn logs_have_both_outputs(place: &Place<'_>) {
    let line = "echo to the output; echo to the errors >&2; printf unfinished";
    let talker = place.start(&place.shell("talker", line));
    place.kube.cri.ended(&talker).unwrap();
    let wanted = [
        " stdout F to the output\n",
        " stderr F to the errors\n",
        " stdout P unfinished\n",
    ];
    logged(place, "talker.log", &wanted);
    place.remove(&talker);
}

/// Waits for words in a log: containerd writes it beside all else that it does.
#[track_caller]
fn logged(place: &Place<'_>, name: &str, wanted: &[&str]) {
    let since = Instant::now();
    loop {
        let log = place.kube.log_of(name);
        if wanted.iter().all(|words| log.contains(words)) {
            return;
        }
        assert!(since.elapsed() < LOG_TIME, "{wanted:?} in {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn streams_of_exec_and_attach_carry_bytes_and_the_end(place: &Place<'_>, main: &str) {
    exec_with_a_terminal(place, main);
    a_new_size_is_told_to_the_process(place, main);
    exec_with_pipes(place, main);
    attach(place);
}

/// To a port that only the pod's loopback has, as `kubectl port-forward` does it.
pub(crate) fn ports_are_forwarded_to_the_pods_loopback(place: &Place<'_>) {
    let question = PortForwardRequest {
        pod_sandbox_id: place.pod.to_owned(),
        port: vec![8080],
        ..Default::default()
    };
    let answer: StreamingResponse = place.kube.cri.call("PortForward", &question).unwrap();
    let mut port = Channels::open(&place.kube.node, &format!("{}?port=8080", answer.url)).unwrap();
    // Data and errors of the first port; each opens with its number.
    let (data, errors) = (0, 1);
    for channel in [data, errors] {
        let (from, number) = port.receive().unwrap().unwrap();
        assert_eq!((from, number), (channel, 8080_u16.to_le_bytes().to_vec()));
    }
    port.send(data, b"GET /marker HTTP/1.0\r\n\r\n").unwrap();
    let page = port.until(data, "from containerd").unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
}

fn exec_with_a_terminal(place: &Place<'_>, main: &str) {
    let mut shell = exec(place, main, &["/bin/sh"], true);
    shell
        .send(channel::RESIZE, br#"{"Width":93,"Height":31}"#)
        .unwrap();
    // The size is another stream than the words; the terminal has it after a while.
    shell
        .send(
            channel::STDIN,
            b"until stty size | grep -q '31 93'; do sleep 1; done; echo si''zed\n",
        )
        .unwrap();
    shell.until(channel::STDOUT, "sized").unwrap();
    shell.send(channel::STDIN, b"exit 7\n").unwrap();
    let status = shell.rest(channel::STATUS).unwrap();
    assert!(
        status.contains("exit code 7") || status.contains("\"7\""),
        "{status}"
    );
}

/// A program that draws on the terminal waits for the signal, of exec and of attach alike.
fn a_new_size_is_told_to_the_process(place: &Place<'_>, main: &str) {
    let line = "trap 'echo now $(stty size)' WINCH; echo ready; while :; do sleep 1; done";
    let mut further = exec(place, main, &["/bin/sh", "-c", line], true);
    further.until(channel::STDOUT, "ready").unwrap();
    resizes(&mut further);
    drop(further);
    let mut first = place.shell("drawing", line);
    (first.stdin, first.tty) = (true, true);
    let first = place.start(&first);
    // A size that comes before it waits for one is not told again.
    logged(place, "drawing.log", &["ready"]);
    let question = AttachRequest {
        container_id: first.clone(),
        stdin: true,
        stdout: true,
        tty: true,
        ..Default::default()
    };
    let answer: StreamingResponse = place.kube.cri.call("Attach", &question).unwrap();
    let mut attached = Channels::open(&place.kube.node, &answer.url).unwrap();
    resizes(&mut attached);
    drop(attached);
    place.remove(&first);
}

fn resizes(channels: &mut Channels) {
    for (width, height) in [(93, 31), (80, 25)] {
        let size = format!(r#"{{"Width":{width},"Height":{height}}}"#);
        channels.send(channel::RESIZE, size.as_bytes()).unwrap();
        let wanted = format!("now {height} {width}");
        channels.until(channel::STDOUT, &wanted).unwrap();
    }
}

fn exec_with_pipes(place: &Place<'_>, main: &str) {
    let line = "read word; echo out $word; echo err $word >&2";
    let mut pipes = exec(place, main, &["/bin/sh", "-c", line], false);
    pipes.send(channel::STDIN, b"here\n").unwrap();
    let mut said = [String::new(), String::new()];
    while let Some((from, bytes)) = pipes.receive().unwrap() {
        let text = String::from_utf8_lossy(&bytes);
        match from {
            channel::STDOUT => said[0].push_str(&text),
            channel::STDERR => said[1].push_str(&text),
            _ => {}
        }
    }
    assert_eq!(said, ["out here\n", "err here\n"]);
}

fn attach(place: &Place<'_>) {
    let mut listener = place.shell("listener", "while read word; do echo heard $word; done");
    listener.stdin = true;
    let listener = place.start(&listener);
    let question = AttachRequest {
        container_id: listener.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let answer: StreamingResponse = place.kube.cri.call("Attach", &question).unwrap();
    let mut attached = Channels::open(&place.kube.node, &answer.url).unwrap();
    attached.send(channel::STDIN, b"one\n").unwrap();
    attached.until(channel::STDOUT, "heard one").unwrap();
    drop(attached);
    // It runs on, and can be attached to again.
    let answer: StreamingResponse = place.kube.cri.call("Attach", &question).unwrap();
    let mut attached = Channels::open(&place.kube.node, &answer.url).unwrap();
    attached.send(channel::STDIN, b"two\n").unwrap();
    attached.until(channel::STDOUT, "heard two").unwrap();
    logged(place, "listener.log", &["heard one", "heard two"]);
    place.remove(&listener);
}

fn exec(place: &Place<'_>, container: &str, words: &[&str], tty: bool) -> Channels {
    let question = ExecRequest {
        container_id: container.to_owned(),
        cmd: words.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
        ..Default::default()
    };
    let answer: StreamingResponse = place.kube.cri.call("Exec", &question).unwrap();
    Channels::open(&place.kube.node, &answer.url).unwrap()
}
