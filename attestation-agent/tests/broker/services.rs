//! The services that workloads and the command line use, over a scripted broker.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use attestation_agent::api::{
    self, Abilities, Addresses, Ask, Authorize, Caller, Peer, Refused, Serving,
};
use attestation_agent::sealed::{SealKey, SealedError, Sealer, Terms};
use attestation_agent::{Hub, HubError, Secret, attester::SampleAttester};
use evidence::init_data::content::SealedSecrets;
use evidence::init_data::{Algorithm, InitDataDigest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use ttrpc::asynchronous::{Client, transport::Socket};
use ttrpc::proto::Request;

use crate::script::{Identity, Reply, SECRET, Script, guest, start};

const KID: &str = "owner";

pub(crate) struct Owner {
    sealer: Sealer,
    pub(crate) script: Arc<Script>,
    pub(crate) hub: Arc<Hub>,
    digest: InitDataDigest,
}

pub(crate) async fn owner() -> Owner {
    let identity = Identity::new();
    let (script, port) = start(&identity).await;
    let key = SealKey::generate();
    let sealed = SealedSecrets {
        skip_verification: false,
        verification_keys: BTreeMap::from([(KID.to_owned(), key.public_jwk())]),
    };
    let digest = Algorithm::Sha256.digest(b"init-data");
    let broker = Arc::new(guest(port, &identity.pem, None));
    let attester = Arc::new(SampleAttester::new(None));
    let hub = Hub::new(Some(attester), Some(broker), sealed, Some(digest.clone()));
    Owner {
        sealer: Sealer::new(&key, KID),
        script,
        hub: Arc::new(hub),
        digest,
    }
}

fn vault(owner: &Owner, terms: &Terms) -> String {
    let uri = "kbs:///default/key/1".parse().unwrap();
    owner.sealer.vault(&uri, terms)
}

fn named(name: &str) -> Terms {
    Terms {
        name: Some(name.to_owned()),
        ..Terms::default()
    }
}

#[tokio::test]
async fn a_sealed_secret_opens_for_its_pod_and_its_name_alone() {
    let owner = owner().await;
    let unseal = async |text: String, name: Option<&str>| match owner.hub.unseal(&text, name).await
    {
        Ok(opened) => Ok(opened.secret.expose().to_vec()),
        Err(HubError::Sealed(error)) => Err(error),
        Err(other) => panic!("{other}"),
    };
    let free = vault(&owner, &Terms::default());
    assert_eq!(unseal(free.clone(), None).await.unwrap(), SECRET);
    assert_eq!(unseal(free, Some("A")).await.unwrap(), SECRET);
    let bound = vault(&owner, &named("A"));
    assert_eq!(unseal(bound.clone(), Some("A")).await.unwrap(), SECRET);
    for other in [Some("B"), None] {
        let error = unseal(bound.clone(), other).await.unwrap_err();
        assert_eq!(error, SealedError::OtherName("A".to_owned()));
    }
    let pod = |digest: &InitDataDigest| Terms {
        init_data: Some(digest.to_string()),
        ..Terms::default()
    };
    let ours = vault(&owner, &pod(&owner.digest));
    assert_eq!(unseal(ours, None).await.unwrap(), SECRET);
    let other = vault(&owner, &pod(&Algorithm::Sha256.digest(b"other")));
    assert_eq!(unseal(other, None).await, Err(SealedError::OtherPod));
    // A key that init-data does not name signs nothing, also where the broker has it.
    let stranger = Sealer::new(&SealKey::generate(), "kbs:///default/key/1");
    let foreign = stranger.vault(&"kbs:///default/key/1".parse().unwrap(), &Terms::default());
    let error = unseal(foreign, None).await.unwrap_err();
    assert!(matches!(error, SealedError::UnknownKey { .. }), "{error}");
    assert_eq!(owner.script.count("attest"), 1);
}

#[tokio::test]
async fn an_envelope_is_opened_with_the_brokers_key() {
    let owner = owner().await;
    let kek = "kbs:///default/key/1".parse().unwrap();
    let seal = |with: &[u8]| {
        let secret = Secret::from(b"hunter2".to_vec());
        let with = Secret::from(with.to_vec());
        owner
            .sealer
            .envelope(&secret, &kek, &with, &Terms::default())
    };
    // The scripted broker's resource is no key of 32 bytes.
    let sealed = seal(&[1; 32]).unwrap();
    let error = owner.hub.unseal(&sealed, None).await.err().unwrap();
    assert!(error.to_string().contains("32 bytes"), "{error}");
    assert!(seal(SECRET).is_err());
}

/// Lets this process alone in, by the name of a container, and keeps `default/key/denied` and tokens from it.
struct Policy;

#[async_trait]
impl Authorize for Policy {
    async fn identify(&self, peer: Peer) -> Result<Caller, Refused> {
        let own = i32::try_from(std::process::id()).unwrap();
        if !peer.processes.contains(&own) {
            return Err(Refused("not this process".to_owned()));
        }
        Ok(Caller {
            id: "web".to_owned(),
            annotations: BTreeMap::new(),
        })
    }

    fn allow(&self, caller: &Caller, ask: &Ask<'_>) -> Result<(), Refused> {
        assert_eq!(caller.id, "web");
        let denied = ask.input()["resource"] == "default/key/denied";
        match denied || ask.rule() == "GetTokenRequest" {
            true => Err(Refused(format!("{} is not for web", ask.rule()))),
            false => Ok(()),
        }
    }
}

async fn serve(owner: &Owner, directory: &Path) -> (Serving, Addresses) {
    let hub = Arc::clone(&owner.hub);
    serve_to(hub, Arc::new(Policy), Abilities::default(), directory).await
}

pub(crate) async fn serve_to(
    hub: Arc<Hub>,
    authorize: Arc<dyn Authorize>,
    abilities: Abilities,
    directory: &Path,
) -> (Serving, Addresses) {
    let addresses = Addresses {
        attestation: directory.join("aa/aa.sock"),
        data_hub: directory.join("cdh.sock"),
        rest: Some("127.0.0.1:0".parse().unwrap()),
        mode: 0o600,
    };
    let serving = api::serve(hub, authorize, abilities, &addresses).await;
    (serving.unwrap(), addresses)
}

pub(crate) async fn http(serving: &Serving, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(serving.rest().unwrap()).await.unwrap();
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn rest_has_the_paths_of_peers_and_asks_the_policy() {
    let owner = owner().await;
    let directory = tempfile::tempdir().unwrap();
    let (serving, _) = serve(&owner, directory.path()).await;
    let secret = std::str::from_utf8(SECRET).unwrap();
    let sealed = vault(&owner, &Terms::default());
    for (head, body, status, holds) in [
        ("GET /cdh/resource/default/key/1", "", 200, secret),
        (
            "GET /cdh/resource/default/key/denied",
            "",
            403,
            "GetResourceRequest",
        ),
        ("GET /cdh/resource/default/key", "", 400, "repository"),
        ("GET /cdh/resource/../../etc", "", 400, "segment"),
        ("POST /cdh/resource/default/key/1", "", 405, ""),
        ("POST /cdh/unseal", sealed.as_str(), 200, secret),
        ("POST /cdh/unseal", "sealed.x", 400, "form"),
        ("GET /aa/token?token_type=kbs", "", 403, "GetTokenRequest"),
        ("GET /aa/token?token_type=coco_as", "", 501, "kbs"),
        ("GET /aa/token", "", 400, "token_type"),
        ("GET /aa/evidence?runtime_data=nonce", "", 200, "bm9uY2U="),
        (
            "GET /aa/evidence?runtime_data=bm9uY2U&encoding=base64",
            "",
            200,
            "bm9uY2U=",
        ),
        (
            "GET /aa/evidence?runtime_data=nonce&encoding=hex",
            "",
            400,
            "base64",
        ),
        ("GET /aa/evidence", "", 400, "runtime_data"),
        ("GET /aa/additional-evidence?runtime_data=x", "", 200, ""),
        (
            "POST /aa/aael",
            r#"{"domain":"d","operation":"o","content":"c"}"#,
            200,
            "false",
        ),
        ("POST /aa/aael", r#"{"domain":"d"}"#, 400, "operation"),
        (
            "POST /aa/aael",
            r#"{"domain":"cloister","operation":"o","content":"c"}"#,
            400,
            "guest's own",
        ),
        ("GET /info", "", 200, r#""tee":"sample""#),
        ("GET /else", "", 404, "URL NOT FOUND"),
    ] {
        let (found, text) = http(&serving, head, body).await;
        assert_eq!(found, status, "{head}: {text}");
        assert!(text.contains(holds), "{head}: {text}");
    }
    let long = "x".repeat(65);
    let (status, text) = http(
        &serving,
        &format!("GET /aa/evidence?runtime_data={long}"),
        "",
    )
    .await;
    assert_eq!(status, 400, "{text}");
    owner
        .script
        .says("resource", [Reply::error(403, "PolicyDeny", Some("T-9"))]);
    let (status, text) = http(&serving, "GET /cdh/resource/default/key/1", "").await;
    assert!(status == 403 && text.contains("T-9"), "{status} {text}");
}

/// A field of bytes, text or a message, as protobuf writes it; nothing for an empty one.
pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 0x7f {
        field.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    field.push(u8::try_from(length).unwrap());
    field.extend(bytes);
    field
}

/// Calls a method whose message has one field of bytes or text, as its answer has.
async fn call(socket: &Path, service: &str, method: &str, one: &[u8]) -> ttrpc::Result<Vec<u8>> {
    call_with(socket, service, method, field(1, one)).await
}

pub(crate) async fn call_with(
    socket: &Path,
    service: &str,
    method: &str,
    payload: Vec<u8>,
) -> ttrpc::Result<Vec<u8>> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload,
        ..Request::default()
    };
    let answer = Client::new(Socket::from(stream)).request(request).await?;
    Ok(answer.payload)
}

#[tokio::test]
async fn the_sockets_have_the_services_of_peers_and_ask_the_policy() {
    let owner = owner().await;
    let directory = tempfile::tempdir().unwrap();
    let (_serving, addresses) = serve(&owner, directory.path()).await;
    let (aa, cdh) = (&addresses.attestation, &addresses.data_hub);
    let agent = "attestation_agent.AttestationAgentService";
    let resource = "api.GetResourceService";
    let ends_with = |answer: ttrpc::Result<Vec<u8>>, end: &[u8]| answer.unwrap().ends_with(end);
    let got = call(cdh, resource, "GetResource", b"kbs:///default/key/1").await;
    assert!(ends_with(got, SECRET));
    let sealed = vault(&owner, &Terms::default());
    let opened = call(
        cdh,
        "api.SealedSecretService",
        "UnsealSecret",
        sealed.as_bytes(),
    )
    .await;
    assert!(ends_with(opened, SECRET));
    assert!(ends_with(
        call(aa, agent, "GetTeeType", b"").await,
        b"sample"
    ));
    let evidence = call(aa, agent, "GetEvidence", b"nonce").await.unwrap();
    assert!(String::from_utf8_lossy(&evidence).contains("bm9uY2U="));
    let refused = |answer: ttrpc::Result<Vec<u8>>| match answer {
        Err(ttrpc::Error::RpcStatus(status)) => status.message,
        other => panic!("{other:?}"),
    };
    let denied = call(cdh, resource, "GetResource", b"kbs:///default/key/denied").await;
    assert!(refused(denied).contains("not for web"));
    let token = call(aa, agent, "GetToken", b"kbs").await;
    assert!(refused(token).contains("GetTokenRequest"));
    let wrapped = call(cdh, "keyprovider.KeyProviderService", "WrapKey", b"{}").await;
    assert!(refused(wrapped).contains("image encrypt"));
    let mount = call(
        cdh,
        "api.SecureMountService",
        "SecureMount",
        b"block-device",
    )
    .await;
    assert!(refused(mount).contains("no volumes"));
    // Each socket has its own services.
    assert!(
        call(aa, resource, "GetResource", b"kbs:///default/key/1")
            .await
            .is_err()
    );
}
