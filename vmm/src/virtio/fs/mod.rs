//! virtio-fs.
