//! The owner's side of the wire.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, header};
use kbs_protocol::{ErrorInformation, PREFIX};
use transport::{Client, ClientConfig, Roots, TcpDial, bytes_capped};

use crate::admin::make_token;

/// Bytes of an answer to the owner: a policy or a long list.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// A token that is made for one command lives no longer than it.
const TOKEN_LIFETIME: Duration = Duration::from_secs(120);

/// Which broker, and who asks.
#[derive(Debug, Args)]
pub struct Connection {
    /// The broker.
    #[arg(
        long,
        global = true,
        env = "KBS_URL",
        default_value = "https://127.0.0.1:8080"
    )]
    url: String,
    /// The root in PEM that its certificate must chain to; public roots where absent.
    #[arg(long, global = true, env = "KBS_CACERT")]
    cacert: Option<PathBuf>,
    /// A private key to make an administrator's token with.
    #[arg(
        long,
        global = true,
        env = "KBS_ADMIN_KEY",
        conflicts_with = "admin_token"
    )]
    admin_key: Option<PathBuf>,
    /// The role of the token that is made with --admin-key.
    #[arg(long, global = true, env = "KBS_ADMIN_ROLE", default_value = "admin")]
    admin_role: String,
    /// An administrator's token, as `kbs token` prints it.
    #[arg(long, global = true, env = "KBS_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
}

impl Connection {
    /// Sends one request and gives the body of a success.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Bytes> {
        let roots = match &self.cacert {
            None => Roots::web(),
            Some(path) => {
                let pem =
                    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                Roots::pinned(&pem)?
            }
        };
        let client = Client::new(Arc::new(TcpDial), ClientConfig::new(roots))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{PREFIX}/{path}", self.url.trim_end_matches('/')))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token()?))
            .body(body.into())
            .context("make the request")?;
        let response = client.send(request).await?;
        let status = response.status();
        let body = bytes_capped(response.into_body(), ANSWER_BYTES).await?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<ErrorInformation>(&body) {
            Ok(error) => anyhow::bail!("{} [{status}]", error.detail),
            Err(_) => anyhow::bail!("the broker answered {status}"),
        }
    }

    fn token(&self) -> anyhow::Result<String> {
        match (&self.admin_token, &self.admin_key) {
            (Some(token), _) => Ok(token.trim().to_owned()),
            (None, Some(key)) => Ok(make_token(key, &self.admin_role, TOKEN_LIFETIME)?),
            (None, None) => anyhow::bail!("give --admin-key or --admin-token"),
        }
    }
}
