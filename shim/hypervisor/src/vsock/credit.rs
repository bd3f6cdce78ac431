//! Flow control of one connection (virtio 1.3 §5.10.6.3). Both ends count bytes modulo 2^32, and
//! neither sends more than the other said it can hold.
//!
//! ```text
//!   to the guest:    free = peer_buf_alloc - (sent - peer_fwd_cnt)
//!   from the guest:  allowed = BUF_ALLOC - (received - forwarded)
//! ```

/// Bytes that we hold for one connection when its user does not read. Times the most connections
/// this is what a hostile guest can make us hold.
pub const BUF_ALLOC: u32 = 256 << 10;
/// After how many forwarded bytes the guest is told without being asked: early enough that a guest
/// which fills the buffer is not stopped.
const UPDATE_AFTER: u32 = BUF_ALLOC / 4;

/// The counters of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credit {
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    received: u32,
    forwarded: u32,
    told: u32,
}

impl Credit {
    /// Takes the guest's side from a packet. A guest that claims to have taken more than it was
    /// sent gets no credit from that.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_fwd_cnt = fwd_cnt;
    }

    /// Bytes that may be sent to the guest now.
    #[must_use]
    pub fn free(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    /// Counts bytes sent to the guest.
    pub fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Counts bytes received, or returns false where the guest had no credit for them.
    #[must_use]
    pub fn receive(&mut self, bytes: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let allowed = bytes <= BUF_ALLOC.saturating_sub(held);
        if allowed {
            self.received = self.received.wrapping_add(bytes);
        }
        allowed
    }

    /// Counts bytes that the user's socket has taken. True when the guest should be told.
    #[must_use]
    pub fn forward(&mut self, bytes: u32) -> bool {
        self.forwarded = self.forwarded.wrapping_add(bytes);
        self.forwarded.wrapping_sub(self.told) >= UPDATE_AFTER
    }

    /// The counter to put in a packet; the guest knows it from then on.
    #[must_use]
    pub fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.forwarded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sending_stops_at_the_peers_buffer_and_goes_on_with_its_count() {
        let mut credit = Credit::default();
        assert_eq!(credit.free(), 0);
        credit.update(100, 0);
        credit.sent(100);
        assert_eq!(credit.free(), 0);
        credit.update(100, 40);
        assert_eq!(credit.free(), 40);
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit {
            sent: u32::MAX - 9,
            peer_fwd_cnt: u32::MAX - 9,
            ..Credit::default()
        };
        credit.update(100, u32::MAX - 9);
        credit.sent(60);
        assert_eq!(credit.free(), 40);
        credit.update(100, 50);
        assert_eq!(credit.free(), 100);

        let mut credit = Credit {
            received: u32::MAX,
            forwarded: u32::MAX,
            told: u32::MAX,
            ..Credit::default()
        };
        assert!(credit.receive(BUF_ALLOC));
        assert!(!credit.receive(1));
        assert!(credit.forward(BUF_ALLOC));
        assert_eq!(credit.tell(), BUF_ALLOC - 1);
        assert!(credit.receive(BUF_ALLOC));
    }

    #[test]
    fn a_peer_that_took_more_than_it_got_has_no_credit() {
        let mut credit = Credit::default();
        credit.update(1000, 1);
        assert_eq!(credit.free(), 0);
    }

    #[test]
    fn a_peer_that_shrinks_its_buffer_stops_us() {
        let mut credit = Credit::default();
        credit.update(1000, 0);
        credit.sent(500);
        credit.update(100, 0);
        assert_eq!(credit.free(), 0);
    }

    #[test]
    fn the_peer_is_told_after_a_quarter_of_the_buffer() {
        let mut credit = Credit::default();
        assert!(credit.receive(UPDATE_AFTER));
        assert!(!credit.forward(UPDATE_AFTER - 1));
        assert!(credit.forward(1));
        let _ = credit.tell();
        assert!(!credit.forward(0));
    }
}
