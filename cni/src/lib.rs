//! The runtime side of the Container Network Interface.
//!
//! Nothing needs it yet: `pod` wires a network namespace that somebody else made.
