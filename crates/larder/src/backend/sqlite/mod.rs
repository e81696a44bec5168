//! stub
/// stub
#[derive(Debug)]
pub struct SqliteBackend;
/// stub
#[derive(Debug)]
pub struct SqliteOptions;
/// stub
#[derive(Debug)]
pub enum Durability {}
