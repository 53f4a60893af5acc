//! Eight guests in memory for four: does the budget hold, and do the guests?
mod ledger;

pub use ledger::{Ledger, figure};
