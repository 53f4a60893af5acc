//! The manager against a model of its host, and what single events lead to.

mod day;
mod guest;
mod random;
mod single;
mod world;
