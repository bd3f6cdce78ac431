//! The command line for people, on a host without containerd: a run by hand, looked at, entered and ended.
//! One VM for all of it.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::by_hand::{ByHand, QUICK};
use support::need;
use support::product;
use support::run::{Running, with_input};
use support::stage::{START, TOOLS};

#[test]
fn a_run_that_is_left_to_itself_is_seen_entered_and_ended() {
    if !need(&[&TOOLS[..], &["script"]].concat()) {
        return;
    }
    let host = ByHand::new().unwrap();
    let before = host.stage.containerd.leftovers();
    let script = "trap 'echo asked; exit 5' TERM; echo out $A; echo err >&2; pwd; id -u; busybox ip -o -4 addr; \
                  while :; do sleep 0.2; done";
    let flags = [
        "--detach",
        "--name",
        "web",
        "-e",
        "A=env-value",
        "-w",
        "/tmp",
        "-u",
        "7:7",
        "--network",
        "user",
        "--memory",
        "64m",
    ];
    let said = with_input(
        START,
        &mut host.run(&flags, &["/bin/sh", "-c", script]).unwrap(),
        b"",
    )
    .unwrap();
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (0, "web\n"),
        "{}",
        said.report()
    );

    it_is_listed_and_its_log_is_there(&host);
    programs_run_beside_it(&host);
    terminals_are_real_ones(&host);
    a_terminal_must_be_one(&host);
    what_it_uses_is_shown(&host);
    a_bug_report_has_no_secret(&host);
    its_name_is_taken_and_it_stays_while_it_runs(&host);

    let follow = Running::start(
        &mut host
            .command(&["logs", "--follow", "--tail", "0", "web"])
            .unwrap(),
    )
    .unwrap();
    let said = host.say(&["stop", "web"]).unwrap();
    assert!(
        said.code == 0
            && said
                .stdout
                .contains("ended when it was asked, with exit code 5"),
        "{}",
        said.report()
    );
    let followed = follow.finish(QUICK).unwrap();
    assert_eq!(followed.stdout, "asked\n", "{}", followed.report());
    let row = host.row("web").unwrap();
    assert_eq!(
        (&row["phase"], &row["exit_code"]),
        (&"exited".into(), &5.into())
    );
    let again = host.say(&["stop", "web"]).unwrap();
    assert!(
        again.code == 0 && again.stdout.contains("has ended before"),
        "{}",
        again.report()
    );
    what_happened_is_told(&host);
    host.say(&["rm", "web"]).unwrap().ok().unwrap();
    assert!(host.rows().unwrap().is_empty());
    let missing = host.say(&["logs", "web"]).unwrap();
    assert!(
        missing.code == 1 && missing.stderr.contains("no run web"),
        "{}",
        missing.report()
    );
    host.stage.settled(&before).unwrap();
}

fn it_is_listed_and_its_log_is_there(host: &ByHand) {
    let row = host.row("web").unwrap();
    assert_eq!(
        (&row["phase"], &row["image"]),
        (&"running".into(), &host.image.as_str().into())
    );
    assert!(row["vm_pid"].is_u64(), "{row}");
    let table = host.say(&["ps"]).unwrap().stdout;
    assert!(
        table.starts_with("NAME") && table.contains("web") && table.contains("Up "),
        "{table}"
    );
    host.until("the program's words", || {
        Ok(host.say(&["logs", "web"])?.stdout.contains("eth0"))
    })
    .unwrap();
    let log = host.say(&["logs", "web"]).unwrap();
    assert_eq!(log.stderr, "err\n");
    assert!(
        log.stdout.starts_with("out env-value\n/tmp\n7\n"),
        "{}",
        log.report()
    );
    assert!(log.stdout.contains("10.0.2.15/24"), "{}", log.report());
    let last = host
        .say(&["logs", "--tail", "1", "--timestamps", "web"])
        .unwrap();
    assert_eq!(last.stdout.lines().count(), 1, "{}", last.report());
    let now = host.say(&["logs", "--since", "0s", "web"]).unwrap();
    assert_eq!(now.stdout, "", "{}", now.report());
}

fn programs_run_beside_it(host: &ByHand) {
    let exec = |words: &[&str], input: &[u8]| {
        let mut command = host.command(&["exec"]).unwrap();
        command.args(words);
        with_input(QUICK, &mut command, input).unwrap()
    };
    let both = exec(&["web", "/bin/sh", "-c", "echo o; echo e >&2; exit 3"], b"");
    assert_eq!(
        (both.code, both.stdout.as_str(), both.stderr.as_str()),
        (3, "o\n", "e\n"),
        "{}",
        both.report()
    );
    let input = exec(&["-i", "web", "/bin/wc", "-c"], &[b'x'; 200_000]);
    assert_eq!(input.stdout.trim(), "200000", "{}", input.report());
    let options = exec(
        &[
            "-e",
            "B=two words",
            "-w",
            "/etc",
            "-u",
            "9",
            "web",
            "/bin/sh",
            "-c",
            "echo $B; pwd; id -u",
        ],
        b"",
    );
    assert_eq!(
        options.stdout,
        "two words\n/etc\n9\n",
        "{}",
        options.report()
    );
    let none = exec(&["web", "/bin/none"], b"");
    assert_eq!(none.code, 127, "{}", none.report());
    let blunt = exec(&["web", "/etc/passwd"], b"");
    assert_eq!(blunt.code, 126, "{}", blunt.report());
    let signalled = exec(&["web", "/bin/sh", "-c", "kill -9 $$"], b"");
    assert_eq!(signalled.code, 137, "{}", signalled.report());
    // What a terminal's user sends goes to the program.
    let mut sleep = host
        .command(&[
            "exec",
            "web",
            "/bin/sh",
            "-c",
            "trap 'exit 9' INT; echo go; while :; do sleep 0.1; done",
        ])
        .unwrap();
    let running = Running::start(&mut sleep).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    running.interrupt().unwrap();
    let ended = running.finish(QUICK).unwrap();
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (9, "go\n"),
        "{}",
        ended.report()
    );
}

