//! The commands of `levy`, as they are typed.

mod asking;
mod bench;
mod fleet_file;
mod host;
mod ls;
mod run;
mod set;
mod setup;
mod stop;
mod table;
mod up;
mod vmm;

pub use bench::BenchArgs;
pub use host::HostArgs;
pub use ls::{LsArgs, StatsArgs};
pub use run::RunArgs;
pub use set::SetArgs;
pub use stop::{PauseArgs, ResumeArgs, StopArgs};
pub use up::{DownArgs, UpArgs};
pub use vmm::VmmArgs;
