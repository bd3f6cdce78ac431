//! A service on loopback that plays AMD's and Intel's: it gives what it was told to, counts who asks,
//! and can be held.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use kbs::collateral::{Config, Simulated};
use tokio::{net::TcpListener, sync::watch};

#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

#[derive(Default)]
struct Desk {
    answers: HashMap<String, Answer>,
    asked: Vec<String>,
    held: HashMap<String, watch::Receiver<bool>>,
}

/// A running service. Paths are with their query.
pub(crate) struct Service {
    pub(crate) url: String,
    desk: Arc<Mutex<Desk>>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        let desk = Arc::new(Mutex::new(Desk::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(serve).with_state(Arc::clone(&desk));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, desk }
    }

    /// From now on, gives this.
    pub(crate) fn give(&self, path: &str, body: impl Into<Vec<u8>>) {
        self.say(path, 200, &[], body);
    }

    /// From now on, answers so.
    pub(crate) fn say(
        &self,
        path: &str,
        status: u16,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let answer = Answer {
            status,
            headers: headers.iter().map(owned).collect(),
            body: body.into(),
        };
        let mut desk = self.desk.lock().unwrap();
        desk.answers.insert(path.to_owned(), answer);
    }

    /// Leaves questions for this path without an answer until the sender says `true`.
    pub(crate) fn hold(&self, path: &str) -> watch::Sender<bool> {
        let (release, held) = watch::channel(false);
        let mut desk = self.desk.lock().unwrap();
        desk.held.insert(path.to_owned(), held);
        release
    }

    /// What was asked for, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.desk.lock().unwrap().asked.clone()
    }

    /// How often this was asked for.
    pub(crate) fn times(&self, path: &str) -> usize {
        let asked = self.asked();
        asked.iter().filter(|asked| *asked == path).count()
    }

    /// A configuration that asks this service about simulated kinds.
    pub(crate) fn config(&self, directory: &std::path::Path) -> Config {
        Config {
            directory: directory.join("cache"),
            simulated: Some(Simulated {
                amd_kds: self.url.clone(),
                intel_pcs: self.url.clone(),
                intel_root_crl: format!("{}/root.crl", self.url),
            }),
            ..Config::default()
        }
    }
}

async fn serve(State(desk): State<Arc<Mutex<Desk>>>, request: Request) -> Response {
    let path = request.uri().to_string();
    let held = {
        let mut desk = desk.lock().unwrap();
        desk.asked.push(path.clone());
        desk.held.get(&path).cloned()
    };
    if let Some(mut held) = held {
        // A test that ended releases all.
        drop(held.wait_for(|released| *released).await);
    }
    let answer = desk.lock().unwrap().answers.get(&path).cloned();
    let answer = answer.unwrap_or(Answer {
        status: 404,
        headers: Vec::new(),
        body: Vec::new(),
    });
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.body)).unwrap()
}
