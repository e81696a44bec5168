//! stub
/// stub
#[derive(Debug)]
pub struct MemoryBackend;
/// stub
#[derive(Debug)]
pub struct MemoryOptions;
