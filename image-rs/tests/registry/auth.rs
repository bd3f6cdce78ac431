//! As whom a registry is spoken to: passwords, tokens, and how long these last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use image_rs::registry::{AuthFileError, RegistryError};

use crate::server::{Act, Asked, Server, World, content, manifest, read, reply};

pub(crate) const IMAGE: &str = "r.test/a:v1";
/// `user:password`.
pub(crate) const PAIR: &str = "Basic dXNlcjpwYXNzd29yZA==";

pub(crate) fn auths(entry: &str) -> String {
    format!(r#"{{"auths":{{"r.test":{entry}}}}}"#)
}

pub(crate) fn password() -> String {
    auths(r#"{"auth":"dXNlcjpwYXNzd29yZA=="}"#)
}

/// A registry that wants what `expected` says of the path, else challenges.
pub(crate) fn guarded(
    challenge: &str,
    expected: impl Fn(&Asked) -> String + Send + Sync + 'static,
) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    let challenge = challenge.to_owned();
    move |asked| {
        if asked.header("authorization") == Some(expected(asked).as_str()) {
            reply(200, &[], manifest())
        } else {
            reply(401, &[("www-authenticate", challenge.as_str())], "")
        }
    }
}

pub(crate) const BEARER: &str = r#"Bearer realm="http://auth.test/token?a=b",service="the service",scope="repository:other/secret:pull,push""#;

/// A token service that names its tokens after the repository they are for.
pub(crate) fn tokens(answer: &'static str) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    move |asked| {
        let asked_for = format!("{}{}", asked.target, asked.body);
        let from = asked_for.split("scope=repository%3A").nth(1).unwrap_or("?");
        let repository = from.split("%3A").next().unwrap_or("?");
        reply(
            200,
            &[],
            answer.replace("NAME", &repository.replace("%2F", "-")),
        )
    }
}

pub(crate) fn token_of(asked: &Asked) -> String {
    let path = asked.target.strip_prefix("/v2/").unwrap();
    let repository = path
        .split("/manifests")
        .next()
        .unwrap()
        .split("/blobs")
        .next()
        .unwrap();
    format!("Bearer for-{}", repository.replace('/', "-"))
}

pub(crate) struct Scene {
    pub(crate) registry: Server,
    pub(crate) service: Server,
    pub(crate) world: World,
}

pub(crate) async fn scene(answer: &'static str) -> Scene {
    let registry = Server::plain(guarded(BEARER, token_of)).await;
    let service = Server::plain(tokens(answer)).await;
    let world = World::with(&[("r.test", &registry), ("auth.test", &service)]);
    Scene {
        registry,
        service,
        world,
    }
}

pub(crate) const PLAIN: [&str; 2] = ["r.test", "auth.test"];

