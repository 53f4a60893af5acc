//! The commands of `levy`, as they are typed.

mod host;
mod run;
mod vmm;

pub use host::HostArgs;
pub use run::RunArgs;
pub use vmm::VmmArgs;
