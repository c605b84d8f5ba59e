//! Archives as nobody should make them. These tests need root, as unpacking does: each mounts
//! on a thread of its own, in a mount namespace that ends with it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tar::{Builder, EntryType, Header};

use super::*;
use crate::cache::Cache;
use crate::overlay::{Overlay, make_upper};
use crate::run_dir::RunDir;

/// An archive that is being made, entry by entry.
struct TestTar(Builder<Vec<u8>>);

impl TestTar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry with that very name, whatever it is.
    fn add(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header
            .set_device_major(if kind == EntryType::Char { 1 } else { 0 })
            .unwrap();
        header
            .set_device_minor(if kind == EntryType::Char { 3 } else { 0 })
            .unwrap();
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(EntryType::Regular, name, "", content.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", &[])
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Symlink, name, to, &[])
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Link, name, to, &[])
    }

    fn pax<'a>(mut self, records: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        self.0.append_pax_extensions(records).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Nothing out of the ordinary.
fn root_owned(header: &mut Header) {
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
}

/// Where a test unpacks.
struct Place {
    run: RunDir,
    layers: Vec<PathBuf>,
    outside: PathBuf,
    limits: Limits,
}

impl Place {
    /// Unpacks an archive above those before it.
    fn unpack(&mut self, tar: TestTar) -> Result<PathBuf, UnpackError> {
        let bytes = tar.bytes();
        self.unpack_blob(&bytes, &layer(&bytes, &bytes))
    }

    fn unpack_blob(&mut self, blob: &[u8], layer: &Layer) -> Result<PathBuf, UnpackError> {
        let name = format!("layer{}", self.layers.len());
        self.run.remove_dir(&name).unwrap();
        let own = make_upper(&self.run, &name, &self.layers)?;
        let mut remaining = Remaining::new(self.limits);
        let result = if self.layers.is_empty() {
            let mut target = Target::lowest(&own)?;
            unpack(blob, layer, &mut target, &mut remaining)
        } else {
            let overlay = Overlay::mount(&self.run, &self.layers, &own).unwrap();
            let mut target = Target::above(overlay.root(), &own)?;
            let result = unpack(blob, layer, &mut target, &mut remaining);
            drop(target);
            overlay.close(&self.run).unwrap();
            result
        };
        result?;
        self.layers.push(own.clone());
        Ok(own)
    }

    fn refuse(&mut self, tar: TestTar) -> String {
        self.unpack(tar).unwrap_err().to_string()
    }

    /// Looks at all layers, one above the other.
    fn merged(&self, look: impl FnOnce(&Path)) {
        let upper = make_upper(&self.run, "upper", &self.layers).unwrap();
        let overlay = Overlay::mount(&self.run, &self.layers, &upper).unwrap();
        look(overlay.root());
    }
}

fn layer(blob: &[u8], tar: &[u8]) -> Layer {
    Layer {
        digest: Some(Digest::of(blob)),
        size: Some(blob.len() as u64),
        diff_id: Digest::of(tar),
    }
}

fn in_place(test: impl FnOnce(&mut Place) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let result = thread::spawn(move || {
        // SAFETY: a new mount namespace changes no descriptor and no memory.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "untouched").unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let mut place = Place {
            run: cache.new_run().unwrap(),
            layers: Vec::new(),
            outside: outside.clone(),
            limits: Limits {
                bytes: 64 << 20,
                entries: 1000,
            },
        };
        test(&mut place);
        drop(place);
        assert_eq!(
            fs::read_to_string(outside.join("file")).unwrap(),
            "untouched"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(
            fs::read_dir(dir.path().join("cache/runs")).unwrap().count(),
            0
        );
    });
    result.join().unwrap();
}

