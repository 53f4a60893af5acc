//! Pages kept compressed in memory.
