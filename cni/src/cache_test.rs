use std::os::unix::fs::PermissionsExt;

use super::*;

fn entry(network: &str, container: &str) -> CacheEntry {
    let network = format!(
        r#"{{"cniVersion": "1.0.0", "name": "{network}", "type": "bridge", "keyA": [1, 2]}}"#
    );
    let network = NetworkConfig::from_json(network.as_bytes()).unwrap();
    let id = AttachmentId::new(container, "eth0").unwrap();
    let mut attachment = Attachment::new(id, Some("/run/netns/blue".into()));
    attachment.args.push("IP", "10.1.0.9").unwrap();
    attachment.capabilities.aliases = vec!["db".into()];
    CacheEntry::new(&network, &attachment)
}

fn result() -> AddResult {
    let json = br#"{"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.9/16"}]}"#;
    AddResult::from_json(json, Version::LATEST).unwrap()
}

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("results"));
    cache.make_dir().unwrap();
    (dir, cache)
}

fn path(cache: &Cache, entry: &CacheEntry) -> PathBuf {
    cache
        .dir
        .join(file_name(&entry.network.name, &entry.attachment.id))
}

fn read(cache: &Cache, entry: &CacheEntry) -> Result<Option<CacheEntry>, Error> {
    cache.read(&entry.network.name, &entry.attachment.id)
}

#[test]
fn an_entry_is_read_as_it_was_written() {
    let (_dir, cache) = cache();
    let mut entry = entry("n", "c");
    cache.write(&entry).unwrap();
    assert!(!read(&cache, &entry).unwrap().unwrap().complete);

    entry.result = Some(result());
    entry.complete = true;
    cache.write(&entry).unwrap();
    let again = read(&cache, &entry).unwrap().unwrap();
    assert_eq!(again.attachment, entry.attachment);
    assert_eq!(again.result, entry.result);
    assert!(again.complete);
    assert_eq!(again.network.plugins[0].fields()["keyA"].get(), "[1, 2]");
}

#[test]
fn nobody_else_can_read_it() {
    let (_dir, cache) = cache();
    let entry = entry("n", "c");
    cache.write(&entry).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path(&cache, &entry)), 0o600);
    assert_eq!(mode(&cache.dir), 0o700);
}

#[test]
fn what_was_removed_is_gone_with_what_a_crash_left() {
    let (_dir, cache) = cache();
    let entry = entry("n", "c");
    cache.write(&entry).unwrap();
    fs::write(cache.dir.join(".n:c:eth0"), "half").unwrap();
    cache
        .remove(&entry.network.name, &entry.attachment.id)
        .unwrap();
    assert!(read(&cache, &entry).unwrap().is_none());
    assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 0);
    cache
        .remove(&entry.network.name, &entry.attachment.id)
        .unwrap();
}

#[test]
fn names_with_the_same_letters_are_not_mixed_up() {
    let (_dir, cache) = cache();
    cache.write(&entry("a-b", "c")).unwrap();
    assert!(read(&cache, &entry("a", "b-c")).unwrap().is_none());
}

#[test]
fn the_list_has_everything_and_marks_what_is_damaged() {
    let (_dir, cache) = cache();
    for (network, container) in [("n", "c2"), ("n", "c1"), ("m", "c3")] {
        cache.write(&entry(network, container)).unwrap();
    }
    fs::write(cache.dir.join("n:c1:eth0"), "{").unwrap();
    fs::write(cache.dir.join(".n:c9:eth0"), "half").unwrap();
    fs::write(cache.dir.join("lock"), "").unwrap();
    let list: Vec<_> = cache
        .list()
        .unwrap()
        .into_iter()
        .map(|known| {
            (
                known.network.to_string(),
                known.id.to_string(),
                known.entry.is_some(),
            )
        })
        .collect();
    assert_eq!(
        list,
        [
            ("m".into(), "eth0 of container c3".into(), true),
            ("n".into(), "eth0 of container c1".into(), false),
            ("n".into(), "eth0 of container c2".into(), true),
        ]
    );
}

#[test]
fn damage_is_an_error_that_names_the_file() {
    let (_dir, cache) = cache();
    let good = entry("n", "c");
    cache.write(&good).unwrap();
    let path = path(&cache, &good);
    let text = fs::read_to_string(&path).unwrap();
    for bad in [
        String::new(),
        "\u{1b}[2J".into(),
        text[..text.len() / 2].into(),
        text.replace(KIND, "other/1"),
        text.replace("\"c\"", "\"d\""),
        text.replace("bridge", "../bridge"),
        text.replace("/run/netns/blue", &"x".repeat(5 << 20)),
    ] {
        fs::write(&path, &bad).unwrap();
        let error = read(&cache, &good).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("n:c:eth0 is damaged"), "{error}");
        assert!(!error.to_string().contains(char::is_control));
    }
}

#[test]
fn a_cache_that_was_never_written_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("none"));
    assert!(cache.list().unwrap().is_empty());
    assert!(read(&cache, &entry("n", "c")).unwrap().is_none());
}
