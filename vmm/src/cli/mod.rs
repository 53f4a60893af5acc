//! The commands of `levy`, as they are typed.

mod run;
mod vmm;

pub use run::RunArgs;
pub use vmm::VmmArgs;
