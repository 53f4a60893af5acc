//! Memory full of a seeded pattern, held and checked. Equal parameters give equal pages in every guest.

use std::time::Duration;

use levy_agent::Fill;

use super::pages::{Pages, count_of};
use super::pattern::{check, fill, key};
use super::run::{Outcome, Run};

pub(super) fn run(parameters: &Fill, run: &mut Run) -> Outcome {
    let count = count_of(parameters.mib)?;
    let mut pages = Pages::new(count);
    let going = run.begin_work();
    for index in 0..count {
        if let Some(key) = key_of(parameters, index as u64) {
            fill(pages.page_mut(index), key);
        }
        run.tick(index as u64);
        if going.stopped() {
            return Err("stopped while filling".to_owned());
        }
    }
    let mut done = run.done(count as u64, "pages filled");
    run.stats(
        "filled",
        [("pages", count.into()), ("mib", parameters.mib.into())],
    );
    // The hold is counted from here, so that filling slowly does not shorten it.
    let going = run.begin_work();
    while going.on() {
        match parameters.check_every {
            0 => going.sleep(Duration::from_millis(500)),
            seconds => {
                going.sleep(Duration::from_secs(seconds));
                verify(parameters, &pages)?;
            }
        }
        run.tick(count as u64);
    }
    verify(parameters, &pages)?;
    done.detail = "every byte checked".to_owned();
    Ok(done)
}

/// The key of a page's pattern; `None` is a page of zeros.
fn key_of(parameters: &Fill, index: u64) -> Option<u64> {
    // A hash, so that zero pages are spread out; the same ones in every guest with this seed.
    let zero = key(parameters.seed, index, 1) % 100 < parameters.zero_percent;
    let number = if parameters.distinct == 0 {
        index
    } else {
        index % parameters.distinct
    };
    (!zero).then(|| key(parameters.seed, number, 0))
}

fn verify(parameters: &Fill, pages: &Pages) -> Result<(), String> {
    for index in 0..pages.count() {
        let page = pages.page(index);
        let checked = match key_of(parameters, index as u64) {
            Some(key) => check(page, key),
            None => match page.iter().position(|byte| *byte != 0) {
                Some(at) => Err(format!("byte {at}: {:#04x} instead of 0", page[at])),
                None => Ok(()),
            },
        };
        checked.map_err(|error| format!("page {index}: {error}"))?;
    }
    Ok(())
}
