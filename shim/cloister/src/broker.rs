//! Registers a key at a broker, by the owner's half of the KBS protocol. Every status but success is an error.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use ocicrypt::Key;
use serde_json::Value;
use transport::{Client, ClientConfig, PlainHttp, Roots, TcpDial, bytes_capped};
use zeroize::Zeroizing;

use super::key::{KeyId, read_token};
use super::registry::is_loopback;

const PREFIX: &str = "/kbs/v0";
/// Cap on an answer, in bytes; the longest is the list of all resources.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Which broker keeps the key.
#[derive(Debug, Args)]
pub(super) struct BrokerArgs {
    /// The broker that shall keep the key.
    #[arg(
        long,
        value_name = "URL",
        env = "KBS_URL",
        requires = "admin_token_file"
    )]
    kbs: Option<String>,
    /// The root in PEM that the broker's certificate must chain to; public roots where absent.
    #[arg(long, value_name = "PEM", env = "KBS_CACERT")]
    kbs_cert: Option<PathBuf>,
    /// A file with an administrator's token.
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

/// A broker that was reached as an administrator.
pub(super) struct Broker {
    client: Client,
    url: String,
    token: Zeroizing<String>,
}

impl BrokerArgs {
    /// `None` when no broker was named.
    pub(super) fn open(&self, plain_http: bool) -> anyhow::Result<Option<Broker>> {
        let Some(url) = &self.kbs else {
            return Ok(None);
        };
        let parsed =
            url::Url::parse(url).with_context(|| format!("{url:?} is not a broker's URL"))?;
        let host = parsed
            .host_str()
            .unwrap_or_default()
            .trim_matches(['[', ']']);
        let roots = match &self.kbs_cert {
            None => Roots::web(),
            Some(path) => {
                let pem =
                    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                Roots::pinned(&pem)?
            }
        };
        let mut config = ClientConfig::new(roots);
        if plain_http && is_loopback(host) {
            config.plain_http = PlainHttp::Hosts([host.to_owned()].into());
        }
        let token = self
            .admin_token_file
            .as_deref()
            .context("give --admin-token-file")?;
        Ok(Some(Broker {
            client: Client::new(Arc::new(TcpDial), config)?,
            url: url.trim_end_matches('/').to_owned(),
            token: read_token(token)?,
        }))
    }
}

impl Broker {
    /// Whether the broker has a key of this name; `None` when it does not list what it has.
    pub(super) async fn has(&self, kid: &KeyId) -> anyhow::Result<Option<bool>> {
        let (status, body) = self.ask(Method::GET, "resource", Bytes::new()).await?;
        if status == StatusCode::NOT_FOUND || status == StatusCode::METHOD_NOT_ALLOWED {
            return Ok(None);
        }
        // A broker that says 401 to everything it does not know says no more than "not known".
        if !status.is_success() {
            return Ok(None);
        }
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok(list.as_array().map(|items| {
            let name = |item: &Value| {
                item.as_str()
                    .or_else(|| item["path"].as_str())
                    .map(str::to_owned)
            };
            items
                .iter()
                .filter_map(name)
                .any(|name| name.trim_start_matches("kbs:///") == kid.path())
        }))
    }

    /// Gives the key to the broker.
    pub(super) async fn register(&self, kid: &KeyId, key: &Key) -> anyhow::Result<()> {
        // Wiped with the request.
        let body = Bytes::from_owner(Zeroizing::new(key.expose().to_vec()));
        let (status, body) = self
            .ask(Method::POST, &format!("resource/{}", kid.path()), body)
            .await?;
        taken(status, &body, &format!("take key {kid}"))
    }

    /// The reference values of this name that hold or will, as the broker lists them.
    pub(super) async fn reference_values(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("prefix", name);
        let path = format!("reference-value?{}", query.finish());
        let (status, body) = self.ask(Method::GET, &path, Bytes::new()).await?;
        taken(status, &body, "list its reference values")?;
        let mut list: Vec<Value> = serde_json::from_slice(&body)
            .context("the broker lists reference values in another form")?;
        list.retain(|value| value["name"] == name);
        Ok(list)
    }

    /// Gives the broker a message with reference values.
    pub(super) async fn add_reference_values(&self, message: &Value) -> anyhow::Result<()> {
        let body = Bytes::from(message.to_string());
        let (status, body) = self.ask(Method::POST, "reference-value", body).await?;
        taken(status, &body, "take the reference values")
    }

    /// Takes back what a name got with one change.
    pub(super) async fn withdraw_reference_values(
        &self,
        name: &str,
        version: i64,
    ) -> anyhow::Result<()> {
        let segment: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let path = format!(
            "reference-value/{}?version={version}",
            segment.replace('+', "%20")
        );
        let (status, body) = self.ask(Method::DELETE, &path, Bytes::new()).await?;
        taken(status, &body, "withdraw a reference value")
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{PREFIX}/{path}", self.url))
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.token.as_str()),
            )
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body)
            .context("make the request to the broker")?;
        let answer = self.client.send(request).await?;
        let status = answer.status();
        Ok((
            status,
            bytes_capped(answer.into_body(), ANSWER_BYTES_MAX).await?,
        ))
    }
}

/// Whether the broker did what it was asked for; else what it says.
fn taken(status: StatusCode, body: &[u8], what: &str) -> anyhow::Result<()> {
    if status.is_success() {
        return Ok(());
    }
    let detail: Value = serde_json::from_slice(body).unwrap_or_default();
    let detail = detail["detail"].as_str().unwrap_or("no reason given");
    bail!("the broker did not {what}: {detail} [{status}]")
}
