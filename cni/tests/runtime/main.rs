//! What the library promises, seen through plugins that are shell scripts.

#![allow(
    clippy::unwrap_used,
    reason = "the exemption for tests does not reach helpers of an integration test"
)]

mod add;
mod cached;
mod check;
mod collect;
mod delete;
mod failures;
mod status;
mod world;
