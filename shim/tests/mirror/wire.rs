//! The server as any guest can use it, the hostile one included.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use image_rs::Digest;
use tokio::io::AsyncReadExt;

use crate::host::{Host, ROOMY, content};

#[tokio::test]
async fn what_one_guest_brings_another_gets() {
    let place = tempfile::tempdir().unwrap();
    let (one, other) = (
        Host::with(place.path(), ROOMY).client(),
        Host::with(place.path(), ROOMY).client(),
    );
    let bytes = content(1, 700_001);
    let digest = Digest::of(&bytes);
    let path = format!("/v2/any/name/blobs/{digest}?ns=registry.example");
    assert_eq!(one.get(&path).await.0, 404);
    assert_eq!(one.status(Method::HEAD, &path, b"").await, 404);
    assert_eq!(one.fill(&digest, &bytes).await, 201);
    assert_eq!(other.get(&path).await, (200, bytes.clone()));
    let head = other.send(Method::HEAD, &path, b"").await;
    assert_eq!(head.headers()["content-length"], "700001");
    let part = other.send_with(Method::GET, &path, b"", &[("range", "bytes=700000-")]);
    let part = part.await;
    assert_eq!(part.status(), 206);
    assert_eq!(
        part.headers()["content-range"],
        "bytes 700000-700000/700001"
    );
    let body = part.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, bytes[700_000..]);
    let behind = other.send_with(Method::GET, &path, b"", &[("range", "bytes=700001-")]);
    assert_eq!(behind.await.status(), 416);
    // It is there, so nobody need bring it.
    assert_eq!(other.begin(&digest).await, Err(409));
}

#[tokio::test]
async fn a_guest_cannot_bring_what_is_not_what_it_says() {
    let place = tempfile::tempdir().unwrap();
    let guest = Host::with(place.path(), 1_500_000).client();
    let digest = Digest::of(b"the truth");
    assert_eq!(guest.fill(&digest, b"a lie").await, 400);
    assert_eq!(guest.get(&format!("/v2/a/blobs/{digest}")).await.0, 404);
    // Nor under another digest than it began with.
    let place = guest.begin(&digest).await.unwrap();
    guest.status(Method::PATCH, &place, b"a lie").await;
    let other = format!("{place}?digest={}", Digest::of(b"a lie"));
    assert_eq!(guest.status(Method::PUT, &other, b"").await, 400);
    // Nor more than there is room for, nor a piece that is no piece.
    let large = content(1, 1_000_000);
    let digest = Digest::of(&large);
    let place = guest.begin(&digest).await.unwrap();
    assert_eq!(guest.status(Method::PATCH, &place, &large).await, 202);
    assert_eq!(guest.status(Method::PATCH, &place, &large).await, 507);
    assert_eq!(guest.status(Method::PATCH, &place, b"x").await, 404);
    let place = guest.begin(&digest).await.unwrap();
    let huge = vec![0; 1024 * 1024 + 1];
    assert_eq!(guest.status(Method::PATCH, &place, &huge).await, 413);
    let elsewhere = [("content-range", "7-9")];
    let misplaced = guest.send_with(Method::PATCH, &place, b"abc", &elsewhere);
    assert_eq!(misplaced.await.status(), 416);
    assert_eq!(guest.status(Method::DELETE, &place, b"").await, 204);
}

#[tokio::test]
async fn a_guest_reaches_blobs_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("secret"), "x").unwrap();
    let guest = Host::with(&place.path().join("mirror"), ROOMY).client();
    for path in [
        "/",
        "/v2/a/manifests/latest",
        "/v2/a/blobs/../../secret",
        "/v2/a/blobs/sha256:../../../secret",
        "/v2/a/blobs/%2e%2e%2fsecret",
        "/v2/_catalog",
        "/v2/a/tags/list",
    ] {
        let (status, body) = guest.get(path).await;
        assert!(status == 404 || status == 400, "{path}: {status}");
        assert!(body.starts_with(b"{\"errors\":"), "{path}");
    }
    let mut begun = 0;
    while guest.begin(&Digest::of(&content(begun, 9))).await.is_ok() {
        begun += 1;
        assert!(begun < 100, "uploads without end");
    }
    assert!(begun > 3);
}

