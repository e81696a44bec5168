//! The `larder` command.
mod config;
fn main() {}
