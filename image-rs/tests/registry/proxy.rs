//! Registries behind an HTTP proxy.

use image_rs::registry::RegistryError;
use transport::{Error, Proxies};

use crate::server::{Act, Asked, Identity, Server, World, head, manifest, reply};

const IMAGE: &str = "r.test/a:v1";
/// `user:pass word`.
const PAIR: &str = "Basic dXNlcjpwYXNzIHdvcmQ=";

/// A proxy that wants `PAIR`, carries tunnels to `port`, and answers for plain HTTP itself.
fn proxy(port: u16) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    move |asked| {
        if asked.header("proxy-authorization") != Some(PAIR) {
            return reply(407, &[("proxy-authenticate", "Basic")], "");
        }
        match (asked.method.as_str(), asked.target.as_str()) {
            ("CONNECT", "r.test:443") => vec![Act::Send(head(200, &[])), Act::Tunnel(port)],
            ("CONNECT", _) => reply(403, &[], ""),
            _ => reply(200, &[], manifest()),
        }
    }
}

const HERE: &str = "http://user:pass%20word@proxy.test:3128";

#[tokio::test]
async fn tls_goes_through_a_tunnel_and_ends_at_the_registry() {
    let identity = Identity::of(&["r.test"]);
    let server = Server::tls(&identity, |_| reply(200, &[], manifest())).await;
    let proxy = Server::plain(proxy(server.port)).await;
    let world = World::with(&[("proxy.test", &proxy)]);
    let client = |address: &str, exceptions: &str| {
        let proxies = Proxies::new("", address, exceptions).unwrap();
        world.registry(&[], |reach, _| {
            reach.roots = identity.roots();
            reach.proxies = proxies;
        })
    };
    client(HERE, "")
        .manifest(&IMAGE.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(proxy.lines(), ["CONNECT r.test:443"]);
    assert!(!world.was_dialled("r.test"));
    // What the proxy was told is not for the registry.
    assert_eq!(server.asked()[0].header("proxy-authorization"), None);

    let refusal = async |address: &str, image: &str| {
        let error = client(address, "")
            .manifest(&image.parse().unwrap())
            .await
            .unwrap_err();
        match error {
            RegistryError::Unreachable {
                source: error @ Error::Proxy { .. },
                ..
            } => error.to_string(),
            other => panic!("{other}"),
        }
    };
    let error = refusal("http://proxy.test", IMAGE).await;
    assert!(error.contains("http://user:password@host:port"), "{error}");
    let error = refusal("http://a:b@proxy.test", IMAGE).await;
    assert!(error.contains("refuses the user and password"), "{error}");
    let error = refusal(HERE, "other.test/a:v1").await;
    assert!(error.contains("403 to CONNECT other.test:443"), "{error}");
    let error = refusal("http://gone.test", IMAGE).await;
    assert!(error.contains("gone.test:80"), "{error}");

    let before = proxy.asked().len();
    let error = client(HERE, ".other.test, r.test")
        .manifest(&IMAGE.parse().unwrap())
        .await;
    assert!(matches!(
        error,
        Err(RegistryError::Unreachable {
            source: Error::Dial { .. },
            ..
        })
    ));
    assert_eq!(proxy.asked().len(), before);
}

#[tokio::test]
async fn plain_http_is_asked_of_the_proxy_by_its_whole_url() {
    let proxy = Server::plain(proxy(0)).await;
    let world = World::with(&[("proxy.test", &proxy)]);
    let client = world.registry(&["r.test"], |reach, _| {
        reach.proxies = Proxies::new(HERE, "", "").unwrap();
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    assert_eq!(proxy.lines(), ["GET http://r.test/v2/a/manifests/v1"]);
}

#[tokio::test]
async fn a_proxy_may_be_spoken_to_by_tls() {
    let identity = Identity::of(&["r.test", "proxy.test"]);
    let server = Server::tls(&identity, |_| reply(200, &[], manifest())).await;
    let proxy = Server::tls(&identity, proxy(server.port)).await;
    let world = World::with(&[("proxy.test", &proxy)]);
    let address = HERE.replace("http:", "https:");
    let client = world.registry(&[], |reach, _| {
        reach.roots = identity.roots();
        reach.proxies = Proxies::new("", &address, "").unwrap();
    });
    client.manifest(&IMAGE.parse().unwrap()).await.unwrap();
    assert_eq!(proxy.lines(), ["CONNECT r.test:443"]);
}

#[tokio::test]
async fn what_is_no_proxy_is_named() {
    let script = |_: &Asked| {
        vec![
            Act::Send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec()),
            Act::Close,
        ]
    };
    let server = Server::plain(script).await;
    let world = World::with(&[("proxy.test", &server)]);
    let client = world.registry(&[], |reach, _| {
        reach.proxies = Proxies::new("", "proxy.test", "").unwrap();
    });
    let error = client.manifest(&IMAGE.parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("not an HTTP proxy"), "{error}");
}
