//! What ends a process, or fails at every access, because going on would corrupt its guest.
#![allow(unsafe_code)]
// UNSAFETY: one test replaces a descriptor behind the handler's back.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;

use super::{in_child, page, small_region};
use crate::{Gfn, Options, PAGE_SIZE, PageRun, State, StoreHandle};

#[test]
fn a_handler_that_dies_takes_the_process_with_it() {
    let status = in_child("dying::a_handler_that_dies_takes_the_process_with_it", || {
        let (memory, region) = small_region(Options {
            store_bytes: 1 << 20,
            ..Options::default()
        });
        assert!(region.compress(PageRun::new(Gfn::new(0), 10)) > 0);
        // Held open, or the kernel itself would show zeros.
        let _watch = region.guest.event_sources()[0]
            .as_fd()
            .try_clone_to_owned()
            .unwrap();
        let nothing = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: only makes the handler's descriptor useless.
        unsafe {
            libc::dup2(
                nothing.as_raw_fd(),
                region.guest.event_sources()[0].as_fd().as_raw_fd(),
            )
        };
        region.handler.ring();
        memory.read_page(0);
        println!("the handler lives on");
        std::process::exit(0);
    });
    assert!(
        status.is_none_or(|status| status.signal() == Some(libc::SIGABRT)),
        "{status:?}"
    );
}

#[test]
fn a_page_that_is_there_already_is_never_overwritten() {
    let status = in_child("dying::a_page_that_is_there_already_is_never_overwritten", || {
        let (_memory, region) = small_region(Options {
            store_bytes: 1 << 20,
            ..Options::default()
        });
        let run = PageRun::new(Gfn::new(0), 1);
        assert_eq!(region.compress(run), 1);
        assert_eq!(region.bring_back(run), 1);
        // The table lies: the page is present, but said to be in the store.
        assert_eq!(region.compress(PageRun::new(Gfn::new(1), 1)), 1);
        let table = region.guest.table();
        let claim = table.claim(Gfn::new(0), State::Private).unwrap();
        let handle: StoreHandle = table.located(Gfn::new(1)).unwrap();
        table.set_location(&claim, Gfn::new(0), handle);
        table.settle(claim, State::Compressed);
        region.bring_back(run);
        println!("the page was filled twice");
    });
    assert!(
        status.is_none_or(|status| status.signal() == Some(libc::SIGABRT)),
        "{status:?}"
    );
}

#[test]
fn a_compressed_page_that_is_damaged_fails_like_broken_memory_and_is_never_wrong() {
    let name = "dying::a_compressed_page_that_is_damaged_fails_like_broken_memory_and_is_never_wrong";
    let status = in_child(name, || {
        let (memory, region) = small_region(Options {
            store_bytes: 8 << 20,
            ..Options::default()
        });
        // A seventh of a page is content, so that it compresses.
        let content = |at: u64| std::array::from_fn(|byte| if byte < 600 { page(at)[byte] } else { 0 });
        (0..64).for_each(|at| memory.write_page(at, &content(u64::from(at))));
        assert_eq!(region.compress(PageRun::new(Gfn::new(0), 64)), 64);
        for at in [5, 20, 40] {
            region.cold.damage(Gfn::new(at), 300);
        }
        // Neighbours, on its way and when they are brought back, are none the worse for it.
        assert!((0..16).all(|at| at == 5 || memory.read_page(at) == content(u64::from(at))));
        assert_eq!(
            region.state(Gfn::new(5)),
            State::Compressed,
            "nobody asked for it"
        );
        assert_eq!(region.bring_back(PageRun::new(Gfn::new(16), 16)), 15);
        assert!((16..32).all(|at| at == 20 || memory.read_page(at) == content(u64::from(at))));
        assert_eq!((region.stats().lost, region.stats().pages_lost), (1, 1));
        // A guest that gives a damaged page up gets a good one.
        region.release(PageRun::new(Gfn::new(20), 1), crate::Release::Report);
        assert!(memory.read_page(20) == [0; PAGE_SIZE]);
        region.release(PageRun::new(Gfn::new(5), 1), crate::Release::Report);
        assert!(memory.read_page(5) == [0; PAGE_SIZE]);
        println!("now the fault");
        memory.read_page(40);
        println!("a damaged page was read");
        std::process::exit(0);
    });
    assert!(
        status.is_none_or(|status| status.signal() == Some(libc::SIGBUS)),
        "{status:?}"
    );
}
