//! A guest on a connection of its own: it attests, and it fetches its secret.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use evidence::Tee;
use evidence::init_data::{InitData, InitDataDigest};
use evidence::sample::SampleEvidence;
use evidence::sim::snp::ChipKey;
use evidence::snp::Report;
use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, InitData as SentInitData, Jwe, KeyKind, PREFIX,
    RuntimeData, TeeEvidence, TeeKeyPair, TokenResponse, report_data,
};

use serde_json::Value;

use super::http::Connection;

/// What a guest does, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// `auth` and `attest`, to a token.
    Attest,
    /// One resource by its token, each time the same.
    Release,
    /// One resource by its token, each time another.
    Another,
}

/// What guests of one kind share.
#[derive(Debug)]
pub struct Kind {
    /// Where their evidence comes from.
    pub attester: Attester,
    /// Init-data in the clear, where they have any.
    pub init_data: Option<String>,
}

/// Where evidence comes from.
#[derive(Debug)]
pub enum Attester {
    /// Nowhere: it is unsigned.
    Sample,
    /// A simulated launch of SEV-SNP, and the key of the chip that it is on.
    Snp(Box<Report>, ChipKey),
}

impl Attester {
    /// The kind's name on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sample => Tee::Sample.name(),
            Self::Snp(..) => Tee::SimSnp.name(),
        }
    }

    fn evidence(&self, bound: &[u8], init_data: Option<&InitDataDigest>) -> Result<Value> {
        let (report, key) = match self {
            Self::Sample => {
                let evidence = SampleEvidence::new(bound, init_data);
                return Ok(serde_json::to_value(evidence)?);
            }
            Self::Snp(report, key) => (report, key),
        };
        let mut report = Report::clone(report);
        let room = report.report_data.get_mut(..bound.len());
        room.context("more than a report binds")?
            .copy_from_slice(bound);
        if let Some(digest) = init_data {
            let bytes = digest.as_bytes().first_chunk();
            report.host_data = *bytes.context("a digest that is too short")?;
        }
        Ok(serde_json::to_value(key.evidence(report)?)?)
    }
}

/// A guest.
#[expect(missing_debug_implementations, reason = "it holds a private key")]
pub struct Guest {
    address: SocketAddr,
    connection: Connection,
    kind: Arc<Kind>,
    key: TeeKeyPair,
    auth: Vec<u8>,
    bearer: String,
    resources: Vec<(String, Vec<u8>)>,
    turn: usize,
}

impl Guest {
    /// Connects a guest that will ask for these resources, and attests it once.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn start(
        address: SocketAddr,
        kind: &Arc<Kind>,
        resources: &[(String, Vec<u8>)],
    ) -> Result<Self> {
        let mut guest = Self {
            address,
            connection: Connection::open(address).await?,
            kind: Arc::clone(kind),
            key: TeeKeyPair::generate(KeyKind::P256)?,
            auth: serde_json::to_vec(&AuthRequest::new(kind.attester.name()))?,
            bearer: String::new(),
            resources: resources
                .iter()
                .map(|(path, secret)| (format!("GET {PREFIX}/resource/{path}"), secret.clone()))
                .collect(),
            turn: 0,
        };
        guest.attest().await?;
        Ok(guest)
    }

    /// A new connection: the broker ends one that rests.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.connection = Connection::open(self.address).await?;
        Ok(())
    }

    /// Does it once.
    ///
    /// # Errors
    /// When the broker refuses, or gives something else than what was asked for.
    pub async fn work(&mut self, work: Work) -> Result<()> {
        match work {
            Work::Attest => self.attest().await,
            Work::Release => self.fetch().await.map(drop),
            Work::Another => {
                self.turn += 1;
                self.fetch().await.map(drop)
            }
        }
    }

    async fn attest(&mut self) -> Result<()> {
        let post = format!("POST {PREFIX}");
        let challenged = self
            .connection
            .ask(&format!("{post}/auth"), "", &self.auth)
            .await?;
        let challenge: AuthResponse = serde_json::from_slice(&challenged.body)?;
        let cookie = challenged.cookie.context("a challenge without a cookie")?;
        let runtime_data = RuntimeData {
            nonce: challenge.nonce,
            tee_pubkey: self.key.public(),
        };
        let bound = report_data(&runtime_data.nonce, &runtime_data.tee_pubkey, "");
        let init_data = self.kind.init_data.as_deref();
        let digest = init_data
            .map(|text| InitData::parse(text.as_bytes()).map(|parsed| parsed.digest()))
            .transpose()?;
        let evidence = self.kind.attester.evidence(&bound, digest.as_ref())?;
        let request = AttestRequest {
            init_data: init_data.map(SentInitData::toml),
            runtime_data,
            tee_evidence: TeeEvidence {
                primary_evidence: evidence,
                additional_evidence: String::new(),
            },
            resource: None,
        };
        let answer = self
            .connection
            .ask(
                &format!("{post}/attest"),
                &format!("cookie: {cookie}\r\n"),
                &serde_json::to_vec(&request)?,
            )
            .await?;
        let token: TokenResponse = serde_json::from_slice(&answer.body)?;
        self.bearer = format!("authorization: Bearer {}\r\n", token.token);
        Ok(())
    }

    async fn fetch(&mut self) -> Result<Jwe> {
        let at = self.turn % self.resources.len().max(1);
        let (request, _) = self.resources.get(at).context("nothing to ask for")?;
        let answer = self.connection.ask(request, &self.bearer, b"").await?;
        serde_json::from_slice(&answer.body).context("read the resource")
    }

    /// Fetches each resource once, and opens what came: the load is a load of right answers.
    ///
    /// # Errors
    /// When a secret is not the one that was stored.
    pub async fn check(&mut self) -> Result<()> {
        for turn in 0..self.resources.len() {
            self.turn = turn;
            let jwe = self.fetch().await?;
            let opened = self.key.open(&jwe)?;
            let right = self
                .resources
                .get(turn)
                .map(|(_, secret)| secret.as_slice());
            ensure!(right == Some(opened.expose()), "another secret came");
        }
        Ok(())
    }
}
