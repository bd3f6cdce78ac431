//! Registries that stall, break off and are busy: each leads to success after another attempt, or to a named error.

use std::time::Duration;

use image_rs::registry::RegistryError;
use transport::{Error, Pace, Phase};

use crate::server::{Act, Asked, Server, World, content, head, manifest, read, reply};

pub(crate) const IMAGE: &str = "r.test/a:v1";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) async fn plain(
    script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static,
) -> (Server, World) {
    let server = Server::plain(script).await;
    let world = World::with(&[("r.test", &server)]);
    (server, world)
}

/// The head of a whole blob, and the first bytes of it.
pub(crate) fn beginning(content: &[u8], sent: usize) -> Act {
    let length = content.len().to_string();
    Act::Send(
        [
            head(200, &[("content-length", &length)]),
            content[..sent].to_vec(),
        ]
        .concat(),
    )
}

/// What is left of a blob from where it was asked for.
fn rest(content: &[u8], asked: &Asked) -> Vec<Act> {
    let from = asked.range().unwrap();
    let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
    reply(206, &[("content-range", &range)], &content[from..])
}

#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_where_it_stopped() {
    for end in [Act::Reset, Act::Close] {
        let bytes = content(500_000);
        let script = {
            let bytes = bytes.clone();
            move |asked: &Asked| match asked.before {
                0 => vec![beginning(&bytes, 200_000), end.clone()],
                _ => rest(&bytes, asked),
            }
        };
        let (server, world) = plain(script).await;
        let registry = world.registry(&["r.test"], |_, _| {});
        assert!(read(&registry, IMAGE, &bytes).await.unwrap() == bytes);
        let second = &server.asked()[1];
        assert!(second.range().unwrap() <= 200_000, "{second:?}");
        assert_eq!(server.asked().len(), 2);
    }
}

