//! Mirrors: what they are asked for, and that none of their faults is the end.

use std::time::Duration;

use image_rs::registry::{BlobStream, Mirror, PullFromMirror, RegistryError, Rule, Security};
use image_rs::{Digest, Reference};

use crate::server::{Act, Asked, Server, World, content, head, manifest, read, reply};

pub(crate) const IMAGE: &str = "r.test/team/a:v1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn mirror(location: &str, security: Security, pull: PullFromMirror) -> Mirror {
    Mirror {
        location: location.to_owned(),
        security,
        pull,
    }
}

/// `r.test`, with one mirror that has its images below `cache/`.
pub(crate) fn mirrored(pull: PullFromMirror) -> Vec<Rule> {
    vec![Rule {
        prefix: "r.test".to_owned(),
        mirrors: vec![mirror("m.test/cache", Security::Verified, pull)],
        ..Rule::default()
    }]
}

/// An honest registry for the blob `bytes`, and the manifest.
pub(crate) fn honest(bytes: &[u8]) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    let bytes = bytes.to_vec();
    move |asked| {
        if asked.target.contains("/manifests/") {
            return reply(200, &[("content-type", MANIFEST)], manifest());
        }
        match asked.range() {
            None => reply(200, &[], &bytes),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                reply(206, &[("content-range", &range)], &bytes[from..])
            }
        }
    }
}

pub(crate) fn pinned() -> Reference {
    format!("{IMAGE}@{}", Digest::of(&manifest()))
        .parse()
        .unwrap()
}

async fn all(blob: &mut BlobStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = blob.next().await.unwrap() {
        all.extend_from_slice(&piece);
    }
    all
}

pub(crate) const PLAIN: [&str; 2] = ["r.test", "m.test"];

