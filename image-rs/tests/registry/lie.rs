//! Registries that send what was not asked for: each lie has a named error.

use image_rs::Digest;
use image_rs::registry::RegistryError;
use transport::Error;

use crate::fault::{IMAGE, MANIFEST, beginning, plain};
use crate::server::{Act, Asked, content, head, manifest, read, reply};

#[tokio::test]
async fn bytes_behind_an_answer_do_not_become_the_next_one() {
    let bytes = content(1000);
    let script = {
        let bytes = bytes.clone();
        move |asked: &Asked| {
            let mut acts = reply(200, &[], &bytes);
            if asked.before == 0 {
                acts.push(Act::Send(reply_bytes(b"not the blob")));
            }
            acts
        }
    };
    let (_, world) = plain(script).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    for _ in 0..3 {
        assert!(read(&registry, IMAGE, &bytes).await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused_announced_or_not() {
    let bytes = content(1000);
    for longer in [999, 1001, 100_000] {
        let sent = content(longer);
        let (_, world) = plain(move |_| reply(200, &[], &sent)).await;
        let registry = world.registry(&["r.test"], |_, _| {});
        let error = read(&registry, IMAGE, &bytes).await.unwrap_err();
        assert!(
            matches!(error, RegistryError::Length { expected: 1000, .. }),
            "{error}"
        );
    }
    let (_, world) = plain(|_| {
        let chunk = format!("{:x}\r\n", 1001);
        let body = [chunk.as_bytes(), &content(1001), b"\r\n0\r\n\r\n"].concat();
        vec![Act::Send(
            [head(200, &[("transfer-encoding", "chunked")]), body].concat(),
        )]
    })
    .await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let error = read(&registry, IMAGE, &bytes).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::TooLarge { cap: 1000, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_named() {
    for range in ["bytes 0-9999/10000", "bytes 5000-9999/20000", "none"] {
        let bytes = content(10_000);
        let script = {
            let bytes = bytes.clone();
            move |asked: &Asked| match asked.before {
                0 => vec![beginning(&bytes, 4_000), Act::Close],
                _ => reply(206, &[("content-range", range)], &bytes[5_000..]),
            }
        };
        let (_, world) = plain(script).await;
        let registry = world.registry(&["r.test"], |_, _| {});
        let error = read(&registry, IMAGE, &bytes).await.unwrap_err();
        let RegistryError::Range { found, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(found, range);
    }
}

#[tokio::test]
async fn flipped_bytes_are_found_by_tag_and_by_digest() {
    let script = |asked: &Asked| {
        let mut bytes = manifest();
        let digest = Digest::of(&bytes).to_string();
        if !asked.target.ends_with("/honest") {
            bytes[3] ^= 1;
        }
        reply(
            200,
            &[
                ("content-type", MANIFEST),
                ("docker-content-digest", &digest),
            ],
            bytes,
        )
    };
    let (_, world) = plain(script).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let digest = Digest::of(&manifest());
    for image in [
        IMAGE.to_owned(),
        format!("r.test/a@{digest}"),
        format!("{IMAGE}@{digest}"),
    ] {
        let error = registry
            .manifest(&image.parse().unwrap())
            .await
            .unwrap_err();
        let RegistryError::Digest { expected, .. } = error else {
            panic!("{image}: {error}");
        };
        assert_eq!(expected, digest);
    }
    let found = registry.manifest(&"r.test/a:honest".parse().unwrap()).await;
    assert_eq!(found.unwrap().digest, digest);
    let image = IMAGE.parse().unwrap();
    let error = registry
        .small_blob(&image, &digest, 1000)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
}

#[tokio::test]
async fn an_endless_head_and_a_giant_manifest_are_refused() {
    let (_, world) = plain(|asked| {
        let long = "x".repeat(1024);
        match asked.target.rsplit('/').next() {
            Some("head") => {
                let line = format!("a: {long}\r\n").repeat(2000);
                vec![Act::Send(
                    format!("HTTP/1.1 200 OK\r\n{line}\r\n").into_bytes(),
                )]
            }
            Some("announced") => vec![
                Act::Send(head(200, &[("content-length", "1000000000000")])),
                Act::Stall,
            ],
            _ => {
                let chunk = format!("400\r\n{long}\r\n").repeat(5000);
                let head = head(200, &[("transfer-encoding", "chunked")]);
                vec![Act::Send([head, chunk.into_bytes()].concat()), Act::Stall]
            }
        }
    })
    .await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let manifest = async |tag: &str| {
        let image = format!("r.test/a:{tag}").parse().unwrap();
        registry.manifest(&image).await.unwrap_err()
    };
    let error = manifest("head").await;
    let RegistryError::Unreachable { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(source, Error::HeadTooLarge { .. }), "{error}");
    for tag in ["announced", "chunked"] {
        let error = manifest(tag).await;
        assert!(
            matches!(error, RegistryError::TooLarge { .. }),
            "{tag}: {error}"
        );
    }
}

#[tokio::test]
async fn a_page_of_a_portal_is_not_a_manifest() {
    let (_, world) = plain(|_| {
        reply(
            200,
            &[("content-type", "text/html; charset=utf-8")],
            "<html>",
        )
    })
    .await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let error = registry
        .manifest(&IMAGE.parse().unwrap())
        .await
        .unwrap_err();
    let RegistryError::ContentType { found, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(found, "text/html; charset=utf-8");
}

#[tokio::test]
async fn what_is_not_http_is_named() {
    let (_, world) =
        plain(|_| vec![Act::Send(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()), Act::Close]).await;
    let registry = world.registry(&["r.test"], |_, _| {});
    let error = registry
        .manifest(&IMAGE.parse().unwrap())
        .await
        .unwrap_err();
    let RegistryError::Unreachable { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(source, Error::Protocol { .. }), "{error}");
}

fn reply_bytes(body: &[u8]) -> Vec<u8> {
    let acts = reply(200, &[], body);
    let bytes = acts.into_iter().map(|act| match act {
        Act::Send(bytes) => bytes,
        _ => Vec::new(),
    });
    bytes.collect::<Vec<_>>().concat()
}
