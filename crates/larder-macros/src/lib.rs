//! The `#[cached]` attribute of larder.
