//! A caching gateway in front of an OpenAI-compatible API.
//!
//! [`serve`] is the way of a request. What it needs to understand is apart from it and sends, receives and keeps
//! nothing: what a request is ([`identity`], from [`canonical`] bytes), what it asks of the cache ([`controls`]),
//! which replies are whole answers ([`answer`], [`assemble`] from [`sse`]), how a kept one is said again
//! ([`replay`]). [`live`] is a reply for all who wait for it, [`upstream`] the API, [`reply`] what clients hear.

mod answer;
mod assemble;
mod canonical;
mod controls;
mod identity;
mod live;
mod replay;
mod reply;
mod serve;
mod sse;
mod upstream;

pub(crate) use identity::{Endpoint, OF_THE_CALLER};
pub(crate) use reply::refusal;
pub(crate) use serve::{Counters, Gateway};
