//! Memory that clients make the broker hold: a bound for all of them together, and a share of it for
//! each address, so that none takes it from the others.
//!
//! An address's share is a semaphore of its own, which is there for as long as somebody holds of it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kbs_protocol::ErrorKind;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::refusal::Refusal;

/// Room is taken in steps of it.
const STEP_BYTES: usize = 4096;
/// Addresses that fill a room when each has its whole share.
const SHARES: usize = 8;
/// How long somebody waits for room.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });
/// When a client that found no room may come again, in seconds.
const RETRY_SECONDS: u64 = 2;

/// Room for one thing that many clients bring or ask for.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    share: usize,
    addresses: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let steps = bytes / STEP_BYTES;
        Arc::new(Self {
            all: Arc::new(Semaphore::new(steps)),
            share: steps / SHARES,
            addresses: Mutex::default(),
        })
    }

    fn own(&self, address: IpAddr) -> Own {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let share = addresses
            .entry(address)
            .or_insert_with(|| Arc::new(Semaphore::new(self.share)));
        Own {
            address,
            share: Arc::clone(share),
            held: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let addresses = self.addresses.lock().unwrap();
        addresses.is_empty() && self.all.available_permits() == self.share * SHARES
    }
}

/// What somebody holds of a room, until it is dropped.
pub(crate) struct Held {
    room: Arc<Room>,
    /// Whose share it is of; `None` where nobody's alone.
    whose: Option<IpAddr>,
    own: Option<Own>,
    all: Option<OwnedSemaphorePermit>,
}

/// What somebody holds of the share of their address.
struct Own {
    address: IpAddr,
    share: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Nothing yet.
    pub(crate) fn new(room: &Arc<Room>, whose: Option<IpAddr>) -> Self {
        Self {
            room: Arc::clone(room),
            whose,
            own: None,
            all: None,
        }
    }

    /// Takes at once what is lacking for so many bytes, or gives false.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        self.prepare(bytes);
        let own = self.own.as_mut().is_none_or(|own| {
            let lacks = lacking(own.held.as_ref(), bytes);
            let share = Arc::clone(&own.share);
            lacks == 0 || keep(&mut own.held, share.try_acquire_many_owned(lacks).ok())
        });
        let lacks = lacking(self.all.as_ref(), bytes);
        let all = Arc::clone(&self.room.all);
        own && (lacks == 0 || keep(&mut self.all, all.try_acquire_many_owned(lacks).ok()))
    }

    /// Takes what is lacking for so many bytes, and waits for it.
    ///
    /// # Errors
    /// When it waits for too long.
    pub(crate) async fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        if self.try_grow(bytes) {
            return Ok(());
        }
        let taken = timeout(PATIENCE, self.wait(bytes)).await;
        if taken == Ok(true) {
            return Ok(());
        }
        let detail = "more is held at once than there is room for: try again in a moment";
        Err(Refusal::new(ErrorKind::NotReady, detail).retry_after(RETRY_SECONDS))
    }

    /// The share comes first: who waits for it takes nothing from others.
    async fn wait(&mut self, bytes: usize) -> bool {
        if let Some(own) = &mut self.own {
            let lacks = lacking(own.held.as_ref(), bytes);
            let taken = Arc::clone(&own.share).acquire_many_owned(lacks).await;
            if !keep(&mut own.held, taken.ok()) {
                return false;
            }
        }
        let lacks = lacking(self.all.as_ref(), bytes);
        let taken = Arc::clone(&self.room.all).acquire_many_owned(lacks).await;
        keep(&mut self.all, taken.ok())
    }

    fn prepare(&mut self, bytes: usize) {
        if let Some(address) = self.whose
            && self.own.is_none()
            && bytes > 0
        {
            self.own = Some(self.room.own(address));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(own) = self.own.take() else {
            return;
        };
        let address = own.address;
        let mut addresses = self
            .room
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        drop(own);
        // Others' are made under this lock, so nobody holds of a share that only the table knows.
        if addresses
            .get(&address)
            .is_some_and(|share| Arc::strong_count(share) == 1)
        {
            addresses.remove(&address);
        }
    }
}

/// Steps that are lacking for so many bytes.
fn lacking(held: Option<&OwnedSemaphorePermit>, bytes: usize) -> u32 {
    let has = held.map_or(0, OwnedSemaphorePermit::num_permits);
    let lacks = bytes.div_ceil(STEP_BYTES).saturating_sub(has);
    u32::try_from(lacks).unwrap_or(u32::MAX)
}

fn keep(held: &mut Option<OwnedSemaphorePermit>, taken: Option<OwnedSemaphorePermit>) -> bool {
    let Some(taken) = taken else {
        return false;
    };
    match held {
        Some(held) => held.merge(taken),
        None => *held = Some(taken),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = SHARES * 2 * STEP_BYTES;

    fn from(number: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, number]))
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_leaves_the_rest_to_others() {
        let room = Room::new(BYTES);
        let mut first = Held::new(&room, from(1));
        assert!(first.try_grow(STEP_BYTES) && first.try_grow(2 * STEP_BYTES));
        let mut second = Held::new(&room, from(1));
        assert!(!second.try_grow(1));
        assert!(second.grow(1).await.is_err());
        assert!(Held::new(&room, from(2)).try_grow(2 * STEP_BYTES));
        drop(first);
        second.grow(2 * STEP_BYTES).await.unwrap();
        drop(second);
        assert!(room.is_empty());
    }

    #[tokio::test]
    async fn all_of_them_have_no_more_than_there_is() {
        let room = Room::new(BYTES);
        let mut many = Held::new(&room, None);
        assert!(many.try_grow(BYTES));
        assert!(Held::new(&room, from(1)).grow(1).await.is_err());
        assert!(Held::new(&room, from(1)).try_grow(0));
        assert!(!Held::new(&room, None).try_grow(BYTES + 1));
        drop(many);
        Held::new(&room, from(1)).grow(1).await.unwrap();
        assert!(room.is_empty());
    }
}
