//! Asks AMD's and Intel's services for documents, or those that stand in for them.
//!
//! Documents that guests name have a lane of their own, so that many unknown chips do not keep a list
//! from being renewed.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::RETRY_AFTER};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use transport::{
    Body, Client, ClientConfig, Error, PlainHttp, Roots, TcpDial, Timeouts, bytes_capped,
};

use super::{
    CollateralError,
    config::{Config, Services},
    document::{Document, Item, Place},
    hold::{Holds, back_off, retry_after},
    stored::Held,
};
use crate::{file, session::seconds};

/// Fetches at once, in each lane.
const LANE: usize = 16;
/// Attempts before a failure is told.
const ATTEMPTS: u32 = 3;
/// Between two of them.
const BETWEEN: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(2));
/// For all of them, and for the turn in the lane.
const PATIENCE: Duration = Duration::from_secs(45);
const TIMEOUTS: Timeouts = Timeouts {
    dial: Duration::from_secs(5),
    tls: Duration::from_secs(5),
    head: Duration::from_secs(20),
    body: Duration::from_secs(10),
};
/// Bytes of the file with more roots.
const ROOTS_BYTES: usize = 1 << 20;

/// The way to the services.
pub(super) struct Fetcher {
    client: Client,
    /// For real and for simulated kinds.
    services: [Option<Services>; 2],
    pub(super) holds: Holds,
    named: Semaphore,
    others: Semaphore,
}

/// Why an attempt failed, and whether another one may be made at once.
struct Failed {
    error: CollateralError,
    again: bool,
}

impl Fetcher {
    pub(super) fn new(config: &Config) -> Result<Self, CollateralError> {
        let mut services = config.services().map_err(CollateralError::Config)?;
        if !config.fetch {
            services = [None, None];
        }
        let plain = services.iter().flatten().flat_map(|services| {
            let Services {
                amd_kds,
                intel_pcs,
                intel_root_crl,
            } = services;
            [amd_kds, intel_pcs, intel_root_crl]
        });
        let plain = plain.filter(|base| !base.secure);
        let client = ClientConfig {
            roots: roots(config)?,
            plain_http: PlainHttp::Hosts(plain.map(|base| base.host.clone()).collect()),
            timeouts: TIMEOUTS,
        };
        let client = Client::new(Arc::new(TcpDial), client)
            .map_err(|error| CollateralError::Config(error.to_string()))?;
        Ok(Self {
            client,
            services,
            holds: Holds::new(),
            named: Semaphore::new(LANE),
            others: Semaphore::new(LANE),
        })
    }

    /// Where to ask for the document; nowhere if nobody may be asked.
    pub(super) fn place(&self, document: &Document) -> Option<Place> {
        let [real, simulated] = &self.services;
        let services = if document.simulated { simulated } else { real };
        services.as_ref().map(|services| document.place(services))
    }

    /// The document as the service gives it. Nothing but its form was checked.
    pub(super) async fn get(&self, document: &Document) -> Result<Held, CollateralError> {
        let place = self
            .place(document)
            .ok_or_else(|| CollateralError::Absent {
                document: document.clone(),
            })?;
        self.holds.check(document, &place.host, Instant::now())?;
        let answer = timeout(PATIENCE, self.attempt(document, &place))
            .await
            .unwrap_or_else(|_| {
                Err(CollateralError::TooSlow {
                    document: document.clone(),
                    host: place.host.clone(),
                    seconds: PATIENCE.as_secs(),
                })
            });
        match &answer {
            // It holds for the host and whatever it is asked for.
            Ok(_) | Err(CollateralError::RateLimited { .. }) => {}
            Err(error) => self.holds.failed(error.clone(), document, Instant::now()),
        }
        answer
    }

    async fn attempt(&self, document: &Document, place: &Place) -> Result<Held, CollateralError> {
        let lane = if document.is_named_by_guests() {
            &self.named
        } else {
            &self.others
        };
        let _turn = lane.acquire().await.map_err(|_| CollateralError::Busy {
            document: document.clone(),
        })?;
        let mut attempts = 0;
        loop {
            // Others may have been told in the meantime to leave the host alone.
            self.holds.check(document, &place.host, Instant::now())?;
            attempts += 1;
            match self.ask(document, place).await {
                Ok(held) => return Ok(held),
                Err(failed) if failed.again && attempts < ATTEMPTS => {
                    tracing::debug!(error = %failed.error, attempts, "asking again");
                    sleep(back_off(BETWEEN, attempts - 1)).await;
                }
                Err(failed) => return Err(failed.error),
            }
        }
    }