#[test]
fn attributes_are_kept() {
    in_place(|place| {
        let tar = TestTar::new()
            .dir("d/")
            .pax([
                ("SCHILY.xattr.user.a", &b"b\0c"[..]),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("mtime", b"999999999.25"),
            ])
            .file("d/f", "content")
            .symlink("d/s", "/nowhere")
            .hard_link("d/h", "d/f")
            .add(EntryType::Fifo, "d/p", "", &[])
            .add(EntryType::Char, "d/c", "", &[]);
        let root = place.unpack(tar).unwrap();
        let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        let file = stat("d/f");
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o7777),
            (1000, 1001, 0o640)
        );
        assert_eq!(
            (file.mtime(), file.mtime_nsec()),
            (999_999_999, 250_000_000)
        );
        assert_eq!(file.ino(), stat("d/h").ino());
        assert_eq!((stat("d").mtime(), stat("d").uid()), (1_000_000_000, 1000));
        assert_eq!(
            (stat("d/s").mtime(), stat("d/s").uid()),
            (1_000_000_000, 1000)
        );
        assert!(stat("d/p").file_type().is_fifo());
        assert_eq!(stat("d/c").rdev(), rustix::fs::makedev(1, 3));
        let mut value = [0; 16];
        let n = rustix::fs::lgetxattr(root.join("d/f"), "user.a", &mut value).unwrap();
        assert_eq!(&value[..n], b"b\0c");
        rustix::fs::lgetxattr(root.join("d/f"), "trusted.overlay.opaque", &mut value).unwrap_err();
    });
}

#[test]
fn capabilities_survive_the_change_of_owner() {
    in_place(|place| {
        // Version 2, CAP_NET_RAW permitted and effective (linux/capability.h).
        let mut value = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
        value.resize(20, 0);
        let tar = TestTar::new()
            .pax([("SCHILY.xattr.security.capability", &value[..])])
            .file("ping", "");
        let root = place.unpack(tar).unwrap();
        let mut found = [0; 32];
        let n = rustix::fs::lgetxattr(root.join("ping"), "security.capability", &mut found);
        assert_eq!(&found[..n.unwrap()], value);
    });
}

#[test]
fn names_stay_inside() {
    in_place(|place| {
        let outside = place.outside.join("file");
        for name in ["../file", "a/../../file", "a/..", ".."] {
            let error = place.refuse(TestTar::new().file(name, "x"));
            assert!(error.contains("leads out of the root"), "{name}: {error}");
        }
        // An absolute name is one below the root.
        let absolute = outside.to_str().unwrap().to_owned();
        let root = place.unpack(TestTar::new().file(&absolute, "x")).unwrap();
        assert_eq!(fs::read(root.join(&absolute[1..])).unwrap(), b"x");
    });
}

#[test]
fn links_are_not_followed_out_of_the_root() {
    in_place(|place| {
        let outside = place.outside.to_str().unwrap().to_owned();
        // What the link leads to does not exist in the image.
        let error = place.refuse(TestTar::new().symlink("a", &outside).file("a/file", "x"));
        assert!(error.contains("no directory"), "{error}");
        let up = "../".repeat(20) + &outside[1..];
        let error = place.refuse(TestTar::new().symlink("a", &up).file("a/new", "x"));
        assert!(error.contains("no directory"), "{error}");
        // A link in the place of a file is replaced, not written through.
        let file = format!("{outside}/file");
        let tar = TestTar::new().symlink("a", &file).file("a", "x");
        let root = place.unpack(tar).unwrap();
        assert!(fs::symlink_metadata(root.join("a")).unwrap().is_file());
        // Inside, a link is a way like any other, in a layer above, too.
        let tar = TestTar::new().dir("usr").symlink("lib", "/usr");
        place.unpack(tar).unwrap();
        place.unpack(TestTar::new().file("lib/b", "b")).unwrap();
        place.merged(|root| {
            assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_symlink());
            assert_eq!(fs::read(root.join("usr/b")).unwrap(), b"b");
        });
    });
}

#[test]
fn hard_links_lead_to_files_of_the_image_only() {
    in_place(|place| {
        let file = place.outside.join("file").to_str().unwrap().to_owned();
        let error = place.refuse(TestTar::new().hard_link("a", &file));
        assert!(error.contains("does not exist"), "{error}");
        let error = place.refuse(TestTar::new().hard_link("a", "../outside/file"));
        assert!(error.contains("what is outside"), "{error}");
        let outside = place.outside.to_str().unwrap().to_owned();
        let tar = TestTar::new()
            .symlink("s", &outside)
            .hard_link("a", "s/file");
        let error = place.refuse(tar);
        assert!(error.contains("does not exist"), "{error}");
        let error = place.refuse(TestTar::new().dir("d").hard_link("a", "d"));
        assert!(error.contains("cannot have hard links"), "{error}");
        place.refuse(TestTar::new().hard_link("a", "/"));
        place.unpack(TestTar::new().file("f", "x")).unwrap();
        // To a file below, which comes along.
        let own = place.unpack(TestTar::new().hard_link("g", "f")).unwrap();
        assert_eq!(fs::read(own.join("g")).unwrap(), b"x");
    });
}