#[tokio::test]
async fn a_mirror_serves_under_its_own_name_and_the_registry_is_not_asked() {
    let bytes = content(1000);
    let mirror = Server::plain(honest(&bytes)).await;
    let world = World::with(&[("m.test", &mirror)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    client.manifest(&pinned()).await.unwrap();
    assert_eq!(read(&client, IMAGE, &bytes).await.unwrap(), bytes);
    let paths = mirror.lines();
    assert_eq!(paths[0], "GET /v2/cache/team/a/manifests/v1");
    assert!(paths[1].starts_with("GET /v2/cache/team/a/manifests/sha256:"));
    assert!(paths[2].starts_with("GET /v2/cache/team/a/blobs/sha256:"));
    assert!(!world.was_dialled("r.test"));
}

#[tokio::test]
async fn a_tag_is_resolved_at_the_registry_unless_a_mirror_may() {
    let bytes = content(1000);
    let (server, mirror) = (
        Server::plain(honest(&bytes)).await,
        Server::plain(honest(&bytes)).await,
    );
    let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::DigestOnly);
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    assert_eq!(server.lines(), ["GET /v2/team/a/manifests/v1"]);
    assert!(mirror.lines().is_empty());
    // What has a digest is the same everywhere.
    client.manifest(&pinned()).await.unwrap();
    read(&client, IMAGE, &bytes).await.unwrap();
    assert_eq!((server.lines().len(), mirror.lines().len()), (1, 2));
}

#[tokio::test]
async fn whatever_a_mirror_does_the_registry_serves_in_the_end() {
    let bytes = content(1000);
    type Script = fn(&Asked) -> Vec<Act>;
    let faults: [(&str, Script); 9] = [
        ("unknown", |_| reply(404, &[], "")),
        ("denied", |_| {
            reply(401, &[("www-authenticate", "Basic")], "")
        }),
        ("broken", |_| reply(500, &[], "")),
        ("busy", |_| reply(429, &[("retry-after", "3600")], "")),
        ("cut off", |_| vec![Act::Reset]),
        ("no http", |_| {
            vec![Act::Send(b"hello\n".to_vec()), Act::Close]
        }),
        ("portal", |_| {
            reply(200, &[("content-type", "text/html")], "<html>")
        }),
        ("stall", |_| {
            vec![
                Act::Send(head(200, &[("content-length", "1000")])),
                Act::Stall,
            ]
        }),
        ("no answer", |_| vec![Act::Stall]),
    ];
    for (name, fault) in faults {
        let (server, mirror) = (
            Server::plain(honest(&bytes)).await,
            Server::plain(fault).await,
        );
        let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
        let client = world.registry(&PLAIN, |reach, setup| {
            setup.rules = mirrored(PullFromMirror::All);
            setup.auth = r#"{"auths":{"r.test":{"auth":"dXNlcjpwYXNzd29yZA=="}}}"#.to_owned();
            reach.timeouts.head = Duration::from_millis(400);
            reach.timeouts.dial = Duration::from_millis(400);
            reach.timeouts.tls = Duration::from_millis(400);
            reach.timeouts.body = Duration::from_millis(400);
        });
        let found = client.manifest(&pinned()).await;
        assert_eq!(
            found
                .unwrap_or_else(|error| panic!("{name}: {error}"))
                .bytes,
            manifest()
        );
        let found = read(&client, IMAGE, &bytes).await;
        assert_eq!(
            found.unwrap_or_else(|error| panic!("{name}: {error}")),
            bytes
        );
        assert!(!mirror.asked().is_empty(), "{name}");
        // The registry's credentials are not for the mirror.
        let told = mirror
            .asked()
            .iter()
            .any(|asked| asked.header("authorization").is_some());
        assert!(!told, "{name}");
    }
}

#[tokio::test]
async fn a_mirror_that_is_not_there_rests_until_the_registry_has_served() {
    let bytes = content(1000);
    let server = Server::plain(honest(&bytes)).await;
    let world = World::with(&[("r.test", &server)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    for _ in 0..5 {
        read(&client, IMAGE, &bytes).await.unwrap();
    }
    let dialled = world.dialled.lock().unwrap();
    let mirror = dialled.iter().filter(|host| *host == "m.test").count();
    assert_eq!(mirror, 2, "two attempts, and then none");
}

#[tokio::test]
async fn a_mirror_that_breaks_off_is_gone_on_from_by_the_registry() {
    let bytes = content(200_000);
    let script = {
        let bytes = bytes.clone();
        move |asked: &Asked| match asked.range() {
            None => {
                let head = head(200, &[("content-length", "200000")]);
                vec![
                    Act::Send([head, bytes[..50_000].to_vec()].concat()),
                    Act::Close,
                ]
            }
            Some(_) => reply(404, &[], ""),
        }
    };
    let (server, mirror) = (
        Server::plain(honest(&bytes)).await,
        Server::plain(script).await,
    );
    let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    assert!(read(&client, IMAGE, &bytes).await.unwrap() == bytes);
    assert_eq!(server.asked()[0].range(), Some(50_000));
}

#[tokio::test]
async fn a_mirror_that_lies_is_refused_and_the_registry_begins_anew() {
    let bytes = content(100_000);
    let mut lie = bytes.clone();
    lie[500] ^= 1;
    // The mirror lies and breaks off, so that the registry ends what the mirror began.
    for sent in [60_000, 100_000] {
        let lie = lie.clone();
        let script = move |asked: &Asked| match asked.range() {
            None => {
                let head = head(200, &[("content-length", "100000")]);
                vec![Act::Send([head, lie[..sent].to_vec()].concat()), Act::Close]
            }
            Some(_) => reply(404, &[], ""),
        };
        let (server, mirror) = (
            Server::plain(honest(&bytes)).await,
            Server::plain(script).await,
        );
        let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
        let client = world.registry(&PLAIN, |_, setup| {
            setup.rules = mirrored(PullFromMirror::All)
        });
        let (image, digest) = (IMAGE.parse().unwrap(), Digest::of(&bytes));
        let mut blob = client.blob(&image, &digest, 100_000);
        let found = all(&mut blob).await;
        assert!(found != bytes);
        blob.refuse(Digest::of(&found)).unwrap();
        assert!(all(&mut blob).await == bytes, "{sent}");
        // Were these wrong as well, nobody would be left.
        let error = blob.refuse(Digest::of(b"x")).unwrap_err().to_string();
        assert!(error.contains("registry r.test/team/a"), "{error}");
        assert!(blob.next().await.is_err());
    }
}

#[tokio::test]
async fn bytes_that_cannot_be_used_are_doubted_only_when_a_mirror_gave_them() {
    let bytes = content(1000);
    let lie = vec![0; 1000];
    let (server, mirror) = (
        Server::plain(honest(&bytes)).await,
        Server::plain(honest(&lie)).await,
    );
    let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    let (image, digest) = (IMAGE.parse().unwrap(), Digest::of(&bytes));
    let mut blob = client.blob(&image, &digest, 1000);
    assert!(!blob.doubt(&"nothing came"));
    assert_eq!(all(&mut blob).await, lie);
    assert!(blob.doubt(&"not an archive"));
    assert_eq!(all(&mut blob).await, bytes);
    assert!(!blob.doubt(&"not an archive"));
}

#[tokio::test]
async fn small_things_that_are_not_theirs_lead_to_the_next_place() {
    let config = manifest();
    let digest = Digest::of(&config);
    let mirror = Server::plain(|_| reply(200, &[("content-type", MANIFEST)], "{}")).await;
    let server = Server::plain(honest(&config)).await;
    let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    let image = IMAGE.parse().unwrap();
    assert_eq!(
        client.small_blob(&image, &digest, 1000).await.unwrap(),
        config
    );
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    assert_eq!(client.manifest(&pinned()).await.unwrap().bytes, config);
    assert_eq!(mirror.asked().len(), 2);
}

#[tokio::test]
async fn when_every_place_fails_each_is_told_and_the_registrys_own_word_counts() {
    let (server, mirror) = (
        Server::plain(|_| {
            reply(
                404,
                &[],
                r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such"}]}"#,
            )
        })
        .await,
        Server::plain(|_| reply(500, &[], "out of order")).await,
    );
    let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
    let client = world.registry(&["r.test", "m.test", "down.test"], |_, setup| {
        let mut rules = mirrored(PullFromMirror::All);
        rules[0].mirrors.insert(0, mirror_of("down.test"));
        setup.rules = rules;
    });
    for error in [
        client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err(),
        client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err(),
        read(&client, IMAGE, &content(10)).await.unwrap_err(),
    ] {
        assert!(
            matches!(error.decisive(), RegistryError::NotFound { .. }),
            "{error}"
        );
        let text = error.to_string();
        for word in [
            "mirror down.test/team/a: ",
            "mirror m.test/cache/team/a: ",
            "out of order",
            "registry r.test/team/a: ",
            "no such (NAME_UNKNOWN)",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }
}

fn mirror_of(location: &str) -> Mirror {
    mirror(location, Security::Verified, PullFromMirror::All)
}

#[tokio::test]
async fn each_place_has_the_credentials_of_its_own_name() {
    let guarded = |asked: &Asked| match asked.header("authorization") {
        None => reply(401, &[("www-authenticate", "Basic")], ""),
        Some(_) if asked.target.contains("/cache/") => reply(404, &[], ""),
        Some(_) => reply(200, &[], manifest()),
    };
    let (server, mirror) = (Server::plain(guarded).await, Server::plain(guarded).await);
    let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All);
        // a:1, a:2, a:3
        setup.auth = r#"{"auths":{"r.test":{"auth":"YTox"},"m.test/cache":{"auth":"YToy"},
            "m.test":{"auth":"YToz"}}}"#
            .to_owned();
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    let told = |server: &Server| server.asked()[1].header("authorization").map(str::to_owned);
    assert_eq!(told(&mirror).as_deref(), Some("Basic YToy"));
    assert_eq!(told(&server).as_deref(), Some("Basic YTox"));
}