#[tokio::test]
async fn a_blob_on_its_way_is_followed_to_its_end() {
    let place = tempfile::tempdir().unwrap();
    let (writer, reader) = (
        Host::with(place.path(), ROOMY).client(),
        Host::with(place.path(), ROOMY).client(),
    );
    let bytes = content(1, 500_000);
    let digest = Digest::of(&bytes);
    let upload = writer.begin(&digest).await.unwrap();
    assert_eq!(
        writer
            .status(Method::PATCH, &upload, &bytes[..200_000])
            .await,
        202
    );
    // Nobody else need fetch it.
    assert_eq!(reader.begin(&digest).await, Err(409));
    let path = format!("/v2/a/blobs/{digest}");
    let answer = reader.send(Method::GET, &path, b"").await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("content-length"));
    let mut body = answer.into_body();
    let mut came = Vec::new();
    while came.len() < 200_000 {
        came.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    assert_eq!(
        writer
            .status(Method::PATCH, &upload, &bytes[200_000..])
            .await,
        202
    );
    let end = format!("{upload}?digest={digest}");
    assert_eq!(writer.status(Method::PUT, &end, b"").await, 201);
    came.extend(body.collect().await.unwrap().to_bytes());
    assert_eq!(came, bytes);
}

#[tokio::test]
async fn who_follows_a_blob_that_is_given_up_is_told() {
    let place = tempfile::tempdir().unwrap();
    let guest = Host::with(place.path(), ROOMY).client();
    let digest = Digest::of(b"never whole");
    let path = format!("/v2/a/blobs/{digest}");
    for is_given_up in [true, false] {
        let upload = guest.begin(&digest).await.unwrap();
        guest.status(Method::PATCH, &upload, b"never").await;
        let answer = guest.send(Method::GET, &path, b"").await;
        if is_given_up {
            assert_eq!(guest.status(Method::DELETE, &upload, b"").await, 204);
        }
        // Else it only stalls.
        assert!(answer.into_body().collect().await.is_err());
    }
}

#[tokio::test]
async fn a_blob_that_rots_on_the_disk_is_not_served_twice() {
    let place = tempfile::tempdir().unwrap();
    let guest = Host::with(place.path(), ROOMY).client();
    let bytes = content(1, 400_000);
    let digest = Digest::of(&bytes);
    assert_eq!(guest.fill(&digest, &bytes).await, 201);
    let hex = digest.hex();
    let file = place.path().join("blobs/sha256").join(&hex[..2]).join(hex);
    let mut bad = bytes.clone();
    bad[123] ^= 1;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, &bad).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
    std::fs::set_permissions(&file, mode).unwrap();
    let path = format!("/v2/a/blobs/{digest}");
    let answer = guest.send(Method::GET, &path, b"").await;
    assert!(answer.into_body().collect().await.is_err());
    assert_eq!(guest.get(&path).await.0, 404);
    assert_eq!(guest.fill(&digest, &bytes).await, 201);
    assert_eq!(guest.get(&path).await, (200, bytes));
}

#[tokio::test]
async fn heads_and_connections_of_a_guest_are_bounded() {
    use tokio::io::AsyncWriteExt;
    use transport::Dial;
    let place = tempfile::tempdir().unwrap();
    let host = Host::with(place.path(), ROOMY);
    let mut stream = host.dial("x", 1).await.unwrap();
    let endless = [b"GET /v2/ HTTP/1.1\r\nx: ".to_vec(), vec![b'y'; 100_000]].concat();
    let _ = stream.write_all(&endless).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
}
