//! Containers of images that are files: what the image says holds inside, and its layers are
//! unpacked once.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use nacre_tests::image::{Layout, busybox};
use nacre_tests::{Clean, Ended, Running, VmRun, noise, sh, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Prints all that an image's configuration says.
const SCRIPT: &str = r#"echo "user $(id -u):$(id -g) $(id -G)"; echo "cwd $(pwd)"
    echo "env $COLOUR $SIZE"; echo "home $HOME"; echo "args $*"; cat /etc/greeting
    ls /etc/gone 2>&1"#;

fn config() -> Value {
    json!({
        "Env": ["PATH=/bin", "COLOUR=blue", "SIZE=small"],
        "User": "web",
        "WorkingDir": "/made/for/it",
        "Entrypoint": ["sh", "-c", SCRIPT, "name"],
        "Cmd": ["of", "the image"],
        "StopSignal": "SIGUSR1"
    })
}

/// An image of two layers.
struct TestImage {
    dir: TempDir,
    layout: Layout,
    layers: Vec<Value>,
    entry: Value,
}

impl TestImage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("layout"));
        let lower = layout.layer(|root| {
            busybox(root);
            fs::write(
                root.join("etc/passwd"),
                "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:\n",
            )
            .unwrap();
            fs::write(root.join("etc/group"), "web:x:1001:\nlogs:x:1002:web\n").unwrap();
            fs::write(root.join("etc/gone"), "").unwrap();
        });
        let upper = layout.layer(|root| {
            fs::create_dir(root.join("etc")).unwrap();
            fs::write(root.join("etc/greeting"), "of the upper layer\n").unwrap();
            fs::write(root.join("etc/.wh.gone"), "").unwrap();
        });
        let entry = layout.image("test:1", &[&lower, &upper], &config());
        layout.write_index(std::slice::from_ref(&entry));
        Self {
            dir,
            layout,
            layers: vec![lower, upper],
            entry,
        }
    }

    fn path(&self) -> &str {
        self.layout.path().to_str().unwrap()
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Running::to_the_end(VmRun::image(&self.cache(), arguments))
    }
}

/// Names of the layers in a cache; nothing of a run may be left.
fn layers(cache: &Path) -> Vec<String> {
    let names = |dir: &str| -> Vec<_> {
        let entries = fs::read_dir(cache.join(dir)).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| name(entry.unwrap())).collect()
    };
    let runs = names("runs");
    assert!(runs.is_empty(), "left behind: {runs:?}");
    names("layers")
}

fn assert_as_configured(ended: &Ended) {
    for line in [
        "user 1000:1001 1001 1002",
        "cwd /made/for/it",
        "env blue small",
        "home /srv",
        "args of the image",
        "of the upper layer",
    ] {
        ended.assert_line(line);
    }
    assert!(ended.text().contains("/etc/gone: No such file"), "{ended}");
}

#[test]
fn the_configuration_of_an_image_holds_inside() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    assert_as_configured(&image.run(&[image.path()]).expect_code(1));
    assert_eq!(layers(&image.cache()).len(), 2);
}

#[test]
fn a_layout_may_be_in_an_archive() {
    let _clean = Clean::slate();
    let TestImage { dir, layout, .. } = TestImage::new();
    let archive = layout.pack();
    let reference = format!("oci-archive:{}:test:1", archive.display());
    let cache = dir.path().join("cache");
    let ended = Running::to_the_end(VmRun::image(&cache, &[&reference]));
    assert_as_configured(&ended.expect_code(1));
}

#[test]
fn an_archive_of_docker_s_is_run() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    let root = image.dir.path().join("docker");
    fs::create_dir_all(root.join("one")).unwrap();
    fs::create_dir_all(root.join("two")).unwrap();
    let [lower, upper] = &image.layers[..] else {
        panic!("two layers");
    };
    fs::copy(image.layout.blob(lower), root.join("one/layer.tar")).unwrap();
    // Old ones link to layers that are there already.
    fs::copy(image.layout.blob(upper), root.join("two/real.tar")).unwrap();
    std::os::unix::fs::symlink("../two/real.tar", root.join("two/layer.tar")).unwrap();
    let manifest = fs::read(image.layout.blob(&image.entry)).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let config = image.layout.blob(&manifest["config"]);
    let name = format!("{}.json", config.file_name().unwrap().to_str().unwrap());
    fs::copy(&config, root.join(&name)).unwrap();
    let item = json!([{ "Config": name, "RepoTags": ["test:1"],
        "Layers": ["one/layer.tar", "two/layer.tar"] }]);
    fs::write(root.join("manifest.json"), item.to_string()).unwrap();
    let archive = image.dir.path().join("docker.tar");
    sh(&format!(
        "tar -C {} -cf {} .",
        root.display(),
        archive.display()
    ));
    let reference = format!("docker-archive:{}", archive.display());
    assert_as_configured(&image.run(&[&reference]).expect_code(1));
}

