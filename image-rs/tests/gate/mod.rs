//! What stands before a registry: it counts what is asked for, and may hold back what is answered.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses a part of it"
)]

use std::sync::{Arc, Mutex};

use image_rs::Reference;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What of a layer passes before the gate is opened.
const PASSED: usize = 1 << 20;

/// Stands before the registry, and lets through all that is asked, but only some of what is answered until it opens.
pub struct Gate {
    pub port: u16,
    open: watch::Sender<bool>,
    asked: Arc<Mutex<Vec<u8>>>,
}

impl Gate {
    pub async fn start(registry: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, opened) = watch::channel(false);
        let asked = Arc::<Mutex<Vec<u8>>>::default();
        let heard = asked.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(("127.0.0.1", registry)).await.unwrap();
                tokio::spawn(carry(near, far, heard.clone(), opened.clone()));
            }
        });
        Self { port, open, asked }
    }

    pub fn image(&self, name: &str) -> Reference {
        format!("127.0.0.1:{}/{name}", self.port).parse().unwrap()
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// How often something was asked for.
    pub fn asked(&self, what: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        String::from_utf8_lossy(&asked).matches(what).count()
    }
}

async fn carry(
    near: TcpStream,
    far: TcpStream,
    asked: Arc<Mutex<Vec<u8>>>,
    mut opened: watch::Receiver<bool>,
) {
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
        (near.into_split(), far.into_split());
    let there = async {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from_near.read(&mut buffer).await {
            asked.lock().unwrap().extend_from_slice(&buffer[..count]);
            if to_far.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    let back = async {
        let (mut buffer, mut passed) = (vec![0; 64 * 1024], 0);
        while let Ok(count @ 1..) = from_far.read(&mut buffer).await {
            passed += count;
            if passed > PASSED && opened.wait_for(|open| *open).await.is_err() {
                break;
            }
            if to_near.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! { () = there => {}, () = back => {} }
}
