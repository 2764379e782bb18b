//! A node's ways out, with a scripted network instead of the host's.

mod connections;
mod datagrams;
mod guest;
mod hostile;
mod names;
mod world;
