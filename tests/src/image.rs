//! Images for tests: BusyBox in the OCI image layout, the same bytes each time, made
//! without a registry.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{noise, sh};

/// BusyBox with all its applets, in two layers; `/noise` of the upper one is
/// [`NOISE`] bytes of [`noise`].
pub const BUSYBOX: &str = "nacre.test/busybox:1";

/// What a pod's sandbox container runs where an engine needs one: it sleeps.
pub const PAUSE: &str = "nacre.test/pause:1";

/// Size of `/noise`, in bytes.
pub const NOISE: usize = 8 << 20;

/// Makes an archive with all images below `dir` and returns its path.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn archive(dir: &Path) -> PathBuf {
    let layout = Layout::new(&dir.join("layout"));
    let programs = layout.layer(busybox);
    let data = layout.layer(|root| {
        fs::write(root.join("noise"), noise(NOISE)).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/greeting"), "of the upper layer\n").unwrap();
    });
    let forever = json!(["busybox", "sleep", "1000000000"]);
    let config = |command| json!({ "Env": ["PATH=/bin"], "Cmd": command });
    let images = [
        layout.image(BUSYBOX, &[&programs, &data], &config(json!(["sh"]))),
        layout.image(PAUSE, &[&programs], &config(forever)),
    ];
    layout.write_index(&images);
    layout.pack()
}

/// Fills a root with BusyBox and all its applets.
///
/// # Panics
/// When that fails.
pub fn busybox(root: &Path) {
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("BusyBox of the test host");
    for applet in sh("busybox --list")
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    fs::write(root.join("etc/greeting"), "of the lower layer\n").unwrap();
}

/// A directory in the form of the [image layout].
///
/// [image layout]: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes an empty one in `dir`.
    ///
    /// # Panics
    /// When that fails, as all below.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(
            dir.join("oci-layout"),
            json!({ "imageLayoutVersion": "1.0.0" }).to_string(),
        )
        .unwrap();
        Self { dir: dir.into() }
    }

    /// Adds a layer of what `fill` puts into an empty directory; returns its descriptor.
    pub fn layer(&self, fill: impl FnOnce(&Path)) -> Value {
        let root = self.dir.with_extension("layer");
        fs::create_dir(&root).unwrap();
        fill(&root);
        let tar = self.dir.with_extension("layer.tar");
        // Nothing of this machine gets in: neither order nor times nor owners.
        sh(&format!(
            "tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go-w \
             -C {} -cf {} .",
            root.display(),
            tar.display()
        ));
        fs::remove_dir_all(&root).unwrap();
        self.add("application/vnd.oci.image.layer.v1.tar", &tar)
    }

    /// Adds an image's configuration and manifest; returns the entry of the index.
    #[must_use]
    pub fn image(&self, name: &str, layers: &[&Value], config: &Value) -> Value {
        self.image_for("amd64", name, layers, config)
    }

    /// Adds an image for machines of that kind, as [`Layout::image`].
    #[must_use]
    pub fn image_for(
        &self,
        architecture: &str,
        name: &str,
        layers: &[&Value],
        config: &Value,
    ) -> Value {
        let digests: Vec<_> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = self.add_json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": architecture, "os": "linux", "config": config,
                "rootfs": { "type": "layers", "diff_ids": digests }
            }),
        );
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers
        });
        let mut entry = self.add_json(media_type, &manifest);
        entry["annotations"] = json!({
            "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name
        });
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    }

    /// Adds a manifest or another document; returns its descriptor.
    #[must_use]
    pub fn add_json(&self, media_type: &str, value: &Value) -> Value {
        let path = self.dir.with_extension("json");
        fs::write(&path, value.to_string()).unwrap();
        self.add(media_type, &path)
    }

    /// Moves a file to the blobs; returns its descriptor.
    #[must_use]
    pub fn add(&self, media_type: &str, path: &Path) -> Value {
        let sum = sh(&format!("sha256sum {}", path.display()));
        let digest = sum.split_whitespace().next().unwrap();
        let size = fs::metadata(path).unwrap().len();
        fs::rename(path, self.dir.join("blobs/sha256").join(digest)).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
    }

    /// Where a blob is.
    #[must_use]
    pub fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// Says which images there are.
    pub fn write_index(&self, images: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": images });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Makes an archive of it, and removes it.
    #[must_use]
    pub fn pack(self) -> PathBuf {
        let archive = self.dir.with_extension("tar");
        sh(&format!(
            "tar -C {} -cf {} .",
            self.dir.display(),
            archive.display()
        ));
        fs::remove_dir_all(&self.dir).unwrap();
        archive
    }
}
