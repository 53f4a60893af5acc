//! A manager over its real sockets: what guests' processes, its API's clients and the commands see of it.

mod api;
mod commands;
mod groups;
mod harness;
mod intruders;
mod levy_host;
mod manager;
mod unwritable;
