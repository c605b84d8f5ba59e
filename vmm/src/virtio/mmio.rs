//! virtio-mmio.