#[test]
fn whiteouts_hide_what_is_below() {
    in_place(|place| {
        let tar = TestTar::new()
            .file("gone/a", "")
            .file("emptied/a", "")
            .file("emptied/sub/a", "")
            .file("both", "old")
            .file("kept/a", "");
        place.unpack(tar).unwrap();
        let tar = TestTar::new()
            .file(".wh.gone", "")
            .file("emptied/new", "")
            .file("emptied/.wh..wh..opq", "")
            .file("both", "new")
            .file(".wh.both", "")
            .file("kept/.wh.nothing", "")
            .file("kept/b", "");
        place.unpack(tar).unwrap();
        place.merged(|root| {
            assert!(!root.join("gone").exists());
            let names = |name: &str| -> Vec<_> {
                let entries = fs::read_dir(root.join(name)).unwrap();
                let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
                names.sort();
                names
            };
            // In whatever order, a whiteout hides nothing of its own layer.
            assert_eq!(names("emptied"), ["new"]);
            assert_eq!(fs::read(root.join("both")).unwrap(), b"new");
            assert_eq!(names("kept"), ["a", "b"]);
        });
    });
}

#[test]
fn a_directory_that_is_hidden_and_made_anew_is_empty() {
    in_place(|place| {
        place
            .unpack(TestTar::new().file("d/a", "").file("e/a", ""))
            .unwrap();
        let tar = TestTar::new()
            .file(".wh.d", "")
            .dir("d")
            .file("d/b", "")
            .file("e/b", "")
            .file(".wh.e", "");
        place.unpack(tar).unwrap();
        place.merged(|root| {
            for dir in ["d", "e"] {
                assert!(!root.join(dir).join("a").exists(), "{dir}");
                assert!(root.join(dir).join("b").exists(), "{dir}");
            }
        });
    });
}

#[test]
fn whiteouts_reach_nothing_outside() {
    in_place(|place| {
        place.unpack(TestTar::new().dir("d")).unwrap();
        for name in [".wh...", "d/.wh...", ".wh..", ".wh.", "../.wh.outside"] {
            place.refuse(TestTar::new().file(name, ""));
        }
        let outside = place.outside.to_str().unwrap().to_owned();
        place.refuse(TestTar::new().symlink("s", &outside).file("s/.wh.file", ""));
        place.refuse(
            TestTar::new()
                .symlink("s", &outside)
                .file("s/.wh..wh..opq", ""),
        );
        // What overlayfs itself would take for a whiteout.
        let mut header = Header::new_gnu();
        header.set_path("node").unwrap();
        header.set_entry_type(EntryType::Char);
        root_owned(&mut header);
        header.set_size(0);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        let mut tar = TestTar::new();
        tar.0.append(&header, &[][..]).unwrap();
        let error = place.refuse(tar);
        assert!(error.contains("whiteout"), "{error}");
    });
}

#[test]
fn directories_below_keep_their_attributes() {
    in_place(|place| {
        let tar = TestTar::new().dir("./").dir("d").file("d/a", "");
        place.unpack(tar).unwrap();
        // Neither the root nor `d` is in this one.
        place.unpack(TestTar::new().file("d/b", "")).unwrap();
        place.merged(|root| {
            for name in ["", "d"] {
                let stat = fs::metadata(root.join(name)).unwrap();
                assert_eq!(
                    (stat.uid(), stat.mode() & 0o7777),
                    (1000, 0o640),
                    "{name:?}"
                );
            }
        });
    });
}

#[test]
fn the_last_of_several_entries_counts() {
    in_place(|place| {
        let tar = TestTar::new()
            .file("a", "1")
            .file("a", "2")
            .dir("b")
            .file("b/c", "")
            .file("b", "file")
            .file("d", "")
            .dir("d")
            .hard_link("a", "a");
        let root = place.unpack(tar).unwrap();
        assert_eq!(fs::read(root.join("a")).unwrap(), b"2");
        assert_eq!(fs::read(root.join("b")).unwrap(), b"file");
        assert!(root.join("d").is_dir());
    });
}

#[test]
fn claimed_sizes_cost_nothing() {
    in_place(|place| {
        let mut header = Header::new_gnu();
        header.set_path("huge").unwrap();
        header.set_size(1 << 60);
        root_owned(&mut header);
        header.set_cksum();
        let bytes = header.as_bytes().to_vec();
        let error = place.unpack_blob(&bytes, &layer(&bytes, &bytes));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("larger than 64 GiB"), "{error}");

        // A long name that has no end.
        header.set_entry_type(EntryType::GNULongName);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(8 << 20, b'x');
        let error = place.unpack_blob(&bytes, &layer(&bytes, &bytes));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("headers of an entry are larger"), "{error}");
    });
}

