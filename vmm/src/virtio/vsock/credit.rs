//! Flow control of one connection (virtio 1.2, section 5.10.6.3).
//!
//! Each side announces in every header the size of its buffer and how many
//! bytes have left it since the connection began; the other side may have at
//! most a buffer's size of bytes on the way. All counters wrap around.

/// Size in bytes of the buffer for what a guest sends on one connection: four of
/// the largest packets, so that the guest fills one half while the other drains.
/// It exists only while the reader on the host is slower than the guest.
pub(super) const BUF_ALLOC: u32 = 256 * 1024;

/// The guest hears of freed space when half of the buffer can be announced.
const UPDATE_THRESHOLD: u32 = BUF_ALLOC / 2;

/// The counters of both directions.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Bytes received from the guest.
    received: u32,
    /// Bytes of them that have left our buffer.
    forwarded: u32,
    /// The value of `forwarded` that the guest has been told last.
    announced: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// Size of the guest's buffer.
    guest_buf_alloc: u32,
    /// Bytes that have left the guest's buffer.
    guest_forwarded: u32,
}

impl Credit {
    /// What the guest announces in a header.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_buf_alloc = buf_alloc;
        self.guest_forwarded = fwd_cnt;
    }

    /// What we announce, for a header that is about to be sent.
    pub(super) fn announce(&mut self) -> u32 {
        self.announced = self.forwarded;
        self.announced
    }

    /// Counts bytes from the guest; `false` when it had no credit for them.
    pub(super) fn receive(&mut self, count: u32) -> bool {
        let on_the_way = self.received.wrapping_sub(self.announced);
        let allowed = count <= BUF_ALLOC.saturating_sub(on_the_way);
        if allowed {
            self.received = self.received.wrapping_add(count);
        }
        allowed
    }

    /// Counts received bytes that have left our buffer.
    pub(super) fn forward(&mut self, count: usize) {
        // No buffer is as large as 4 GiB.
        self.forwarded = self
            .forwarded
            .wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// So much has been freed since the guest last heard that it should hear.
    pub(super) fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.announced) >= UPDATE_THRESHOLD
    }

    /// Bytes that the guest's buffer can take.
    pub(super) fn available(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buf_alloc.saturating_sub(on_the_way)
    }

    /// Counts bytes sent to the guest.
    pub(super) fn send(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_may_fill_the_buffer_and_no_more() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUF_ALLOC));
        assert!(!credit.receive(1));
    }

    #[test]
    fn freed_space_is_credit_only_once_it_is_announced() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUF_ALLOC));
        credit.forward(4096);
        assert!(!credit.receive(1));
        assert_eq!(credit.announce(), 4096);
        assert!(credit.receive(4096));
        assert!(!credit.receive(1));
    }

    #[test]
    fn an_update_is_due_when_half_of_the_buffer_is_free_again() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUF_ALLOC));
        credit.forward(BUF_ALLOC as usize / 2 - 1);
        assert!(!credit.update_due());
        credit.forward(1);
        assert!(credit.update_due());
        credit.announce();
        assert!(!credit.update_due());
    }

    #[test]
    fn the_guests_buffer_bounds_what_is_sent() {
        let mut credit = Credit::default();
        assert_eq!(credit.available(), 0);
        credit.update(1000, 0);
        credit.send(600);
        assert_eq!(credit.available(), 400);
        credit.update(1000, 500);
        assert_eq!(credit.available(), 900);
        credit.update(10, 500);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn counters_wrap_around() {
        let mut credit = Credit {
            received: u32::MAX - 10,
            forwarded: u32::MAX - 10,
            announced: u32::MAX - 10,
            sent: u32::MAX - 10,
            guest_forwarded: u32::MAX - 20,
            guest_buf_alloc: 100,
        };
        assert_eq!(credit.available(), 90);
        credit.send(50);
        assert_eq!(credit.available(), 40);
        assert!(credit.receive(100));
        credit.forward(100);
        assert_eq!(credit.announce(), 89);
    }

    #[test]
    fn a_guest_that_claims_nonsense_gets_nothing() {
        let mut credit = Credit::default();
        credit.update(1000, 5);
        assert_eq!(credit.available(), 0, "more forwarded than was sent");
    }
}