#[tokio::test]
async fn a_server_without_ranges_is_skipped_to_the_place() {
    let bytes = content(300_000);
    let script = {
        let bytes = bytes.clone();
        move |asked: &Asked| match asked.before {
            0 => vec![beginning(&bytes, 100_000), Act::Close],
            _ => reply(200, &[], &bytes),
        }
    };
    let (_, world) = plain(script).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    assert!(read(&registry, IMAGE, &bytes).await.unwrap() == bytes);
    // One that says that the range is not to be had is asked for all.
    let script = {
        let bytes = bytes.clone();
        move |asked: &Asked| match (asked.before, asked.range()) {
            (0, _) => vec![beginning(&bytes, 100_000), Act::Close],
            (_, Some(_)) => reply(416, &[], ""),
            (_, None) => reply(200, &[], &bytes),
        }
    };
    let (_, world) = plain(script).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    assert!(read(&registry, IMAGE, &bytes).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_blob_that_stalls_is_resumed_and_one_that_always_does_is_named() {
    let bytes = content(10_000);
    let script = {
        let bytes = bytes.clone();
        move |asked: &Asked| match asked.before {
            0 => vec![beginning(&bytes, 1_000), Act::Stall],
            _ => rest(&bytes, asked),
        }
    };
    let (_, world) = plain(script).await;
    let stalls = |reach: &mut image_rs::registry::Reach| {
        reach.timeouts.body = Duration::from_millis(200);
    };
    let registry = world.registry(&["r.test"], |reach, _| stalls(reach));
    assert!(read(&registry, IMAGE, &bytes).await.unwrap() == bytes);

    let script = {
        let bytes = bytes.clone();
        move |_: &Asked| vec![beginning(&bytes, 0), Act::Stall]
    };
    let (server, world) = plain(script).await;
    let registry = world.registry(&["r.test"], |reach, _| stalls(reach));
    let error = read(&registry, IMAGE, &bytes).await.unwrap_err();
    assert_eq!(phase(&error), Phase::Body);
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_blob_that_only_drips_is_stalled_too() {
    let bytes = content(100_000);
    let script = {
        let bytes = bytes.clone();
        move |_: &Asked| {
            let mut acts = vec![beginning(&bytes, 0)];
            for byte in &bytes {
                acts.push(Act::Send(vec![*byte]));
                acts.push(Act::Pause(Duration::from_millis(20)));
            }
            acts
        }
    };
    let (_, world) = plain(script).await;
    let registry = world.registry(&["r.test"], |reach, _| {
        reach.pace = Some(Pace {
            bytes: 10_000,
            within: Duration::from_millis(200),
        });
    });
    let error = read(&registry, IMAGE, &bytes).await.unwrap_err();
    assert_eq!(phase(&error), Phase::Pace { bytes: 10_000 });
    assert!(error.to_string().contains("10000 bytes"), "{error}");
}

#[tokio::test]
async fn a_connection_for_each_byte_is_not_gone_along_with() {
    let bytes = content(100_000);
    let script = {
        let bytes = bytes.clone();
        move |asked: &Asked| {
            let from = asked.range().unwrap_or(0);
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            let length = (bytes.len() - from).to_string();
            let headers = [
                ("content-range", range.as_str()),
                ("content-length", &length),
            ];
            let status = if from == 0 { 200 } else { 206 };
            let sent = [head(status, &headers), vec![bytes[from]]].concat();
            vec![Act::Send(sent), Act::Close]
        }
    };
    let (server, world) = plain(script).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    assert!(read(&registry, IMAGE, &bytes).await.is_err());
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_left_after_its_attempts() {
    let (server, world) = plain(|_| vec![Act::Stall]).await;
    let registry = world.registry(&["r.test"], |reach, _| {
        reach.timeouts.dial = Duration::from_millis(50);
        reach.timeouts.tls = Duration::from_millis(50);
        reach.timeouts.head = Duration::from_millis(100);
    });
    let error = registry
        .manifest(&IMAGE.parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(phase(&error), Phase::Head);
    assert!(error.to_string().contains("r.test"), "{error}");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_busy_registry_is_waited_for_as_it_asks_and_not_for_ever() {
    for wait in ["0", "1", "86400", "Wed, 21 Oct 2065 07:28:00 GMT"] {
        let (server, world) = plain(move |asked| match asked.before {
            0 => reply(429, &[("retry-after", wait)], ""),
            1 => reply(503, &[("retry-after", wait)], ""),
            _ => reply(200, &[("content-type", MANIFEST)], manifest()),
        })
        .await;
        let registry = world.registry(&["r.test"], |_, _| {});
        registry.manifest(&IMAGE.parse().unwrap()).await.unwrap();
        assert_eq!(server.asked().len(), 3);
    }
    let words = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull limit"}]}"#;
    let (server, world) = plain(move |_| reply(429, &[], words)).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let error = registry
        .manifest(&IMAGE.parse().unwrap())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(
            error,
            RegistryError::Busy {
                status: 429,
                attempts: 3,
                ..
            }
        ),
        "{text}"
    );
    assert!(text.contains("pull limit (TOOMANYREQUESTS)"), "{text}");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_redirect_that_goes_round_ends() {
    let (server, world) = plain(|asked| reply(307, &[("location", &asked.target)], "")).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let error = read(&registry, IMAGE, &content(10)).await.unwrap_err();
    let RegistryError::Unreachable { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(source, Error::Redirect { .. }), "{error}");
    assert!(server.asked().len() <= 6);
}

#[tokio::test]
async fn a_manifest_that_breaks_off_is_asked_for_again() {
    let (server, world) = plain(|asked| match asked.before {
        0 => vec![beginning(&manifest(), 20), Act::Reset],
        1 => vec![beginning(&manifest(), 20), Act::Close],
        _ => reply(200, &[("content-type", MANIFEST)], manifest()),
    })
    .await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let found = registry.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    assert_eq!(found.bytes, manifest());
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn an_empty_blob_needs_no_registry() {
    let world = World::default();
    let registry = world.registry(&[], |_, _| {});
    assert!(read(&registry, IMAGE, b"").await.unwrap().is_empty());
    assert!(!world.was_dialled("r.test"));
}

fn phase(error: &RegistryError) -> Phase {
    match error {
        RegistryError::Unreachable {
            source: Error::Timeout { phase, .. },
            ..
        } => *phase,
        other => panic!("{other}"),
    }
}
