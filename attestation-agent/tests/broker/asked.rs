//! The owner's policy is asked for each resource that a request touches, before anything is fetched.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use attestation_agent::api::{
    Abilities, Addresses, Ask, Authorize, Caller, MountRequest, Peer, Refused, Serving, Volumes,
};
use attestation_agent::sealed::{SealKey, Sealer, Terms};
use attestation_agent::{Hub, attester::SampleAttester};
use evidence::init_data::content::SealedSecrets;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::script::{Identity, Reply, Script, guest, start};
use crate::services::{call_with, field, http, serve_to};

/// Writes down what it is asked, and refuses one use of resources.
#[derive(Default)]
struct Asked {
    all: Mutex<Vec<Value>>,
    refused: Mutex<&'static str>,
}

impl Asked {
    fn refuse(&self, reading: &'static str) {
        *self.refused.lock().unwrap() = reading;
    }

    fn taken(&self) -> Vec<Value> {
        std::mem::take(&mut *self.all.lock().unwrap())
    }
}

#[async_trait]
impl Authorize for Asked {
    async fn identify(&self, _: Peer) -> Result<Caller, Refused> {
        Ok(Caller {
            id: "web".to_owned(),
            annotations: Default::default(),
        })
    }

    fn allow(&self, _: &Caller, ask: &Ask<'_>) -> Result<(), Refused> {
        let input = ask.input();
        let is_refused = input["use"] == *self.refused.lock().unwrap();
        self.all.lock().unwrap().push(input);
        match is_refused {
            true => Err(Refused("not this".to_owned())),
            false => Ok(()),
        }
    }
}

/// Disks that are mounted by being written down.
#[derive(Default)]
struct Disks(Mutex<Vec<MountRequest>>);

#[async_trait]
impl Volumes for Disks {
    async fn mount(&self, request: MountRequest) -> Result<(), String> {
        self.0.lock().unwrap().push(request);
        Ok(())
    }
}

struct Guest {
    asked: Arc<Asked>,
    disks: Arc<Disks>,
    script: Arc<Script>,
    serving: Serving,
    addresses: Addresses,
    _directory: TempDir,
}

/// A guest whose init-data names no verification keys: they are at the broker.
async fn served() -> Guest {
    let identity = Identity::new();
    let (script, port) = start(&identity).await;
    let broker = Arc::new(guest(port, &identity.pem, None));
    let attester = Arc::new(SampleAttester::new(None));
    let hub = Hub::new(Some(attester), Some(broker), SealedSecrets::default(), None);
    let (asked, disks) = (Arc::new(Asked::default()), Arc::new(Disks::default()));
    let abilities = Abilities {
        volumes: Some(disks.clone()),
        ..Abilities::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let (serving, addresses) =
        serve_to(Arc::new(hub), asked.clone(), abilities, directory.path()).await;
    Guest {
        asked,
        disks,
        script,
        serving,
        addresses,
        _directory: directory,
    }
}

#[tokio::test]
async fn the_key_of_a_sealed_secret_is_asked_for_before_it_is_fetched() {
    let guest = served().await;
    let sealer = Sealer::new(&SealKey::generate(), "kbs:///default/key/1");
    let sealed = sealer.vault(&"kbs:///default/key/2".parse().unwrap(), &Terms::default());
    let verify = json!({"resource": "default/key/1", "use": "verify"});
    guest.asked.refuse("verify");
    let (status, text) = http(&guest.serving, "POST /cdh/unseal", &sealed).await;
    assert_eq!((status, text.as_str()), (403, "not this"));
    assert_eq!(guest.asked.taken(), std::slice::from_ref(&verify));
    assert_eq!(guest.script.count("auth"), 0);

    // Whatever is the matter with the key, the caller hears the same: here it is no JWK, then it does not come.
    guest.asked.refuse("");
    let mut told = vec![http(&guest.serving, "POST /cdh/unseal", &sealed).await];
    for (status, kind) in [(404, "ResourceNotFound"), (403, "PolicyDeny")] {
        let no = Reply::error(status, kind, Some("T-1"));
        guest.script.says("resource", [no]);
        told.push(http(&guest.serving, "POST /cdh/unseal", &sealed).await);
    }
    assert_eq!(told[0].0, 502, "{}", told[0].1);
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    assert_eq!(guest.asked.taken(), vec![verify; 3]);
    assert_eq!(guest.script.count("resource"), 3);
}

#[tokio::test]
async fn a_mount_is_asked_for_with_all_that_it_says_and_its_key_as_a_resource() {
    let guest = served().await;
    let mount = async |key: &str| {
        let option = |name: &str, value: &str| {
            let pair = [field(1, name.as_bytes()), field(2, value.as_bytes())];
            field(2, &pair.concat())
        };
        let message = [
            field(1, b"block-device"),
            option("devicePath", "/dev/sdb"),
            option("sourceType", "encrypted"),
            option("key", key),
            field(3, b"ro"),
            field(4, b"/data"),
        ];
        let socket = &guest.addresses.data_hub;
        let service = "api.SecureMountService";
        call_with(socket, service, "SecureMount", message.concat()).await
    };
    let input = |key: &str| {
        json!({
            "volume_type": "block-device",
            "options": {"devicePath": "/dev/sdb", "sourceType": "encrypted", "key": key},
            "flags": ["ro"],
            "mount_point": "/data",
        })
    };
    let resource = json!({"resource": "default/key/disk", "use": "mount"});
    let key = "kbs:///default/key/disk";
    guest.asked.refuse("mount");
    assert!(mount(key).await.is_err());
    assert_eq!(guest.asked.taken(), [input(key), resource.clone()]);
    assert!(guest.disks.0.lock().unwrap().is_empty());

    guest.asked.refuse("");
    mount(key).await.unwrap();
    assert_eq!(guest.asked.taken(), [input(key), resource]);
    mount("").await.unwrap();
    assert_eq!(guest.asked.taken(), [input("")]);
    assert_eq!(guest.disks.0.lock().unwrap().len(), 2);
    // A key that is no resource cannot be asked for, and is refused.
    assert!(mount("file:///key").await.is_err());
    assert_eq!(guest.disks.0.lock().unwrap().len(), 2);
}
