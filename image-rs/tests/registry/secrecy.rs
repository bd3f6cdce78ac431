//! Who never gets to see credentials: realms, redirects, helpers.

use image_rs::Digest;
use image_rs::registry::RegistryError;

use crate::auth::{IMAGE, PAIR, guarded, password, scene, token_of, tokens};
use crate::server::{Identity, Server, World, manifest, read, reply};

#[tokio::test]
async fn the_realm_of_a_registry_with_tls_must_have_it_too() {
    let identity = Identity::of(&["r.test"]);
    for (realm, word) in [
        ("http://auth.test/token", "not https"),
        ("https://user@auth.test/token", "a user in it"),
        ("file:///etc/passwd", "file"),
        ("/token", "relative"),
    ] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let server = Server::tls(&identity, guarded(&challenge, token_of)).await;
        let service = Server::plain(tokens(r#"{"token":"for-NAME"}"#)).await;
        let world = World::with(&[("r.test", &server), ("auth.test", &service)]);
        let client = world.registry(&["auth.test"], |reach, setup| {
            reach.roots = identity.roots();
            setup.auth = password();
        });
        let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Realm { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!world.was_dialled("auth.test"));
    }
}

#[tokio::test]
async fn plain_http_to_a_realm_needs_its_own_permission() {
    let scene = scene(r#"{"token":"for-NAME"}"#).await;
    let client = scene
        .world
        .registry(&["r.test"], |_, setup| setup.auth = password());
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("auth.test"), "{error}");
    assert!(scene.service.asked().is_empty());
}

#[tokio::test]
async fn credentials_stay_home_when_a_registry_redirects() {
    let store = Server::plain(|_| reply(200, &[], manifest())).await;
    let registry = Server::plain(|asked| {
        match (
            asked.header("authorization"),
            asked.target.contains("/blobs/"),
        ) {
            (Some(PAIR), true) => reply(307, &[("location", "http://store.test/x?sig=1")], ""),
            (Some(PAIR), false) => reply(200, &[], manifest()),
            _ => reply(401, &[("www-authenticate", "Basic")], ""),
        }
    })
    .await;
    let world = World::with(&[("r.test", &registry), ("store.test", &store)]);
    let client = world.registry(&["r.test", "store.test"], |_, setup| {
        setup.auth = password()
    });
    assert_eq!(read(&client, IMAGE, &manifest()).await.unwrap(), manifest());
    let asked = &store.asked()[0];
    assert_eq!(asked.target, "/x?sig=1");
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test]
async fn an_error_does_not_repeat_the_secrets_of_a_redirect() {
    for location in [
        "http://user:pw@store.test/x?sig=1",
        "ftp://user:pw@store.test/x?sig=1",
        "https://store.test/x?sig=1",
        "http://store.test:1/x?sig=1",
    ] {
        let answer = move |_: &_| reply(307, &[("location", location)], "");
        let registry = Server::plain(answer).await;
        let world = World::with(&[("r.test", &registry)]);
        let client = world.registry(&["r.test"], |_, _| {});
        let error = read(&client, IMAGE, &manifest()).await.unwrap_err();
        let text = format!("{error} {error:?}");
        for secret in ["pw", "sig="] {
            assert!(!text.contains(secret), "{location}: {text}");
        }
    }
}

#[tokio::test]
async fn nothing_is_told_of_what_a_place_behind_a_redirect_answers() {
    const SECRET: &str = "what only the guest may read";
    for status in [401, 404, 418, 500, 503] {
        let within = Server::plain(move |_| reply(status, &[], SECRET)).await;
        let lead = |_: &_| reply(307, &[("location", "http://within.test/x")], "");
        let registry = Server::plain(lead).await;
        let world = World::with(&[("r.test", &registry), ("within.test", &within)]);
        let client = world.registry(&["r.test", "within.test"], |_, _| {});
        let manifest_error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
        let blob_error = read(&client, IMAGE, &manifest()).await.unwrap_err();
        assert!(!within.asked().is_empty());
        for error in [manifest_error, blob_error] {
            let text = format!("{error} {error:?}");
            assert!(!text.contains("only the guest"), "{status}: {text}");
            assert!(text.contains("behind a redirect"), "{status}: {text}");
        }
        // The registry's own words still are.
        let own = Server::plain(move |_| reply(status, &[], SECRET)).await;
        world.name("r.test", own.port);
        let client = world.registry(&["r.test"], |_, _| {});
        let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains(SECRET), "{status}: {error}");
    }
}

#[tokio::test]
async fn nothing_is_told_of_what_a_token_service_redirects_to() {
    let within = Server::plain(|_| reply(403, &[], "only the guest")).await;
    let service = Server::plain(|_| reply(307, &[("location", "http://within.test/x")], "")).await;
    let challenge = r#"Bearer realm="http://auth.test/token""#;
    let registry = Server::plain(guarded(challenge, token_of)).await;
    let world = World::with(&[
        ("r.test", &registry),
        ("auth.test", &service),
        ("within.test", &within),
    ]);
    let client = world.registry(&["r.test", "auth.test", "within.test"], |_, _| {});
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    assert!(!within.asked().is_empty());
    assert!(!error.to_string().contains("only the guest"), "{error}");
}

