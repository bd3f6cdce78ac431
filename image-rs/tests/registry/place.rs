//! Other locations, what is blocked, what was named insecure, and what stands beside an image.

use image_rs::Digest;
use image_rs::registry::{Beside, PullFromMirror, RegistryError, Rule, Security};

use crate::mirror::{IMAGE, PLAIN, honest, mirrored, pinned};
use crate::server::{Asked, Identity, Server, World, content, read, reply};

/// Each page names the next; what is elsewhere is not asked, and there is an end.
#[tokio::test]
async fn a_list_of_referrers_is_read_page_by_page() {
    let digest = Digest::of(b"x");
    let page = |number: usize| format!(r#"{{"schemaVersion":2,"manifests":[{{"n":{number}}}]}}"#);
    let script = move |asked: &Asked| {
        let number = asked.target.split("last=").nth(1).unwrap_or("0");
        let number: usize = number.parse().unwrap();
        let path = asked.target.split('?').next().unwrap().to_owned();
        let next = match path.contains("/endless/") {
            true => Some(format!("<{path}?last={}>; rel=\"next\"", number + 1)),
            false => match number {
                0 => Some(format!("<{path}?n=1&last=1>; rel=\"next\"")),
                1 => Some(format!("<http://r.test{path}?n=1&last=2>; rel=next")),
                2 => Some(format!("<http://evil.test{path}?last=3>; rel=next")),
                _ => None,
            },
        };
        match next {
            Some(next) => reply(200, &[("link", &next)], page(number)),
            None => reply(200, &[], page(number)),
        }
    };
    let server = Server::plain(script).await;
    let world = World::with(&[("r.test", &server)]);
    let client = world.registry(&["r.test"], |_, _| {});
    let numbers = async |image: &str| {
        let image = image.parse().unwrap();
        let list = client.beside(&image, Beside::Referrers(&digest)).await;
        let list: serde_json::Value = serde_json::from_slice(&list.unwrap().unwrap()).unwrap();
        let items = list["manifests"].as_array().unwrap().iter();
        items
            .map(|item| item["n"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers("r.test/a:v1").await, [0, 1, 2]);
    let endless = numbers("r.test/endless/a:v1").await;
    assert_eq!(endless, (0..16).collect::<Vec<_>>());
    assert_eq!(server.asked().len(), 3 + 16);
}

#[tokio::test]
async fn what_stands_beside_an_image_is_found_wherever_it_is() {
    let digest = Digest::of(b"x");
    let script = |asked: &Asked| {
        let known =
            asked.target.contains("/referrers/") || asked.target.starts_with("/extensions/");
        if known {
            reply(200, &[], "{}")
        } else {
            reply(404, &[], "")
        }
    };
    let (server, mirror) = (
        Server::plain(script).await,
        Server::plain(|_| reply(404, &[], "")).await,
    );
    let world = World::with(&[("r.test", &server), ("m.test", &mirror)]);
    let client = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    let image = pinned();
    for which in [
        Beside::Referrers(&digest),
        Beside::SimpleSignatures(&digest),
    ] {
        assert_eq!(client.beside(&image, which).await.unwrap().unwrap(), "{}");
    }
    assert_eq!(
        server.lines(),
        [
            format!("GET /v2/team/a/referrers/{digest}"),
            format!("GET /extensions/v2/team/a/signatures/{digest}"),
        ]
    );
    assert_eq!(
        mirror.lines()[0],
        format!("GET /v2/cache/team/a/referrers/{digest}")
    );
    // The registry's own no is an answer; that it cannot be reached is none.
    let other = "m.test/b:v1".parse().unwrap();
    assert_eq!(
        client
            .beside(&other, Beside::Referrers(&digest))
            .await
            .unwrap(),
        None
    );
    let gone = world.registry(&["gone.test"], |_, _| {});
    let image = "gone.test/a:v1".parse().unwrap();
    assert!(
        gone.beside(&image, Beside::Referrers(&digest))
            .await
            .is_err()
    );
    assert_eq!(client.aside("http://m.test/x", 10).await.unwrap(), None);
    let aside = client
        .aside("http://r.test/extensions/x", 10)
        .await
        .unwrap();
    assert_eq!(aside.unwrap(), "{}");
    assert!(client.aside("http://r.test/extensions/x", 1).await.is_err());
}

#[tokio::test]
async fn a_location_takes_the_place_of_the_prefix_and_a_blocked_name_has_none() {
    let server = Server::plain(honest(b"")).await;
    let world = World::with(&[("inner.test", &server)]);
    let rule = |prefix: &str, location: Option<&str>| Rule {
        prefix: prefix.to_owned(),
        location: location.map(str::to_owned),
        blocked: location.is_none(),
        ..Rule::default()
    };
    let client = world.registry(&["inner.test", "r.test"], |_, setup| {
        setup.rules = vec![
            rule("r.test/team", Some("inner.test/deep")),
            rule("r.test/team/bad", None),
        ];
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    assert_eq!(server.lines(), ["GET /v2/deep/a/manifests/v1"]);
    let bad = "r.test/team/bad/x:v1";
    let errors = [
        client.manifest(&bad.parse().unwrap()).await.unwrap_err(),
        read(&client, bad, &content(10)).await.unwrap_err(),
    ];
    for error in errors {
        let RegistryError::Blocked { image, prefix } = &error else {
            panic!("{error}");
        };
        assert_eq!((image.as_str(), prefix.as_str()), (bad, "r.test/team/bad"));
    }
    assert!(!world.was_dialled("r.test"));
}

#[tokio::test]
async fn insecure_is_any_certificate_or_none_and_only_where_it_is_named() {
    let identity = Identity::of(&["another.name"]);
    let tls = Server::tls(&identity, honest(b"")).await;
    let plain = Server::plain(honest(b"")).await;
    let world = World::with(&[
        ("tls.test", &tls),
        ("plain.test", &plain),
        ("other.test", &tls),
    ]);
    let rule = |prefix: &str| Rule {
        prefix: prefix.to_owned(),
        security: Security::Insecure,
        ..Rule::default()
    };
    let client = world.registry(&[], |_, setup| {
        setup.rules = vec![rule("tls.test/loose"), rule("plain.test")];
    });
    for _ in 0..2 {
        for image in ["tls.test/loose/a:v1", "plain.test/a:v1"] {
            client.manifest(&image.parse().unwrap()).await.unwrap();
        }
    }
    // One that listens on the port of plain HTTP alone.
    world.name("bare.test:80", plain.port);
    let bare = world.registry(&[], |_, setup| setup.rules = vec![rule("bare.test")]);
    bare.manifest(&"bare.test/a:v1".parse().unwrap())
        .await
        .unwrap();
    // The same host, but a name for which nothing was allowed.
    for image in ["tls.test/strict/a:v1", "other.test/a:v1"] {
        let error = client.manifest(&image.parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("is not trusted"), "{error}");
    }
    let secure = world.registry(&[], |_, _| {});
    let error = secure
        .manifest(&"plain.test/a:v1".parse().unwrap())
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error}"
    );
    assert_eq!(plain.lines().len(), 3);
}

#[tokio::test]
async fn roots_of_one_registry_are_not_those_of_another() {
    let identity = Identity::of(&["one.test", "two.test"]);
    let server = Server::tls(&identity, honest(b"")).await;
    let world = World::with(&[("one.test", &server), ("two.test", &server)]);
    let client = world.registry(&[], |reach, _| {
        reach
            .host_roots
            .insert("one.test".to_owned(), identity.roots());
    });
    client
        .manifest(&"one.test/a:v1".parse().unwrap())
        .await
        .unwrap();
    let error = client
        .manifest(&"two.test/a:v1".parse().unwrap())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is not trusted"), "{error}");
}
