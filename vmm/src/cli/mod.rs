//! The commands of `levy`, as they are typed.

mod asking;
mod host;
mod ls;
mod run;
mod set;
mod stop;
mod table;
mod vmm;

pub use host::HostArgs;
pub use ls::{LsArgs, StatsArgs};
pub use run::RunArgs;
pub use set::SetArgs;
pub use stop::{PauseArgs, ResumeArgs, StopArgs};
pub use vmm::VmmArgs;
