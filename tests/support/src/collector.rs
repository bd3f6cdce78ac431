//! A collector of OpenTelemetry on loopback, and the spans that it got, as OTLP in JSON has them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The largest message that it takes.
const MAX_BODY: usize = 4 << 20;

/// The collector; it listens until the process ends.
#[derive(Debug)]
pub struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// One span.
#[derive(Debug, Clone)]
pub struct Span {
    /// `service.name` of who sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// The trace that it is of.
    pub trace: String,
    /// Its id.
    pub id: String,
    /// The span that it is below; empty for none.
    pub parent: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// The same.
    pub end: u64,
    /// What else it says, as text.
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    /// Listens.
    ///
    /// # Errors
    /// As bind(2) fails.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let got = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let got = Arc::clone(&got);
                // How a connection ends is its sender's business.
                std::thread::spawn(move || speak(&stream, &got));
            }
        });
        Ok(Self { url, spans })
    }

    /// Its address, without the path.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it got so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.clone()
    }
}

fn speak(stream: &TcpStream, got: &Mutex<Vec<Span>>) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream.try_clone()?;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(reader.read_line(&mut head)? > 0, "the end");
        }
        ensure!(head.starts_with("POST /v1/traces "), "{head}");
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        ensure!(
            header("content-type").as_deref() == Some("application/json"),
            "{head}"
        );
        let length: usize = header("content-length").context("no length")?.parse()?;
        ensure!(length <= MAX_BODY, "{length} bytes");
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let new = spans(&serde_json::from_slice(&body)?).context("no OTLP")?;
        got.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(new);
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        writer.write_all(answer.as_bytes())?;
    }
}

fn spans(message: &Value) -> Option<Vec<Span>> {
    let mut all = Vec::new();
    for resource in message["resourceSpans"].as_array()? {
        let about = attributes(&resource["resource"]["attributes"])?;
        for scope in resource["scopeSpans"].as_array()? {
            for span in scope["spans"].as_array()? {
                let text = |key: &str| span[key].as_str().map(str::to_owned);
                all.push(Span {
                    service: about.get("service.name")?.clone(),
                    name: text("name")?,
                    trace: text("traceId").filter(|id| id.len() == 32)?,
                    id: text("spanId").filter(|id| id.len() == 16)?,
                    parent: text("parentSpanId").unwrap_or_default(),
                    start: text("startTimeUnixNano")?.parse().ok()?,
                    end: text("endTimeUnixNano")?.parse().ok()?,
                    attributes: attributes(&span["attributes"])?,
                });
            }
        }
    }
    Some(all)
}

fn attributes(list: &Value) -> Option<BTreeMap<String, String>> {
    let pair = |one: &Value| {
        let value = &one["value"];
        let text = value["stringValue"].as_str();
        let text = text.map_or_else(|| value.to_string(), str::to_owned);
        Some((one["key"].as_str()?.to_owned(), text))
    };
    list.as_array()?.iter().map(pair).collect()
}
