//! What an operator relies on: the record, rotation, and SIGKILL.
#![allow(clippy::unwrap_used)]

mod deployment;

use std::{collections::BTreeMap, time::Duration};

use deployment::{Deployment, Guest, SECRET, fetch, kbs, succeed};
use http::Method;
use rand::RngExt;
use serde_json::Value;

const ALLOW_ALL: &str = "package policy\nallow := true\n";
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
