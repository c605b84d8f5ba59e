use super::*;

/// A directory with the given files.
fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn list(name: &str, plugin: &str) -> String {
    format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "{plugin}"}}]}}"#)
}

fn single(name: &str, plugin: &str) -> String {
    format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "type": "{plugin}"}}"#)
}

fn types(network: &NetworkConfig) -> Vec<&str> {
    network
        .plugins
        .iter()
        .map(|plugin| plugin.plugin_type().as_str())
        .collect()
}

fn named(name: &str) -> NetworkName {
    name.parse().unwrap()
}

#[test]
fn the_default_is_the_first_file_by_name_whatever_its_form() {
    let dir = dir(&[
        ("20-b.conflist", &list("b", "second")),
        ("10-a.conf", &single("a", "first")),
        ("05-x.conf.bak", &single("x", "ignored")),
        ("00-readme.txt", "no configuration"),
    ]);
    fs::create_dir(dir.path().join("01-dir.conf")).unwrap();
    assert_eq!(types(&first(dir.path()).unwrap()), ["first"]);
}

#[test]
fn a_name_is_looked_up_in_lists_before_single_configurations() {
    let dir = dir(&[
        ("10-n.conf", &single("n", "single")),
        ("20-n.conflist", &list("n", "list-20")),
        ("30-n.conflist", &list("n", "list-30")),
        ("40-m.json", &single("m", "json")),
    ]);
    assert_eq!(types(&find(dir.path(), &named("n")).unwrap()), ["list-20"]);
    assert_eq!(types(&find(dir.path(), &named("m")).unwrap()), ["json"]);
}

#[test]
fn a_broken_file_hides_nothing_and_is_named_when_nothing_is_found() {
    let dir = dir(&[
        ("10-bad.conflist", "{"),
        ("20-n.conflist", &list("n", "good")),
    ]);
    assert_eq!(types(&find(dir.path(), &named("n")).unwrap()), ["good"]);
    assert_eq!(types(&first(dir.path()).unwrap()), ["good"]);
    let error = find(dir.path(), &named("other")).unwrap_err().to_string();
    assert!(
        error.contains("there is no network \"other\" in"),
        "{error}"
    );
    assert!(error.contains("10-bad.conflist is not a valid"), "{error}");
}

#[test]
fn nothing_there_is_said() {
    let dir = dir(&[]);
    let error = first(&dir.path().join("none")).unwrap_err().to_string();
    assert!(
        error.contains("there is no network configuration in"),
        "{error}"
    );
    let error = find(dir.path(), &named("n")).unwrap_err().to_string();
    assert!(
        error.ends_with(&format!("in {}", dir.path().display())),
        "{error}"
    );
}

#[test]
fn the_networks_own_directory_adds_plugins_in_order() {
    let bare = r#"{"cniVersion": "1.1.0", "name": "n"}"#;
    let dir = dir(&[
        ("10-n.conflist", bare),
        ("n/20-c.conf", r#"{"type": "c"}"#),
        ("n/10-b.conf", r#"{"type": "b"}"#),
        ("n/30-d.json", r#"{"type": "d"}"#),
    ]);
    assert_eq!(types(&first(dir.path()).unwrap()), ["b", "c"]);

    fs::write(dir.path().join("10-n.conflist"), list("n", "a")).unwrap();
    assert_eq!(types(&first(dir.path()).unwrap()), ["a", "b", "c"]);

    let only = list("n", "a").replacen('{', r#"{"loadOnlyInlinedPlugins": true, "#, 1);
    fs::write(dir.path().join("10-n.conflist"), only).unwrap();
    assert_eq!(types(&first(dir.path()).unwrap()), ["a"]);
}

#[test]
fn a_list_that_gets_no_plugins_is_an_error() {
    let dir = dir(&[("10-n.conflist", r#"{"cniVersion": "1.1.0", "name": "n"}"#)]);
    let error = load(&dir.path().join("10-n.conflist")).unwrap_err();
    assert_eq!(error.to_string(), "the network \"n\" has no plugins");
}

#[test]
fn a_huge_file_and_a_fifo_are_refused() {
    let dir = dir(&[("10-n.conf", &" ".repeat((1 << 20) + 1))]);
    let error = load(&dir.path().join("10-n.conf")).unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
    let fifo = dir.path().join("20-n.conf");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    let error = load(&fifo).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn the_plugins_of_a_list_and_of_its_directory_are_counted_together() {
    let plugins: Vec<_> = (0..64)
        .map(|number| (format!("n/{number:02}.conf"), r#"{"type": "t"}"#))
        .collect();
    let list = list("n", "t");
    let mut files: Vec<_> = plugins
        .iter()
        .map(|(name, text)| (name.as_str(), *text))
        .collect();
    files.push(("n.conflist", &list));
    let dir = dir(&files);
    let error = load(&dir.path().join("n.conflist")).unwrap_err();
    assert!(error.to_string().contains("more than 64"), "{error}");
    fs::remove_file(dir.path().join("n/63.conf")).unwrap();
    assert_eq!(
        load(&dir.path().join("n.conflist")).unwrap().plugins.len(),
        64
    );
}
