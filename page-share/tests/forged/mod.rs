//! The parts of the model: what is sent, who sends it, and the world that they are in.

pub(crate) mod check;
pub(crate) mod contents;
pub(crate) mod dice;
pub(crate) mod guest;
pub(crate) mod hostile;
pub(crate) mod step;
pub(crate) mod wire;
pub(crate) mod world;
