//! A manager that gets no further thread refuses what takes one, and serves on.

use std::path::Path;

use simulated::{Guest, GuestOptions, Manager, ThreadLimit, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

#[test]
fn a_manager_without_threads_says_where_to_look_and_serves_on_once_it_has_some() {
    let manager = Manager::start(Path::new(PROGRAM), 256);
    let start = |name: &str| {
        let (dir, options) = (manager.dir().to_owned(), GuestOptions::new(name));
        std::thread::spawn(move || Guest::start(Path::new(PROGRAM), &dir, options)).join()
    };
    let mut first = start("first").expect("a guest that starts");
    first.until("the first guest shares", |status| status.shared > 0);
    let Some(limit) = ThreadLimit::or_skip(manager.view().pid, 0) else {
        return;
    };
    let failed = start("late").expect_err("nothing can serve the pages of this guest");
    let reason = failed.downcast_ref::<String>().map_or("", String::as_str);
    assert!(reason.contains("its log says why"), "{reason}");
    until("the missing thread is counted", || {
        manager.view().doors.starved > 0
    });
    first.assert_right();
    drop(limit);
    let mut late = start("late").expect("a guest that starts");
    late.until("the late guest shares", |status| status.shared > 0);
    late.assert_right();
    first.assert_right();
}
