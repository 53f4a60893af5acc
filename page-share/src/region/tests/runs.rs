//! Runs of pages.

use crate::region::kernel::thread_cpu;
use crate::{Gfn, PageRun};

/// A pass over a guest of 1 TiB plans 524288 of them under the engine lock.
#[test]
fn pieces_of_a_run_cost_the_same_whatever_their_size() {
    let cost_of_64 = |most: u32| {
        let before = thread_cpu();
        let run = PageRun::new(Gfn::new(0), 64 * most);
        assert!(run.pieces(most).all(|piece| piece.count == most));
        thread_cpu() - before
    };
    cost_of_64(1);
    assert!(cost_of_64(1 << 18) < cost_of_64(1) * 1000);
}
