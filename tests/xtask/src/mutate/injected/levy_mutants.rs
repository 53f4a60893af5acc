//! Which change of this program is switched on. `cargo xtask mutate` puts this file beside the root of a crate, in a
//! copy of the workspace.
#![allow(dead_code, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The variable that names the change: its number, or `reached:FILE`.
const VARIABLE: &str = "LEVY_MUTANT";

/// Nothing was looked up yet.
const UNASKED: u32 = u32::MAX;
/// No change; the places that are reached are written down.
const RECORDING: u32 = u32::MAX - 1;
/// No change.
const NONE: u32 = u32::MAX - 2;

static CHOSEN: AtomicU32 = AtomicU32::new(UNASKED);
static REACHED: [AtomicBool; POINTS] = [const { AtomicBool::new(false) }; POINTS];
static LIST: OnceLock<Option<File>> = OnceLock::new();

/// Whether `point` is the one that is changed. Called everywhere and all the time, so short.
#[inline(always)]
pub(crate) fn is(point: u32) -> bool {
    let chosen = CHOSEN.load(Ordering::Relaxed);
    chosen == point || (chosen > NONE && look_up(point))
}

/// The first call of all, and every call of a run that records.
#[cold]
fn look_up(point: u32) -> bool {
    if CHOSEN.load(Ordering::Relaxed) == UNASKED {
        ask();
        return is(point);
    }
    reached(point);
    false
}

fn ask() {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    let chosen = match text.strip_prefix("reached:") {
        Some(path) => {
            let list = File::options().create(true).append(true).open(path).ok();
            let _ = LIST.set(list);
            RECORDING
        }
        None => text.parse().unwrap_or(NONE),
    };
    CHOSEN.store(chosen, Ordering::Relaxed);
}

fn reached(point: u32) {
    // Read first: threads that come by all the time must not fight for the line.
    let known = |known: &AtomicBool| known.load(Ordering::Relaxed) || known.swap(true, Ordering::Relaxed);
    let known = REACHED.get(point as usize).is_none_or(known);
    if !known && let Some(Some(list)) = LIST.get() {
        // One call per line: several processes append to the same file.
        let mut list: &File = list;
        let _ = list.write_all(format!("{point}\n").as_bytes());
    }
}

#[inline]
pub(crate) fn lt<A: PartialOrd<B> + ?Sized, B: ?Sized>(point: u32, a: &A, b: &B) -> bool {
    if is(point) { a <= b } else { a < b }
}

#[inline]
pub(crate) fn le<A: PartialOrd<B> + ?Sized, B: ?Sized>(point: u32, a: &A, b: &B) -> bool {
    if is(point) { a < b } else { a <= b }
}

#[inline]
pub(crate) fn gt<A: PartialOrd<B> + ?Sized, B: ?Sized>(point: u32, a: &A, b: &B) -> bool {
    if is(point) { a >= b } else { a > b }
}

#[inline]
pub(crate) fn ge<A: PartialOrd<B> + ?Sized, B: ?Sized>(point: u32, a: &A, b: &B) -> bool {
    if is(point) { a > b } else { a >= b }
}

#[inline]
pub(crate) fn eq<A: PartialEq<B> + ?Sized, B: ?Sized>(point: u32, a: &A, b: &B) -> bool {
    if is(point) { a != b } else { a == b }
}

#[inline]
pub(crate) fn ne<A: PartialEq<B> + ?Sized, B: ?Sized>(point: u32, a: &A, b: &B) -> bool {
    if is(point) { a == b } else { a != b }
}

/// An integer that can be one off.
pub(crate) trait Integer {
    fn more(self) -> Self;
    fn less(self) -> Self;
}

macro_rules! integers {
    ($($integer:ty),+) => {
        $(impl Integer for $integer {
            fn more(self) -> Self { self.wrapping_add(1) }
            fn less(self) -> Self { self.wrapping_sub(1) }
        })+
    };
}

integers!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

#[inline]
pub(crate) fn more<T: Integer>(point: u32, value: T) -> T {
    if is(point) { value.more() } else { value }
}

#[inline]
pub(crate) fn less<T: Integer>(point: u32, value: T) -> T {
    if is(point) { value.less() } else { value }
}
