//! What keeps a monitor that its guest has taken over from doing harm.

pub mod seccomp;
