//! How fast a balloon brings memory.

use std::time::Duration;

use crate::Pages;
use crate::balloon_watch::BalloonWatch;

/// A balloon is measured over windows of this length: drivers poll once a second.
const WINDOW: Duration = Duration::from_secs(1);

/// A balloon that was just asked for more is expected to bring all of it for this long.
const GRACE: Duration = Duration::from_secs(2);

/// Measures what a balloon brings while it is behind what was asked, so that only as much is waited for.
///
/// A driver may report any size, so its word alone brings nothing: of its progress only that part counts by which its
/// guest came to hold less in the same time.
///
/// ```
/// use std::time::Duration;
/// use allocator::{BalloonPace, Pages};
/// let (second, asked) = (Duration::from_secs(1), Pages::new(50_000));
/// let mut pace = BalloonPace::default();
/// assert_eq!(pace.within(asked, second), asked); // Nothing is known of it yet.
/// for size in 0..4 {
///     // A page a second.
///     pace.observe(asked, Pages::new(size), Pages::new(90_000 - size), second);
/// }
/// assert_eq!(pace.within(asked, second), Pages::new(1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BalloonPace {
    /// How long it has been behind.
    behind: Duration,
    window: Duration,
    /// The balloon's size and what its guest held when the window began.
    mark: Option<(Pages, Pages)>,
    /// Pages a second in the last window, once it has been behind for longer than the grace.
    rate: Option<f64>,
}

impl BalloonPace {
    /// Takes in what was `asked`, the balloon's `size` and what its guest `held` by the host's own count, `elapsed` after
    /// the last time. A balloon within [`BalloonWatch::SLACK`] of what was asked is not behind, and is measured anew when
    /// it is asked for more.
    pub fn observe(&mut self, asked: Pages, size: Pages, held: Pages, elapsed: Duration) {
        if asked.less(size) <= BalloonWatch::SLACK {
            *self = Self {
                mark: Some((size, held)),
                ..Self::default()
            };
            return;
        }
        let (size_before, held_before) = *self.mark.get_or_insert((size, held));
        self.behind = self.behind.saturating_add(elapsed);
        self.window = self.window.saturating_add(elapsed);
        if self.window < WINDOW {
            return;
        }
        let brought = size.less(size_before).min(held_before.less(held));
        if self.behind > GRACE {
            self.rate = Some(brought.get() as f64 / self.window.as_secs_f64());
        }
        (self.mark, self.window) = (Some((size, held)), Duration::ZERO);
    }

    /// How many of `pages` the balloon brings `within` so much time: all of them until its pace is known.
    #[must_use]
    pub fn within(&self, pages: Pages, within: Duration) -> Pages {
        match self.rate {
            None => pages,
            Some(rate) => pages.min(Pages::new((rate * within.as_secs_f64()) as u64)),
        }
    }
}
