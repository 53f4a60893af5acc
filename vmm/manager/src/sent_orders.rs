//! What guests were told last: they are not told the same again every moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allocator::GuestId;

use levy_protocol::link::Orders;

/// A guest hears of its orders at least so often.
const REPEAT: Duration = Duration::from_millis(950);

/// What each guest was told last, and when.
#[derive(Debug, Default)]
pub(super) struct SentOrders(BTreeMap<GuestId, (Instant, Orders)>);

impl SentOrders {
    /// Whether `orders` say something that `id` should hear now rather than within a second.
    pub(super) fn is_news(&self, now: Instant, id: GuestId, orders: &Orders) -> bool {
        let Some((when, before)) = self.0.get(&id) else {
            return true;
        };
        let limit = |orders: &Orders| orders.limit_bytes.unwrap_or(u64::MAX);
        let moved = limit(before).abs_diff(limit(orders));
        now.saturating_duration_since(*when) >= REPEAT
            || orders.compress_pages > 0
            || orders.swap_pages > 0
            || orders.split_blocks > 0
            || orders.balloon_pages != before.balloon_pages
            || moved > limit(before) / 128
    }

    pub(super) fn sent(&mut self, now: Instant, id: GuestId, orders: Orders) {
        self.0.insert(id, (now, orders));
    }

    pub(super) fn forget(&mut self, id: GuestId) {
        self.0.remove(&id);
    }
}
