//! `containerd-shim-nacre-v2`: containerd's Task and Sandbox API on top of `pod`.
//!
//! Nothing lives here yet; `vm-run` is the front door.
