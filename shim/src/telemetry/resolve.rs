//! The collector's addresses. The C library's resolver blocks, for as long as a dead name server likes: so it has a
//! thread of its own while it is asked, one at a time and never one of the runtime's, which are few and are waited
//! for at the end.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::Instant;

/// How long an answer holds.
const FRESH: Duration = Duration::from_secs(60);
/// How long nobody is asked after a failure, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Of the thread: its pages are there only while it runs.
const STACK: usize = 256 * 1024;

const NO_ADDRESS: &str = "the collector's name has no address";

type Answer = io::Result<Vec<SocketAddr>>;

/// Finds the addresses of one name.
#[derive(Debug)]
pub(super) struct Resolver {
    name: String,
    port: u16,
    known: Vec<SocketAddr>,
    /// When the name is asked for again.
    due: Instant,
    pause: Duration,
    asked: Option<oneshot::Receiver<Answer>>,
    /// Why there was no address when it was asked last.
    fault: String,
}

impl Resolver {
    /// Of a name, or of an address, which is never asked for.
    pub(super) fn new(name: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            port,
            known: Vec::new(),
            due: Instant::now(),
            pause: PAUSE,
            asked: None,
            fault: NO_ADDRESS.to_owned(),
        }
    }

    /// The addresses as of now, or of a moment ago. Who does not wait any longer finds the same question later.
    pub(super) async fn addresses(&mut self) -> Result<Vec<SocketAddr>, String> {
        if let Ok(address) = self.name.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        if self.asked.is_none() && Instant::now() >= self.due {
            let (name, port) = (self.name.clone(), self.port);
            let ask = move || {
                let found = (name.as_str(), port).to_socket_addrs()?;
                Ok(found.take(MAX_ADDRESSES).collect())
            };
            self.asked = Some(ask_apart(ask).map_err(|error| error.to_string())?);
        }
        if let Some(asked) = &mut self.asked {
            let ended = |_| Err(io::Error::other("the resolver ended"));
            let answer = match asked.try_recv() {
                Err(TryRecvError::Empty) if self.known.is_empty() => {
                    asked.await.unwrap_or_else(ended)
                }
                // What is known serves until there is an answer.
                Err(TryRecvError::Empty) => return Ok(self.known.clone()),
                Err(TryRecvError::Closed) => Err(io::Error::other("the resolver ended")),
                Ok(answer) => answer,
            };
            self.asked = None;
            self.take(answer);
        }
        match self.known.is_empty() {
            true => Err(self.fault.clone()),
            false => Ok(self.known.clone()),
        }
    }

    fn take(&mut self, answer: Answer) {
        match answer {
            Ok(found) if !found.is_empty() => {
                self.known = found;
                self.due = Instant::now() + FRESH;
                self.pause = PAUSE;
            }
            // What was known may still hold.
            failed => {
                self.fault = match failed {
                    Err(error) => format!("the collector's name: {error}"),
                    Ok(_) => NO_ADDRESS.to_owned(),
                };
                self.due = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

fn ask_apart(
    ask: impl FnOnce() -> Answer + Send + 'static,
) -> io::Result<oneshot::Receiver<Answer>> {
    let (answer, asked) = oneshot::channel();
    let work = move || {
        // Who asked may be gone.
        let _ = answer.send(ask());
    };
    let thread = std::thread::Builder::new().name("resolve".to_owned());
    thread.stack_size(STACK).spawn(work)?;
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dead_resolver_has_one_thread_and_is_asked_ever_less() {
        let mut resolver = Resolver::new("collector.invalid", 4318);
        let (answer, asked) = oneshot::channel();
        resolver.asked = Some(asked);
        for _ in 0..10 {
            let waited = tokio::time::timeout(Duration::from_secs(5), resolver.addresses());
            assert!(waited.await.is_err());
            assert!(resolver.asked.is_some(), "the same question is waited for");
        }
        answer.send(Err(io::Error::other("no server"))).unwrap();
        assert!(resolver.addresses().await.is_err());
        let now = Instant::now();
        assert_eq!(resolver.due, now + PAUSE);
        // Until then nobody is asked.
        assert!(resolver.addresses().await.is_err() && resolver.asked.is_none());
        for _ in 0..20 {
            resolver.take(Err(io::Error::other("no server")));
        }
        assert_eq!(resolver.due, now + MAX_PAUSE);
        let found = vec![SocketAddr::from(([127, 0, 0, 1], 4318))];
        resolver.take(Ok(found.clone()));
        resolver.take(Err(io::Error::other("no server")));
        assert_eq!(resolver.addresses().await.unwrap(), found);
        let (_never, asked) = oneshot::channel();
        resolver.asked = Some(asked);
        assert_eq!(resolver.addresses().await.unwrap(), found);
    }

    #[tokio::test]
    async fn an_address_and_a_name_are_found() {
        for name in ["127.0.0.1", "::1"] {
            let mut resolver = Resolver::new(name, 1);
            let address: IpAddr = name.parse().unwrap();
            let found = resolver.addresses().await.unwrap();
            assert_eq!(found, [SocketAddr::new(address, 1)]);
        }
        let mut resolver = Resolver::new("localhost", 1);
        let found = resolver.addresses().await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
    }
}
