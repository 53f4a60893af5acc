//! One manager after the other.

use crate::page::{Gfn, PAGE_SIZE};
use crate::port::Report;
use crate::{AnonymousMemory, Domain, LocalManager, Options, Region};

#[test]
fn what_was_named_under_one_key_is_not_told_to_a_manager_with_another() {
    let [first, second] = [1, 2].map(|_| LocalManager::new(Domain::new(1 << 10).unwrap()));
    let memory = AnonymousMemory::new(64).unwrap();
    memory.write_page(5, &[5; PAGE_SIZE]);
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    region.connect(Box::new(first.attach(64).unwrap())).unwrap();
    let mut scanner = region.scanner();
    let report = Report {
        gfn: Gfn::new(5),
        sketch: scanner.hasher.sketch(&[5; PAGE_SIZE]),
    };
    scanner.scanned.reports.push(report);
    scanner.wanted.push(report);
    scanner
        .connect(&region.engine, Box::new(second.attach(64).unwrap()))
        .unwrap();
    scanner.flush(&region.engine);
    drop(scanner);
    let counters = second.with(|domain| domain.counters()).unwrap();
    assert_eq!((counters.reports, counters.refused_mismatch), (0, 0));
}