#[tokio::test]
async fn a_basic_challenge_is_answered_with_the_password() {
    let challenge = r#"Negotiate, Digest realm="a, b", Basic realm="the registry""#;
    let server = Server::plain(guarded(challenge, |_| PAIR.to_owned())).await;
    let world = World::with(&[("r.test", &server)]);
    let client = world.registry(&["r.test"], |_, setup| setup.auth = password());
    for _ in 0..2 {
        client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    }
    // The challenge came once; nobody is told the password before asking for it.
    let sent: Vec<_> = server
        .asked()
        .iter()
        .map(|a| a.headers.contains_key("authorization"))
        .collect();
    assert_eq!(sent, [false, true, true]);
    let client = world.registry(&["r.test"], |_, _| {});
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }));
    assert!(
        error
            .to_string()
            .contains("no credentials for r.test were given"),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_is_asked_for_what_is_done_and_not_for_what_the_registry_says() {
    let scene = scene(r#"{"token":"for-NAME"}"#).await;
    let client = scene
        .world
        .registry(&PLAIN, |_, setup| setup.auth = password());
    client
        .manifest(&"r.test/team/app:v1".parse().unwrap())
        .await
        .unwrap();
    let asked = &scene.service.asked()[0];
    assert_eq!(
        asked.target,
        "/token?a=b&service=the+service&scope=repository%3Ateam%2Fapp%3Apull"
    );
    assert_eq!(asked.header("authorization"), Some(PAIR));
    assert!(
        scene
            .registry
            .asked()
            .iter()
            .all(|asked| asked.header("authorization") != Some(PAIR))
    );
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_its_grant() {
    let scene =
        scene(r#"{"access_token":"for-NAME","refresh_token":"next","expires_in":300}"#).await;
    let client = scene.world.registry(&PLAIN, |_, setup| {
        setup.auth = auths(r#"{"auth":"MDAwMDo=","identitytoken":"the&identity"}"#);
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    let asked = &scene.service.asked()[0];
    assert_eq!(
        (asked.method.as_str(), asked.target.as_str()),
        ("POST", "/token?a=b")
    );
    assert_eq!(
        asked.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(
        asked.body,
        "grant_type=refresh_token&client_id=cloister&scope=repository%3Aa%3Apull\
         &refresh_token=the%26identity&service=the+service"
    );
}

#[tokio::test]
async fn an_identity_token_without_a_token_service_and_a_token_of_the_registry() {
    let server = Server::plain(guarded("Basic", |_| PAIR.to_owned())).await;
    let world = World::with(&[("r.test", &server)]);
    let client = world.registry(&["r.test"], |_, setup| {
        setup.auth = auths(r#"{"identitytoken":"identity"}"#);
    });
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Credentials {
                source: AuthFileError::NoService(_),
                ..
            }
        ),
        "{error}"
    );
    let scene = scene(r#"{"token":"unused"}"#).await;
    let client = scene.world.registry(&PLAIN, |_, setup| {
        setup.auth = auths(r#"{"registrytoken":"for-a"}"#);
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    assert!(scene.service.asked().is_empty());
}

#[tokio::test]
async fn a_token_is_for_one_repository_and_layers_side_by_side_share_it() {
    let bytes = manifest();
    let scene = scene(r#"{"token":"for-NAME","expires_in":300}"#).await;
    let client = scene.world.registry(&PLAIN, |_, _| {});
    let mut layers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, bytes) = (client.clone(), bytes.clone());
        layers.spawn(async move { read(&client, IMAGE, &bytes).await.unwrap() });
    }
    while let Some(layer) = layers.join_next().await {
        assert_eq!(layer.unwrap(), bytes);
    }
    assert_eq!(scene.service.asked().len(), 1);
    read(&client, "r.test/b:v1", &bytes).await.unwrap();
    assert_eq!(scene.service.asked().len(), 2);
    for asked in scene.registry.asked() {
        let found = asked.header("authorization");
        let own = token_of(&asked);
        assert!(found.is_none_or(|found| found == own), "{asked:?}");
    }
}

#[tokio::test]
async fn a_token_whose_time_is_over_is_renewed_before_it_is_sent() {
    let scene = scene(r#"{"token":"for-NAME","expires_in":0}"#).await;
    let client = scene.world.registry(&PLAIN, |_, _| {});
    for _ in 0..3 {
        client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    }
    assert_eq!(scene.service.asked().len(), 3);
    // Only the first request was refused.
    assert_eq!(scene.registry.asked().len(), 4);
}

/// Text, as some services write it, is read; what is no time lasts as long as what is not said.
#[tokio::test]
async fn a_life_that_is_strangely_written_does_not_spoil_a_token() {
    for (life, questions) in [
        ("\"300\"", 1),
        ("-1", 1),
        ("null", 1),
        ("3.5", 1),
        ("{}", 1),
        ("\"soon\"", 1),
        ("\"0\"", 2),
    ] {
        let answer = format!(r#"{{"token":"for-NAME","expires_in":{life}}}"#);
        let scene = scene(answer.leak()).await;
        let client = scene.world.registry(&PLAIN, |_, _| {});
        for _ in 0..2 {
            client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
        }
        assert_eq!(scene.service.asked().len(), questions, "{life}");
    }
}

#[tokio::test]
async fn a_token_service_is_named_with_its_port_and_without_its_query() {
    let challenge = r#"Bearer realm="http://auth.test:5001/token?secret=b",service="s""#;
    let registry = Server::plain(guarded(challenge, token_of)).await;
    let world = World::with(&[("r.test", &registry)]);
    let client = world.registry(&["r.test"], |_, _| {});
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("http://auth.test:5001/token"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_token_service_that_fails_is_asked_again_and_then_named() {
    let registry = Server::plain(guarded(BEARER, token_of)).await;
    let service = Server::plain(|asked| match asked.before {
        0 => vec![Act::Reset],
        1 => reply(503, &[], ""),
        _ => reply(200, &[], r#"{"token":"for-a"}"#),
    })
    .await;
    let world = World::with(&[("r.test", &registry), ("auth.test", &service)]);
    let client = world.registry(&PLAIN, |_, _| {});
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();

    for (answer, word) in [
        (r#"{"token":""}"#, "no usable token"),
        ("{}", "no usable token"),
        ("<html>", "not JSON"),
        ("{\"token\":\"a\\nb\"}", "no usable token"),
    ] {
        let scene = scene(answer).await;
        let client = scene
            .world
            .registry(&PLAIN, |_, setup| setup.auth = password());
        let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
        assert!(
            matches!(
                error,
                RegistryError::Token {
                    transient: false,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains(word), "{error}");
    }
    let service = Server::plain(|_| reply(200, &[], "x".repeat(1_000_000))).await;
    world.name("auth.test", service.port);
    let client = world.registry(&PLAIN, |_, _| {});
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { .. }), "{error}");
}

#[tokio::test]
async fn layers_side_by_side_share_one_refusal() {
    let registry = Server::plain(guarded(BEARER, token_of)).await;
    let refused = Arc::new(AtomicUsize::new(0));
    let service = {
        let refused = refused.clone();
        Server::plain(move |_| {
            refused.fetch_add(1, Ordering::SeqCst);
            let mut acts = vec![Act::Pause(Duration::from_millis(300))];
            acts.extend(reply(
                401,
                &[],
                r#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
            ));
            acts
        })
        .await
    };
    let world = World::with(&[("r.test", &registry), ("auth.test", &service)]);
    let client = world.registry(&PLAIN, |_, setup| setup.auth = password());
    let mut layers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = client.clone();
        layers.spawn(async move { read(&client, IMAGE, &content(10)).await.unwrap_err() });
    }
    while let Some(error) = layers.join_next().await {
        let error = error.unwrap();
        assert!(
            matches!(error, RegistryError::Unauthorized { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("no (DENIED)"), "{error}");
    }
    // A layer that comes late may ask once more.
    assert!(refused.load(Ordering::SeqCst) < 6);
}