#[tokio::test]
async fn a_challenge_from_behind_a_redirect_is_not_answered() {
    let challenge = r#"Bearer realm="http://evil.test/token""#;
    let evil = Server::plain(guarded(challenge, |_| "nobody's".to_owned())).await;
    let registry = Server::plain(|_| reply(307, &[("location", "http://evil.test/x")], "")).await;
    let world = World::with(&[("r.test", &registry), ("evil.test", &evil)]);
    let client = world.registry(&["r.test", "evil.test"], |_, setup| setup.auth = password());
    let error = read(&client, IMAGE, &manifest()).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Unauthorized { .. }),
        "{error}"
    );
    assert_eq!(evil.lines(), ["GET /x"]);
    let challenge = "Basic realm=\"x\"";
    let evil = Server::plain(guarded(challenge, |_| PAIR.to_owned())).await;
    world.name("evil.test", evil.port);
    let client = world.registry(&["r.test", "evil.test"], |_, setup| setup.auth = password());
    assert!(read(&client, IMAGE, &manifest()).await.is_err());
    assert!(
        evil.asked()
            .iter()
            .all(|asked| asked.header("authorization").is_none())
    );
}

#[tokio::test]
async fn a_helper_that_would_be_asked_is_named_and_others_are_not() {
    let auth = r#"{"auths":{"own.test":{"auth":"dXNlcjpwYXNzd29yZA=="}},"credHelpers":{"r.test":"ecr-login"},
        "credsStore":"desktop"}"#;
    let server = Server::plain(guarded("Basic", |_| PAIR.to_owned())).await;
    let public = Server::plain(|_| reply(200, &[], manifest())).await;
    let world = World::with(&[
        ("r.test", &server),
        ("own.test", &server),
        ("public.test", &public),
    ]);
    let plain = ["r.test", "own.test", "public.test"];
    let client = world.registry(&plain, |_, setup| auth.clone_into(&mut setup.auth));
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    for word in [
        "r.test",
        "docker-credential-ecr-login",
        "credHelpers",
        "\"auths\"",
    ] {
        assert!(error.to_string().contains(word), "{error}");
    }
    for image in ["own.test/a", "public.test/a"] {
        client.manifest(&image.parse().unwrap()).await.unwrap();
    }
    let digest = Digest::of(&manifest());
    let image = format!("public.test/a@{digest}").parse().unwrap();
    assert_eq!(client.manifest(&image).await.unwrap().digest, digest);
}

#[tokio::test]
async fn an_upload_goes_on_at_the_same_origin_and_as_nobody_else() {
    for (location, why) in [
        ("http://r.test:8080/u?state=1", "port"),
        ("http://other.test/u", "host"),
        ("https://r.test/u", "scheme"),
        ("//r.test:1/u", "port"),
        ("http://user:pw@r.test/u", "a user in it"),
        ("http://user@r.test/u", "a user in it"),
        ("file:///u", "scheme"),
    ] {
        let registry = Server::plain(move |asked| match asked.method.as_str() {
            "HEAD" => reply(404, &[], ""),
            _ => reply(202, &[("location", location)], ""),
        })
        .await;
        let world = World::with(&[("r.test", &registry)]);
        let client = world.registry(&["r.test"], |_, _| {});
        let image = IMAGE.parse().unwrap();
        let error = client.push_blob(&image, "x".into()).await.unwrap_err();
        assert!(error.to_string().contains(why), "{location}: {error}");
        assert!(!error.to_string().contains("pw"), "{error}");
        let sent = registry.lines();
        assert!(
            !sent
                .iter()
                .any(|line| line.starts_with('P') && !line.starts_with("POST"))
        );
    }
}

#[tokio::test]
async fn an_upload_may_go_on_where_the_same_place_is_written_otherwise() {
    for location in [
        "/u?state=1",
        "http://r.test:80/u?state=1",
        "//r.test/u?state=1",
    ] {
        let registry = Server::plain(move |asked| match asked.method.as_str() {
            "HEAD" => reply(404, &[], ""),
            "PUT" => reply(201, &[], ""),
            _ => reply(202, &[("location", location)], ""),
        })
        .await;
        let world = World::with(&[("r.test", &registry)]);
        let client = world.registry(&["r.test"], |_, _| {});
        let image = IMAGE.parse().unwrap();
        client.push_blob(&image, "x".into()).await.unwrap();
        assert!(
            registry
                .lines()
                .iter()
                .any(|line| line.starts_with("PATCH /u?state=1"))
        );
    }
}
