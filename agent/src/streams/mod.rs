//! Stdio streams: raw connections of the host, one for each descriptor of a
//! process.
//!
//! The host opens a stream before the request that names it. In between the
//! stream waits in a [`StreamTable`], which is bounded in number and in time.

mod accept;
mod copy;
mod table;

pub(crate) use accept::accept_streams;
pub(crate) use copy::{PipeOrTerminal, feed, open_ends, relay};
pub(crate) use table::{StreamError, StreamTable};
