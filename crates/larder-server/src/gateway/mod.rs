//! What an OpenAI-compatible API says, as far as a cache in front of it has to understand it: what a request is
//! ([`identity`]), what it asks of the cache ([`controls`]), which replies are whole answers ([`answer`],
//! [`assemble`]), and how a kept one is said again ([`replay`]). Nothing here sends, receives or keeps anything.

mod answer;
mod assemble;
mod canonical;
mod controls;
mod identity;
mod replay;
mod sse;
