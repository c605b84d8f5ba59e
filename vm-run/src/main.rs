//! Runs OCI bundles in micro-VMs.
fn main() {}
