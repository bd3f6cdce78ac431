//! The files as CoCo lays them out, and how each becomes the checked form.

use serde::{Deserialize, de::DeserializeOwned};
use toml::Value;

use super::{
    AA_TOML, BrokerLocation, CDH_TOML, ContentError, EXTRA_ROOTS, HostMirror, ImageLimits,
    ImageSettings, PullProxy, SealedSecrets, Source, Store, WorkloadApi, limits, registry, sealed,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Aa {
    #[serde(default)]
    token_configs: TokenConfigs,
    eventlog_config: Option<EventLog>,
    #[expect(
        dead_code,
        reason = "the guest's log level is not the owner's to set here"
    )]
    log: Option<Log>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TokenConfigs {
    kbs: Option<Kbs>,
    #[expect(
        dead_code,
        reason = "peers' examples carry it; a token of it is never asked for"
    )]
    coco_as: Option<CocoAs>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kbs {
    url: String,
    cert: Option<String>,
    tee_key_algorithm: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CocoAs {
    #[expect(dead_code, reason = "named so that other keys are refused")]
    url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventLog {
    #[expect(dead_code, reason = "without an event log it changes nothing")]
    init_pcr: Option<u32>,
    #[serde(default)]
    enable_eventlog: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    #[expect(dead_code, reason = "named so that other keys are refused")]
    level: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cdh {
    #[expect(dead_code, reason = "there is no socket between our parts")]
    socket: Option<String>,
    #[expect(dead_code, reason = "there is no socket between our parts")]
    aa: Option<AaSocket>,
    kbc: Option<Kbc>,
    #[serde(default)]
    credentials: Vec<Value>,
    #[serde(default)]
    skip_sealed_secret_verification: bool,
    #[serde(default)]
    sealed_secret: sealed::Section,
    #[serde(default)]
    workload_api: WorkloadApi,
    services_dir: Option<Value>,
    #[serde(default)]
    image: Image,
    #[expect(
        dead_code,
        reason = "the guest's log level is not the owner's to set here"
    )]
    log: Option<Log>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AaSocket {
    #[expect(dead_code, reason = "named so that other keys are refused")]
    aa_socket: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kbc {
    name: String,
    url: String,
    kbs_cert: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Image {
    image_security_policy: Option<String>,
    image_security_policy_uri: Option<String>,
    authenticated_registry_credentials_uri: Option<String>,
    registry_configuration_uri: Option<String>,
    registry_config: Option<registry::Config>,
    extra_root_certificates: Vec<String>,
    max_concurrent_layer_downloads_per_image: Option<u32>,
    anonymous_fallback_on_unauthorized: bool,
    sigstore_config: Option<String>,
    sigstore_config_uri: Option<String>,
    image_pull_proxy: Proxy,
    work_dir: Option<Value>,
    limits: ImageLimits,
    store: Option<Store>,
    host_mirror: Option<HostMirror>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Proxy {
    https_proxy: String,
    http_proxy: String,
    no_proxy: String,
}

/// What the data hub's file says.
pub(super) struct Hub {
    pub(super) broker: Option<BrokerLocation>,
    pub(super) image: ImageSettings,
    pub(super) sealed: SealedSecrets,
    pub(super) workload_api: WorkloadApi,
}

pub(super) fn aa(text: &str) -> Result<Option<BrokerLocation>, ContentError> {
    let aa: Aa = read(AA_TOML, text)?;
    if aa.eventlog_config.is_some_and(|log| log.enable_eventlog) {
        return Err(unsupported(
            AA_TOML,
            "eventlog_config.enable_eventlog",
            "remove it",
        ));
    }
    let Some(kbs) = aa.token_configs.kbs else {
        return Ok(None);
    };
    const DEFAULT_KEY: &str = "ECDH-ES+A256KW-P256";
    if let Some(other) = kbs.tee_key_algorithm.filter(|name| name != DEFAULT_KEY) {
        return Err(ContentError::Value {
            file: AA_TOML,
            key: "token_configs.kbs.tee_key_algorithm",
            value: crate::shown(&other),
            fix: "write `ECDH-ES+A256KW-P256` or remove it",
        });
    }
    broker(AA_TOML, "token_configs.kbs.url", &kbs.url, kbs.cert).map(Some)
}

pub(super) fn cdh(text: &str) -> Result<Hub, ContentError> {
    let cdh: Cdh = read(CDH_TOML, text)?;
    if !cdh.credentials.is_empty() {
        return Err(unsupported(
            CDH_TOML,
            "credentials",
            "a workload asks for its secrets",
        ));
    }
    if cdh.services_dir.is_some() {
        return Err(unsupported(CDH_TOML, "services_dir", "remove it"));
    }
    let broker = cdh.kbc.map(kbc).transpose()?;
    Ok(Hub {
        broker,
        image: image(cdh.image)?,
        sealed: sealed::check(cdh.skip_sealed_secret_verification, cdh.sealed_secret)?,
        workload_api: cdh.workload_api,
    })
}

fn kbc(kbc: Kbc) -> Result<BrokerLocation, ContentError> {
    if kbc.name != "cc_kbc" {
        return Err(ContentError::Value {
            file: CDH_TOML,
            key: "kbc.name",
            value: crate::shown(&kbc.name),
            fix: "write `cc_kbc`",
        });
    }
    broker(CDH_TOML, "kbc.url", &kbc.url, kbc.kbs_cert)
}

fn broker(
    file: &'static str,
    key: &'static str,
    url: &str,
    cert: Option<String>,
) -> Result<BrokerLocation, ContentError> {
    let host = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
        return Err(ContentError::Value {
            file,
            key,
            value: crate::shown(url),
            fix: "write `https://host[:port]`",
        });
    }
    Ok(BrokerLocation {
        url: url.trim_end_matches('/').to_owned(),
        // Examples leave the key in place with nothing in it.
        root_cert_pem: cert.filter(|pem| !pem.trim().is_empty()),
    })
}

fn image(image: Image) -> Result<ImageSettings, ContentError> {
    refuse_unsupported(&image)?;
    if image.extra_root_certificates.len() > EXTRA_ROOTS {
        return Err(ContentError::TooMany {
            file: CDH_TOML,
            key: "image.extra_root_certificates",
            found: image.extra_root_certificates.len(),
            cap: EXTRA_ROOTS,
        });
    }
    if image.max_concurrent_layer_downloads_per_image == Some(0) {
        return Err(ContentError::Value {
            file: CDH_TOML,
            key: "image.max_concurrent_layer_downloads_per_image",
            value: "0".to_owned(),
            fix: "write at least 1",
        });
    }
    let inline_registries = image
        .registry_config
        .map(|config| registry::check(CDH_TOML, config))
        .transpose()?;
    Ok(ImageSettings {
        security_policy: source(
            "image.image_security_policy_uri",
            image.image_security_policy,
            image.image_security_policy_uri,
        )?,
        credentials_uri: image
            .authenticated_registry_credentials_uri
            .map(|uri| kbs_uri("image.authenticated_registry_credentials_uri", uri))
            .transpose()?,
        registries: source(
            "image.registry_configuration_uri",
            inline_registries,
            image.registry_configuration_uri,
        )?,
        lookaside: source(
            "image.sigstore_config_uri",
            image.sigstore_config,
            image.sigstore_config_uri,
        )?,
        extra_root_certificates: image.extra_root_certificates,
        layers_at_once: image.max_concurrent_layer_downloads_per_image,
        proxy: PullProxy {
            https: image.image_pull_proxy.https_proxy,
            http: image.image_pull_proxy.http_proxy,
            exceptions: image.image_pull_proxy.no_proxy,
        },
        limits: limits::check(image.limits)?,
        store: image.store,
        host_mirror: image.host_mirror,
    })
}

fn refuse_unsupported(image: &Image) -> Result<(), ContentError> {
    let refused = [
        (image.work_dir.is_some(), "image.work_dir", "remove it"),
        (
            image.anonymous_fallback_on_unauthorized,
            "image.anonymous_fallback_on_unauthorized",
            "keep credentials valid, and remove it",
        ),
    ];
    match refused.into_iter().find(|(asked, ..)| *asked) {
        Some((_, key, fix)) => Err(unsupported(CDH_TOML, key, fix)),
        None => Ok(()),
    }
}

fn source<T>(
    uri_key: &'static str,
    inline: Option<T>,
    uri: Option<String>,
) -> Result<Option<Source<T>>, ContentError> {
    match (inline, uri) {
        (Some(_), Some(_)) => Err(unsupported(
            CDH_TOML,
            uri_key,
            "the same document is also inline: keep one of the two",
        )),
        (Some(inline), None) => Ok(Some(Source::Inline(inline))),
        (None, Some(uri)) => Ok(Some(Source::Broker(kbs_uri(uri_key, uri)?))),
        (None, None) => Ok(None),
    }
}

/// A file of the guest's image is not the owner's word, so only the broker's resources count.
fn kbs_uri(key: &'static str, uri: String) -> Result<String, ContentError> {
    if uri.starts_with("kbs://") {
        return Ok(uri);
    }
    Err(ContentError::Value {
        file: CDH_TOML,
        key,
        value: crate::shown(&uri),
        fix: "write `kbs:///<repository>/<type>/<tag>`",
    })
}

pub(super) fn read<T: DeserializeOwned>(file: &'static str, text: &str) -> Result<T, ContentError> {
    toml::from_str(text).map_err(|error| ContentError::Toml {
        file,
        cause: error.message().to_owned(),
    })
}

fn unsupported(file: &'static str, key: &'static str, fix: &'static str) -> ContentError {
    ContentError::Unsupported { file, key, fix }
}