#[test]
fn bombs_stop() {
    in_place(|place| {
        let mut bomb = GzEncoder::new(Vec::new(), Level::fast());
        let zeros = vec![0; 1 << 20];
        let mut header = Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_size(60 << 20);
        root_owned(&mut header);
        header.set_cksum();
        bomb.write_all(header.as_bytes()).unwrap();
        for _ in 0..200 {
            bomb.write_all(&zeros).unwrap();
        }
        let bomb = bomb.finish().unwrap();
        let error = place.unpack_blob(&bomb, &layer(&bomb, &bomb)).unwrap_err();
        assert!(error.to_string().contains("larger than 64 GiB"), "{error}");

        let many = (0..1001).fold(TestTar::new(), |tar, n| tar.file(&format!("f{n}"), ""));
        let error = place.refuse(many);
        assert!(error.contains("too many files"), "{error}");
    });
}

#[test]
fn what_is_cut_off_or_changed_is_refused() {
    in_place(|place| {
        let bytes = TestTar::new().file("a", "content").bytes();
        for len in [100, 512, 515] {
            let cut = &bytes[..len];
            let result = place.unpack_blob(cut, &layer(cut, cut));
            assert!(result.is_err(), "{len} bytes");
        }
        let other = Digest::of(b"other");
        let mut wrong = layer(&bytes, &bytes);
        wrong.diff_id = other.clone();
        let error = place.unpack_blob(&bytes, &wrong).unwrap_err().to_string();
        assert!(error.contains("diff_id"), "{error}");
        let mut wrong = layer(&bytes, &bytes);
        wrong.digest = Some(other);
        let error = place.unpack_blob(&bytes, &wrong).unwrap_err().to_string();
        assert!(error.starts_with("digest"), "{error}");
        let mut wrong = layer(&bytes, &bytes);
        wrong.size = Some(1);
        let error = place.unpack_blob(&bytes, &wrong).unwrap_err().to_string();
        assert!(error.contains("size"), "{error}");
        place.unpack_blob(&bytes, &layer(&bytes, &bytes)).unwrap();
    });
}

#[test]
fn compressed_layers_are_told_by_their_bytes() {
    in_place(|place| {
        let tar = TestTar::new().file("a", "content").bytes();
        let mut gzip = GzEncoder::new(Vec::new(), Level::fast());
        gzip.write_all(&tar[..600]).unwrap();
        let mut members = gzip.finish().unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Level::fast());
        gzip.write_all(&tar[600..]).unwrap();
        members.extend(gzip.finish().unwrap());

        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let level = CompressionLevel::Uncompressed;
        // A frame to be skipped, and two with content.
        let mut zstd = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        zstd.extend(compress_to_vec(&tar[..600], level));
        zstd.extend(compress_to_vec(&tar[600..], level));

        for blob in [tar.clone(), members, zstd] {
            let root = place.unpack_blob(&blob, &layer(&blob, &tar)).unwrap();
            assert_eq!(fs::read(root.join("a")).unwrap(), b"content");
            // The next one starts anew.
            place.layers.clear();
        }
    });
}

#[test]
fn long_names_and_holes_are_kept() {
    in_place(|place| {
        let long = "directory/".repeat(30) + &"n".repeat(200);
        let mut tar = TestTar::new();
        let mut header = Header::new_gnu();
        header.set_size(1 << 20);
        root_owned(&mut header);
        let mut content = vec![0; 1 << 20];
        content[600_000] = 1;
        tar.0.append_data(&mut header, &long, &content[..]).unwrap();
        let root = place.unpack(tar).unwrap();
        let file = root.join(&long);
        assert!(fs::read(&file).unwrap() == content);
        assert!(fs::metadata(&file).unwrap().blocks() * 512 <= 128 << 10);
    });
}

#[test]
fn unknown_kinds_are_refused() {
    in_place(|place| {
        let error = place.refuse(TestTar::new().add(EntryType::new(b'Z'), "z", "", &[]));
        assert!(error.contains("unknown type 'Z'"), "{error}");
        let sparse = [("GNU.sparse.major", &b"1"[..])];
        let error = place.refuse(TestTar::new().pax(sparse).file("s", ""));
        assert!(error.contains("sparse"), "{error}");
    });
}
