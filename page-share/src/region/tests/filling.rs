//! Pages that are filled, and a kernel that has no room for them yet.

use rustix::io::Errno;

use super::small_region;
use crate::{Gfn, Options, PageRun};

#[test]
fn what_the_kernel_has_no_room_for_is_asked_for_again_and_counted_once() {
    let (_memory, region) = small_region(Options::default());
    let span = region.guest.span(PageRun::new(Gfn::new(0), 1));
    let mut tries = 0;
    region.guest.insist("map", span, || {
        tries += 1;
        match tries {
            1..4 => Err(Errno::NOMEM),
            _ => Ok(()),
        }
    });
    assert_eq!((tries, region.stats().mapping_failures), (4, 1));
}
