//! What an operator relies on: the record, rotation, and SIGKILL.

use crate::deployment;

use std::{collections::BTreeMap, process::Command, time::Duration};

use bytes::Bytes;
use deployment::{
    Deployment, Guest, SECRET, fetch, kbs,
    pair::{ALLOW_ALL, Pair},
    succeed,
};
use http::{Method, Request, StatusCode};
use kbs_protocol::PREFIX;
use rand::RngExt;
use serde_json::Value;

const WRITES: usize = 500;
const NAMES: usize = 50;

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn each_decision_and_change_is_on_the_record() {
    let deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", "a/b/c", "--file", &secret]);
    let guest = Guest::challenged(&deployment, None).await;
    let token = guest.token(&deployment).await;
    let (_, denied) = fetch(&deployment, &token, "a/b/c").await.refusal();
    let policy = deployment.write("policy.rego", ALLOW_ALL);
    deployment.own(&["policy", "set", "--file", &policy]);
    fetch(&deployment, &token, "a/b/c").await;
    fetch(&deployment, &token, "a/b/d").await.refusal();
    deployment.own(&["resource", "delete", "a/b/c"]);
    let all = lines(&deployment.own(&["record", "export"]));
    let told: Vec<(&str, &str, &str)> = all
        .iter()
        .map(|one| {
            let text = |name: &str| one[name].as_str().unwrap();
            (text("kind"), text("result"), text("resource"))
        })
        .collect();
    assert_eq!(
        told,
        [
            ("resource", "set", "a/b/c"),
            ("attest", "allowed", "sample"),
            ("release", "denied", "a/b/c"),
            ("policy", "set", "resource-policy"),
            ("release", "allowed", "a/b/c"),
            ("release", "absent", "a/b/d"),
            ("resource", "deleted", "a/b/c"),
        ]
    );
    assert_eq!(all[1]["subject"], all[4]["subject"]);
    assert_eq!(all[1]["evidence"].as_str().unwrap().len(), 64);
    assert_eq!(all[2]["ticket"].as_str(), denied.ticket.as_deref());
    assert_eq!(
        (
            &all[2]["versions"]["release"],
            &all[4]["versions"]["release"]
        ),
        (&0.into(), &1.into())
    );
    for (entry, version) in [(0, 1), (4, 1), (6, 2)] {
        assert_eq!(all[entry]["versions"]["resource"], version, "{entry}");
    }
    let listed =
        lines(&deployment.own(&["record", "list", "--result", "denied", "--resource", "a/"]));
    assert_eq!(listed, [all[2].clone()]);
    let two = lines(&deployment.own(&["record", "export", "--limit", "2"]));
    assert_eq!(two, all[..2]);
}

#[tokio::test]
async fn a_master_key_is_rotated_while_the_broker_runs() {
    let deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", "a/b/c", "--file", &secret]);
    let config = deployment.path("kbs.toml");
    let rotated = kbs()
        .args(["key", "rotate", "--config"])
        .arg(config)
        .output()
        .unwrap();
    succeed(&rotated);
    let id = String::from_utf8(rotated.stdout).unwrap().trim().to_owned();
    let only_new = BTreeMap::from([(id, 1)]);
    eventually(async || {
        let status: Value = serde_json::from_str(&deployment.own(&["key", "status"])).unwrap();
        serde_json::from_value::<BTreeMap<String, i64>>(status["versions"].clone()).unwrap()
            == only_new
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_at_random_points_loses_nothing_and_leaves_nothing_half() {
    let mut deployment = Deployment::start(&["sample"]);
    let policy = deployment.write("policy.rego", ALLOW_ALL);
    deployment.own(&["policy", "set", "--file", &policy]);
    let bearer = format!("Bearer {}", deployment.admin_token());
    let mut next = 0;
    while next < WRITES {
        let (client, url, bearer) = (deployment.client(), deployment.url.clone(), bearer.clone());
        let writer = tokio::spawn(async move {
            let mut number = next;
            while number < WRITES && write(&client, &url, &bearer, number).await {
                number += 1;
            }
            number
        });
        let pause = rand::rng().random_range(20..400);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        deployment.crash_and_restart();
        next = writer.await.unwrap();
    }
    let guest = Guest::challenged(&deployment, None).await;
    let token = guest.token(&deployment).await;
    for name in 0..NAMES {
        let answer = fetch(&deployment, &token, &format!("r/x/n{name}")).await;
        let opened = guest
            .key
            .open(&serde_json::from_slice(&answer.body).unwrap())
            .ok()
            .unwrap();
        assert_eq!(opened.expose(), content(WRITES - NAMES + name));
    }
    // A write that was not answered may be there: then with its entry.
    let set = deployment
        .own(&["record", "export", "--kind", "resource"])
        .lines()
        .count();
    let versions: Vec<Value> = lines(&deployment.own(&["resource", "list"]));
    let written: u64 = versions
        .iter()
        .map(|one| one["version"].as_u64().unwrap())
        .sum();
    assert_eq!(u64::try_from(set).unwrap(), written);
    assert!(set >= WRITES);
}

/// Under load, so that some of the time it is frozen in the middle of a change.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_holds_up_the_other_one_for_seconds_at_most() {
    const FREEZES: usize = 4;
    let Some(mut pair) = Pair::start() else {
        return;
    };
    let guest = Guest::challenged(&pair.first, None).await;
    let token = guest.token(&pair.first).await;
    let bearer = format!("Bearer {}", pair.first.admin_token());
    let mut load = tokio::task::JoinSet::<()>::new();
    for writer in 0..4 {
        let (client, bearer) = (pair.first.client(), bearer.clone());
        let uri = format!("{}{PREFIX}/resource/r/x/{writer}", pair.first.url);
        load.spawn(async move {
            loop {
                let request = Request::post(uri.as_str()).header("authorization", bearer.as_str());
                let request = request.body(Bytes::from(content(1))).unwrap();
                if client.send(request).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    let first = pair.first.pid().to_string();
    let tell = |signal: &str| {
        let told = Command::new("kill").args([signal, first.as_str()]).status();
        assert!(told.unwrap().success());
    };
    pair.first.url.clone_from(&pair.second.url);
    for _ in 0..FREEZES {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tell("-STOP");
        // A release is answered when it is on the record.
        let answered = eventually(async || {
            let answer = fetch(&pair.first, &token, "a/b/c").await;
            answer.status == StatusCode::NOT_FOUND
        });
        let answered = tokio::time::timeout(Duration::from_secs(25), answered).await;
        answered.expect("the other one is held up");
        tell("-CONT");
    }
}

fn content(number: usize) -> Vec<u8> {
    format!("{number} ").repeat(500).into_bytes()
}

/// Whether it was answered.
async fn write(client: &transport::Client, url: &str, bearer: &str, number: usize) -> bool {
    let name = number % NAMES;
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(format!("{url}/kbs/v0/resource/r/x/n{name}"))
        .header("authorization", bearer)
        .body(bytes::Bytes::from(content(number)))
        .unwrap();
    let answer = client.send(request).await;
    answer.is_ok_and(|response| response.status().is_success())
}

async fn eventually(holds: impl AsyncFn() -> bool) {
    for _ in 0..100 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came true");
}