#[test]
fn the_command_line_counts_more_than_the_image() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    let script = r#"echo "user $(id -u):$(id -g) $(id -G)"; echo "cwd $(pwd)"
        echo "env $COLOUR $SIZE"; echo "args $*""#;
    let ended = image.run(&[
        "--user=root:logs",
        "--workdir=/tmp/new",
        "--env=COLOUR=red",
        r#"--entrypoint=["sh", "-c"]"#,
        image.path(),
        script,
        "zero",
        "--one",
    ]);
    let ended = ended.expect_code(0);
    for line in [
        "user 0:1002 1002",
        "cwd /tmp/new",
        "env red small",
        "args --one",
    ] {
        ended.assert_line(line);
    }
}

#[test]
fn layers_are_unpacked_once_and_never_written() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    let write = ["--user=0", "--entrypoint=sh", image.path(), "-c"];
    let script =
        "cat /etc/greeting; echo changed > /etc/greeting; rm -r /bin/true /etc/group; mkdir /x";
    let first = image.run(&[&write[..], &[script]].concat());
    assert!(first.stderr.contains("unpacking"), "{first}");
    let sums = || {
        let cache = image.cache().join("layers");
        sh(&format!(
            "cd {} && find . -printf '%p %m %U %G %T@ %y %l\\n' | sort; \
             find . -type f -exec sha256sum {{}} + | sort",
            cache.display()
        ))
    };
    let before = sums();
    let second = image.run(&[&write[..], &[script]].concat());
    assert!(!second.stderr.contains("unpacking"), "{second}");
    second.assert_line("of the upper layer");
    assert_eq!(before, sums());
    layers(&image.cache());
}

#[test]
fn runs_at_the_same_time_share_one_unpacking() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    let run = || Running::start(VmRun::image(&image.cache(), &[image.path()]));
    let all = [run(), run(), run()].map(Running::wait);
    let mut unpacked = 0;
    for ended in all {
        let ended = ended.expect_code(1);
        assert_as_configured(&ended);
        unpacked += ended.stderr.matches("unpacking").count();
    }
    assert_eq!(unpacked, 2, "each layer once");
    assert_eq!(layers(&image.cache()).len(), 2);
}

#[test]
fn a_run_that_is_killed_while_it_unpacks_leaves_nothing_wrong() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    let large = image.layout.layer(|root| {
        fs::create_dir(root.join("large")).unwrap();
        for number in 0..64 {
            let name = root.join(format!("large/{number}"));
            fs::write(name, noise(1 << 20)).unwrap();
        }
    });
    let layers_of_it = [&image.layers[0], &large];
    let entry = image.layout.image("large:1", &layers_of_it, &config());
    image.layout.write_index(&[entry]);
    let count = ["--entrypoint=sh", image.path(), "-c"];
    let script = "ls /large | wc -l; cat /large/* | wc -c";

    let run = Running::start(VmRun::image(&image.cache(), &[image.path()]));
    wait_until("some of the layer is unpacked", || {
        let runs = fs::read_dir(image.cache().join("runs"));
        let mut runs = runs.into_iter().flatten();
        runs.any(|run| run.unwrap().path().join("layer/large/9").exists())
    });
    run.signal(Signal::KILL);
    let _ = run.wait();
    let kept = fs::read_dir(image.cache().join("layers")).unwrap().count();
    assert_eq!(kept, 1, "the layer was whole before it was killed");

    let ended = image.run(&[&count[..], &[script]].concat()).expect_code(0);
    ended.assert_line("64");
    ended.assert_line(&(64 << 20).to_string());
    assert_eq!(layers(&image.cache()).len(), 2);
}

#[test]
fn the_signal_to_stop_is_the_image_s() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    let script = "trap 'echo stopped; exit 3' USR1; echo ready; while :; do sleep 0.1; done";
    let arguments = ["--entrypoint=sh", image.path(), "-c", script];
    let mut run = Running::start(VmRun::image(&image.cache(), &arguments));
    run.wait_for("ready");
    run.signal(Signal::TERM);
    run.wait().expect_code(3).assert_line("stopped");
    layers(&image.cache());
}

#[test]
fn an_image_that_is_not_what_it_says_is_refused_and_leaves_nothing() {
    let _clean = Clean::slate();
    let image = TestImage::new();
    let upper = image.layout.blob(&image.layers[1]);
    let mut bytes = fs::read(&upper).unwrap();
    let place = bytes
        .windows(8)
        .position(|text| text == b"of the u")
        .unwrap();
    bytes[place] = b'O';
    fs::write(&upper, &bytes).unwrap();
    let ended = image.run(&[image.path()]).expect_code(1);
    assert!(ended.stderr.contains("diff_id sha256:"), "{ended}");
    assert_eq!(layers(&image.cache()).len(), 1, "only the layer below");

    fs::write(image.layout.blob(&image.entry), "{}").unwrap();
    let ended = image.run(&[image.path()]).expect_code(1);
    assert!(
        ended.stderr.contains("its content has the digest"),
        "{ended}"
    );

    let key = image.dir.path().join("key.pub");
    sh(&format!(
        "openssl ecparam -name prime256v1 -genkey -noout | openssl ec -pubout -out {} 2>/dev/null",
        key.display()
    ));
    let key = format!("--verify-key={}", key.display());
    let ended = image.run(&[&key, image.path()]).expect_code(1);
    assert!(
        ended.stderr.contains("works with registries only"),
        "{ended}"
    );
    layers(&image.cache());
}