    async fn ask(&self, document: &Document, place: &Place) -> Result<Held, Failed> {
        let unreachable = |cause: String, again| Failed {
            error: CollateralError::Unreachable {
                document: document.clone(),
                host: place.host.clone(),
                cause,
            },
            again,
        };
        let broken = |error: Error| match error {
            Error::TooLarge { .. } => refused(document, place, error.to_string()),
            error => unreachable(error.to_string(), error.is_transient()),
        };
        let request = Request::get(&place.url).body(Bytes::new());
        let request = request.map_err(|error| unreachable(error.to_string(), false))?;
        let answer = self.client.send_following(request).await.map_err(broken)?;
        let status = answer.status();
        if let Some(failed) = self.told_to_wait(document, place, &answer) {
            return Err(failed);
        }
        if status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() {
            return Err(unreachable(format!("HTTP {}", status.as_u16()), true));
        }
        self.holds.answered(&place.host);
        if status != StatusCode::OK {
            let error = CollateralError::Unknown {
                document: document.clone(),
                host: place.host.clone(),
                status: status.as_u16(),
            };
            return Err(Failed {
                error,
                again: false,
            });
        }
        let chain = issuer_chain(document, answer.headers())
            .map_err(|cause| refused(document, place, cause))?;
        // A PCCS gives the hex of a list, which is twice as long.
        let body = bytes_capped(answer.into_body(), 2 * document.cap()).await;
        let body = plain(document, &body.map_err(broken)?);
        let fetched = i64::try_from(seconds(SystemTime::now())).unwrap_or(i64::MAX);
        Held::new(document.clone(), fetched, body, chain)
            .map_err(|cause| refused(document, place, cause))
    }

    fn told_to_wait(
        &self,
        document: &Document,
        place: &Place,
        answer: &Response<Body>,
    ) -> Option<Failed> {
        let wait = answer.headers().get(RETRY_AFTER);
        let wait = wait.and_then(|wait| retry_after(wait.to_str().ok()?, SystemTime::now()));
        match answer.status() {
            StatusCode::TOO_MANY_REQUESTS => {}
            StatusCode::SERVICE_UNAVAILABLE if wait.is_some() => {}
            _ => return None,
        }
        let now = Instant::now();
        let until = self.holds.rest(&place.host, wait, now);
        let error = CollateralError::RateLimited {
            document: document.clone(),
            host: place.host.clone(),
            until: SystemTime::now() + until.saturating_duration_since(now),
        };
        Some(Failed {
            error,
            again: false,
        })
    }
}

fn refused(document: &Document, place: &Place, cause: String) -> Failed {
    Failed {
        error: CollateralError::Refused {
            document: document.clone(),
            host: place.host.clone(),
            cause,
        },
        again: false,
    }
}

fn roots(config: &Config) -> Result<Roots, CollateralError> {
    let Some(path) = &config.extra_roots else {
        return Ok(Roots::web());
    };
    let unusable = |cause: String| CollateralError::File {
        path: path.clone(),
        cause,
    };
    let pem = file::read_text(path, ROOTS_BYTES).map_err(|error| unusable(error.to_string()))?;
    Roots::web()
        .and(&pem)
        .map_err(|error| unusable(error.to_string()))
}

/// The chain of the document's issuer, which travels in a header with percent signs.
fn issuer_chain(document: &Document, headers: &HeaderMap) -> Result<Option<String>, String> {
    let names = document.chain_headers();
    let Some(first) = names.first() else {
        return Ok(None);
    };
    let chain = names.iter().find_map(|name| headers.get(*name));
    let chain = chain.ok_or_else(|| format!("it came without {first}"))?;
    let chain = unescape(chain.as_bytes()).ok_or_else(|| format!("{first} is not a chain"))?;
    Ok(Some(chain))
}

/// Undoes percent signs; a plus stays one, as PEM has it.
fn unescape(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.extend(hex::decode(digits).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The document, where a mirror gave the hex of it.
fn plain(document: &Document, body: &[u8]) -> Vec<u8> {
    match document.item {
        Item::PckCrl { .. } | Item::RootCrl => {
            hex::decode(body.trim_ascii()).unwrap_or_else(|_| body.to_vec())
        }
        _ => body.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_read_from_its_header() {
        let text = b"-----BEGIN%20CERTIFICATE-----%0Aa%2Bb+c%2F%3D%0A";
        let chain = unescape(text).unwrap();
        assert_eq!(chain, "-----BEGIN CERTIFICATE-----\na+b+c/=\n");
        for broken in [&b"%"[..], b"%4", b"%zz", b"%ff"] {
            assert_eq!(unescape(broken), None);
        }
    }

    #[test]
    fn a_list_in_hex_is_taken_as_its_bytes() {
        let list = "tdx.root-crl".parse().unwrap();
        assert_eq!(plain(&list, b"30820a\n"), [0x30, 0x82, 0x0a]);
        assert_eq!(plain(&list, &[0x30, 0x82]), [0x30, 0x82]);
    }
}
