//! `kbs serve --dev`, walked as somebody does who has nothing: the printed lines, in a shell.

use crate::deployment;

use std::{fs, process::Command};

use deployment::{Deployment, Guest, fetch};

/// The lines for the shell, without the one that needs a ticket.
fn commands(printed: &str) -> Vec<&str> {
    let lines = printed.lines().filter_map(|line| line.strip_prefix("  "));
    lines.filter(|line| !line.ends_with("TICKET")).collect()
}

fn shell(lines: &[&str]) -> String {
    let output = Command::new("sh")
        .args(["-eu", "-c", &lines.join("\n")])
        .output()
        .unwrap();
    deployment::succeed(&output);
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn from_nothing_to_a_released_secret_by_the_printed_lines() {
    let (broker, printed) = Deployment::start_dev();
    assert!(printed.contains("FOR DEVELOPMENT ONLY"), "{printed}");
    let lines = commands(&printed);
    let (guest, owner) = lines.split_last().unwrap();
    shell(owner);

    let init_data = fs::read_to_string(broker.path("init-data.toml")).unwrap();
    let insider = Guest::challenged(&broker, Some(&init_data)).await;
    let token = insider.token(&broker).await;
    let answer = fetch(&broker, &token, "default/key/demo").await;
    let jwe = serde_json::from_slice(&answer.body).unwrap();
    let secret = insider.key.open(&jwe).ok().unwrap();
    assert_eq!(secret.expose(), b"open sesame\n");

    // Who was launched with other init-data is refused, as the pinned policy says.
    let outsider = Guest::challenged(&broker, None).await;
    let token = outsider.token(&broker).await;
    let (kind, _) = fetch(&broker, &token, "default/key/demo").await.refusal();
    assert_eq!(kind, kbs_protocol::ErrorKind::PolicyDeny);

    match support::product::bin("attestation-agent") {
        Ok(agent) => {
            // The printed name is the broker's neighbour; the test's may be built elsewhere.
            let (_, arguments) = guest.split_once(" get-resource ").unwrap();
            let line = format!("{} get-resource {arguments}", agent.display());
            let exports: Vec<&str> = owner
                .iter()
                .copied()
                .filter(|line| line.starts_with("export"))
                .collect();
            assert_eq!(shell(&[&exports[..], &[&line]].concat()), "open sesame\n");
        }
        Err(error) => support::skip(&error.to_string()),
    }
}

#[tokio::test]
async fn a_second_start_has_the_keys_and_the_secrets_of_the_first() {
    let (mut broker, printed) = Deployment::start_dev();
    shell(&commands(&printed)[..4]);
    let root = fs::read(broker.path("tls-root.pem")).unwrap();
    broker.restart_dev();
    assert_eq!(fs::read(broker.path("tls-root.pem")).unwrap(), root);
    let listed = broker.own(&["resource", "list"]);
    assert!(listed.contains("default/key/demo"), "{listed}");
}

#[test]
fn a_configuration_beside_dev_is_refused_and_not_passed_over() {
    let output = Command::new(env!("CARGO_BIN_EXE_kbs"))
        .args(["serve", "--dev", "--config", "kbs.toml"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        said.contains("--config") && said.contains("--dev"),
        "{said}"
    );
}
