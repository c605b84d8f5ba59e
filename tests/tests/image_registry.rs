//! Containers of images in a registry: pulled when they have to be, and only when signed as the
//! caller wants.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use nacre_tests::image::{Layout, busybox};
use nacre_tests::registry::Registry;
use nacre_tests::{Clean, Ended, Running, VmRun, sh};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A registry, and images to put there.
struct TestRegistry {
    registry: Registry,
    dir: TempDir,
    layout: Layout,
    programs: Value,
}

impl TestRegistry {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("layout"));
        let programs = layout.layer(busybox);
        Self {
            registry: Registry::start(),
            dir,
            layout,
            programs,
        }
    }

    /// Puts an image that says `greeting` there; returns its digest.
    fn push(&self, name: &str, greeting: &str, options: &str) -> String {
        let entry = self.layout.image("it", &[&self.programs], &says(greeting));
        self.layout.write_index(&[entry]);
        self.registry.push(self.layout.path(), "it", name, options)
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn run(&self, options: &[&str], name: &str) -> Ended {
        let name = self.registry.name(name);
        let arguments = [options, &[name.as_str()]].concat();
        Running::to_the_end(VmRun::image(&self.cache(), &arguments))
    }
}

fn says(greeting: &str) -> Value {
    json!({ "Env": ["PATH=/bin"], "Cmd": ["echo", greeting] })
}

#[test]
fn an_image_is_pulled_when_it_is_missing_or_when_that_is_wanted() {
    let _clean = Clean::slate();
    let mut test = TestRegistry::new();
    test.push("a/b:1", "first", "");
    let ended = test.run(&["--pull=never"], "a/b:1").expect_code(1);
    assert!(ended.stderr.contains("--pull=never forbids"), "{ended}");
    let ended = test.run(&[], "a/b:1").expect_code(0);
    ended.assert_line("first");
    assert!(ended.stderr.contains("pulling"), "{ended}");

    test.push("a/b:1", "second", "");
    let ended = test.run(&[], "a/b:1").expect_code(0);
    ended.assert_line("first");
    let ended = test.run(&["--pull=always"], "a/b:1").expect_code(0);
    ended.assert_line("second");
    assert!(
        !ended.stderr.contains("unpacking"),
        "the same layer: {ended}"
    );

    let ended = test.run(&[], "a/b:2").expect_code(1);
    assert!(ended.stderr.contains("a/b:2"), "{ended}");
    // Without the registry there is what was pulled.
    test.registry.stop();
    test.run(&["--pull=never"], "a/b:1")
        .expect_code(0)
        .assert_line("second");
    let ended = test.run(&["--pull=always"], "a/b:1").expect_code(1);
    assert!(ended.stderr.contains("a/b:1"), "{ended}");
}

#[test]
fn layers_may_be_compressed_in_either_way() {
    let _clean = Clean::slate();
    let test = TestRegistry::new();
    for format in ["gzip", "zstd"] {
        let option = format!("--format oci --dest-compress-format {format}");
        test.push(&format!("it:{format}"), format, &option);
        let cache = test.cache();
        test.run(&[], &format!("it:{format}"))
            .expect_code(0)
            .assert_line(format);
        fs::remove_dir_all(cache).unwrap();
    }
}

#[test]
fn of_an_index_the_image_for_this_machine_is_run() {
    let _clean = Clean::slate();
    let test = TestRegistry::new();
    let images: Vec<_> = ["arm64", "amd64", "s390x"]
        .iter()
        .map(|architecture| {
            let layers = [&test.programs];
            let layout = &test.layout;
            layout.image_for(architecture, "it", &layers, &says(architecture))
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": images });
    let mut entry = test.layout.add_json(media_type, &index);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "all" });
    test.layout.write_index(&[entry]);
    let layout = test.layout.path();
    let digest = test
        .registry
        .push(layout, "all", "it:1", "--all --preserve-digests");
    test.run(&[], "it:1").expect_code(0).assert_line("amd64");
    let by_digest = format!("it@{digest}");
    test.run(&[], &by_digest)
        .expect_code(0)
        .assert_line("amd64");
}

/// A pair of keys, and what is signed with it.
struct Signer {
    dir: TempDir,
}

impl Signer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        sh(&format!(
            "cd {} && openssl ecparam -name prime256v1 -genkey -noout -out key && \
             openssl ec -in key -pubout -out key.pub 2>/dev/null",
            dir.path().display()
        ));
        Self { dir }
    }

    /// For the command line.
    fn option(&self) -> String {
        format!("--verify-key={}", self.dir.path().join("key.pub").display())
    }

    /// Puts a signature of `of` there, as that of `image`.
    fn sign(&self, test: &TestRegistry, name: &str, of: &str, image: &str) {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": name },
                "image": { "docker-manifest-digest": of },
                "type": "cosign container image signature"
            },
            "optional": null
        });
        let file = self.dir.path().join("payload");
        fs::write(&file, payload.to_string()).unwrap();
        let signature = sh(&format!(
            "cd {} && openssl dgst -sha256 -sign key payload | base64 -w 0",
            self.dir.path().display()
        ));
        let layout = &test.layout;
        let mut layer = layout.add("application/vnd.dev.cosign.simplesigning.v1+json", &file);
        layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": signature.trim() });
        let diff_ids = [&layer["digest"]];
        let config = layout.add_json(
            "application/vnd.oci.image.config.v1+json",
            &json!({ "architecture": "", "os": "", "config": {},
                "rootfs": { "type": "layers", "diff_ids": diff_ids } }),
        );
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config,
            "layers": [layer] });
        let mut entry = layout.add_json(media_type, &manifest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "signature" });
        layout.write_index(&[entry]);
        let tag = format!("{}:{}.sig", name, image.replace(':', "-"));
        test.registry
            .push(layout.path(), "signature", &tag, "--preserve-digests");
    }
}

#[test]
fn a_signature_that_is_asked_for_must_hold() {
    let _clean = Clean::slate();
    let test = TestRegistry::new();
    let (signer, other) = (Signer::new(), Signer::new());
    let digest = test.push("it:1", "signed", "");
    let refused = |reason: &str| {
        let ended = test.run(&[&signer.option()], "it:1").expect_code(1);
        assert!(ended.stderr.contains(reason), "{ended}");
        assert!(!ended.stderr.contains("unpacking"), "{ended}");
    };
    refused("is not signed");
    other.sign(&test, "it", &digest, &digest);
    refused("none of its signatures");
    // By the right key, of another image.
    let another = format!("sha256:{}", "0".repeat(64));
    signer.sign(&test, "it", &another, &digest);
    refused("none of its signatures");
    signer.sign(&test, "it", &digest, &digest);
    test.run(&[&signer.option()], "it:1")
        .expect_code(0)
        .assert_line("signed");
    let ended = test.run(&[&other.option()], "it:1").expect_code(1);
    assert!(ended.stderr.contains("none of its signatures"), "{ended}");
}