/// Through util-linux' `script`, which gives a program a terminal of 24 rows and 80 columns or as told.
fn terminals_are_real_ones(host: &ByHand) {
    let cloister = product::bin("cloister").unwrap();
    let line = format!(
        "stty rows 31 cols 91; {} exec -it web /bin/sh -c 'sleep 2; stty size; read line; echo got $line'; stty -a | grep -c ' echo '",
        cloister.display()
    );
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("CLOISTER_STATE_ROOT", host.root());
    let running = Running::start(&mut command).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let said = running.feed(b"typed\r").finish(QUICK).unwrap();
    assert!(said.stdout.contains("31 91"), "{}", said.report());
    assert!(said.stdout.contains("got typed"), "{}", said.report());
}

/// Before a VM is booted for it.
fn a_terminal_must_be_one(host: &ByHand) {
    for mut command in [
        host.run(&["-it"], &[]).unwrap(),
        host.command(&["exec", "-it", "web", "/bin/sh"]).unwrap(),
    ] {
        let said = with_input(QUICK, &mut command, b"").unwrap();
        assert!(
            said.code == 125 && said.stderr.contains("leave --tty away"),
            "{}",
            said.report()
        );
    }
    assert_eq!(host.rows().unwrap().len(), 1);
}

fn what_it_uses_is_shown(host: &ByHand) {
    let said = host.say(&["top", "--json", "web"]).unwrap();
    let rows: Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(
        rows[0]["processes"].as_u64().unwrap() >= 1,
        "{}",
        said.report()
    );
    assert!(
        rows[0]["memory_bytes"].as_u64().unwrap() > 0,
        "{}",
        said.report()
    );
    assert_eq!(rows[0]["memory_limit_bytes"], 64 << 20, "{}", said.report());
    assert!(
        rows[0]["vm_resident_bytes"].as_u64().unwrap() > 1 << 20,
        "{}",
        said.report()
    );
    let table = host.say(&["top", "web"]).unwrap().stdout;
    assert!(
        table.starts_with("NAME") && table.contains("web"),
        "{table}"
    );
}

fn a_bug_report_has_no_secret(host: &ByHand) {
    let archive = host.stage.state.path().join("report.tar.gz");
    let archive = archive.to_str().unwrap();
    let config = host.config.to_str().unwrap();
    host.say(&["collect", "--logs", "--config", config, "--output", archive])
        .unwrap()
        .ok()
        .unwrap();
    let unpack = ["-xzOf", archive];
    let text = with_input(QUICK, Command::new("tar").args(unpack), b"")
        .unwrap()
        .ok()
        .unwrap()
        .stdout;
    for part in [
        "\"phase\": \"running\"",
        "can_run",
        "hypervisor.qemu",
        "out [redacted]",
        "\"lives\": true",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    for secret in ["env-value", "echo asked", "BEGIN CERTIFICATE"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    let again = host.say(&["collect", "--output", archive]).unwrap();
    assert!(
        again.code == 1 && again.stderr.contains("exists"),
        "{}",
        again.report()
    );
}

fn its_name_is_taken_and_it_stays_while_it_runs(host: &ByHand) {
    let taken = with_input(QUICK, &mut host.run(&["--name", "web"], &[]).unwrap(), b"").unwrap();
    assert!(
        taken.code == 125 && taken.stderr.contains("is taken"),
        "{}",
        taken.report()
    );
    let runs = host.say(&["rm", "web"]).unwrap();
    assert!(
        runs.code == 1 && runs.stderr.contains("cloister stop web"),
        "{}",
        runs.report()
    );
}

fn what_happened_is_told(host: &ByHand) {
    let said = host
        .say(&["events", "--no-follow", "web"])
        .unwrap()
        .ok()
        .unwrap();
    let events: Vec<Value> = said
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let has = |kind: &str| events.iter().any(|event| event["type"] == kind);
    for kind in ["create", "start", "exec-started", "exit", "delete"] {
        assert!(has(kind), "no {kind} in {}", said.stdout);
    }
    let exit = events
        .iter()
        .rfind(|event| event["type"] == "exit")
        .unwrap();
    assert_eq!(
        (&exit["code"], &exit["exec"]),
        (&5.into(), &Value::Null),
        "{exit}"
    );
}
