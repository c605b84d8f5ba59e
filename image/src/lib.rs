//! Container images: found, verified, unpacked and cached.
//!
//! An image comes from a layout, an archive or a registry ([`source`]). Its layers are
//! unpacked once into a cache ([`cache`]), each with the digests that the image names
//! checked on the way ([`unpack`]). A container gets an overlay of them with a layer of
//! its own on top ([`overlay`]), and its process from the image's configuration
//! ([`process`]). All that is in an image is taken as written by somebody hostile.

pub mod cache;
mod digest;
mod error;
mod gate;
pub mod overlay;
mod prepare;
mod process;
pub mod progress;
pub mod reference;
mod remove;
mod root;
pub mod run_dir;
pub mod signature;
mod source;
mod spec;
mod stop_signal;
mod unpack;
mod users;

pub use self::error::ImageError;
pub use self::prepare::{Options, Prepared, Pull, prepare};
pub use self::reference::ImageReference;
pub use self::spec::{Settings, specification};
pub use self::stop_signal::stop_signal;
