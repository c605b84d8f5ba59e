//! Plugins that do not do what they should: each gives one line with the plugin's name,
//! its own words and its code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nacre_cni::{Cni, Error, Failure};

use crate::world::{World, attachment, chain};

/// The message of an `ADD` with one plugin of this script.
fn message(script: &str) -> String {
    let world = World::new();
    // Undoing must not hang or fail, too.
    world.plugin(
        "bad",
        &format!("test $CNI_COMMAND = ADD || exit 0\n{script}"),
    );
    let message = world.add_error(&chain("1.0.0", &["bad"]));
    assert_eq!(world.log(), ["bad ADD", "bad DEL"]);
    assert!(world.cni.attachments().unwrap().is_empty());
    message
        .strip_prefix("CNI plugin bad failed to ADD: ")
        .unwrap()
        .to_owned()
}

#[test]
fn an_error_of_its_own_has_message_details_and_code() {
    assert_eq!(
        message(
            r#"echo '{"cniVersion": "1.0.0", "code": 7, "msg": "Invalid Configuration",
                      "details": "Network 192.168.0.0/31 too small"}'; exit 1"#
        ),
        "Invalid Configuration; Network 192.168.0.0/31 too small (code 7, invalid network \
         configuration)"
    );
    assert_eq!(
        message(r#"echo '{"code": 999, "msg": ""}'; exit 1"#),
        "no message (code 999)"
    );
}

#[test]
fn an_error_with_exit_status_0_is_still_an_error() {
    assert_eq!(
        message(r#"echo '{"code": 11, "msg": "not yet"}'"#),
        "not yet (code 11, try again later)"
    );
}

#[test]
fn control_characters_of_a_message_are_shown_and_not_obeyed() {
    assert_eq!(
        message(r#"printf '%s' '{"code": 100, "msg": "\u001b[2J\r\nroot#\u202e"}'; exit 1"#),
        r"\u{1b}[2J\r\nroot#\u{202e} (code 100)"
    );
}

#[test]
fn a_long_message_is_cut() {
    let message = message(
        r#"printf '{"code": 100, "msg": "'; head -c 500000 /dev/zero | tr '\0' x; printf '"}'; exit 1"#,
    );
    assert!(message.len() < 300, "{message}");
    assert!(message.ends_with("x… (code 100)"), "{message}");
}

#[test]
fn rubbish_and_a_failure_give_the_rubbish_and_the_status() {
    assert_eq!(
        message("printf 'segfault in\\n\\033[31mmodule\\n'; exit 9"),
        r"exit status 9, and no error in the form of CNI; it said: segfault in; \u{1b}[31mmodule"
    );
}

#[test]
fn a_failure_without_output_gives_its_log() {
    assert_eq!(
        message("echo 'panic: nil' >&2; exit 2"),
        "exit status 2, and no error in the form of CNI; it said: panic: nil"
    );
    assert_eq!(
        message("exit 4"),
        "exit status 4, and no error in the form of CNI"
    );
}

#[test]
fn success_without_a_result_is_a_failure() {
    assert_eq!(message("exit 0"), "exit status 0, but no result");
    assert_eq!(
        message("echo; echo forgot >&2"),
        "exit status 0, but no result; it said: forgot"
    );
}

#[test]
fn success_with_rubbish_is_a_failure() {
    let message_of_rubbish = message("printf 'OK\\033[2J'");
    assert!(
        message_of_rubbish.starts_with("its result is not valid: expected value"),
        "{message_of_rubbish}"
    );
    assert!(
        message_of_rubbish.ends_with(r#"it starts with "OK\u{1b}[2J""#),
        "{message_of_rubbish}"
    );
    let message = message(r#"echo '{"ips": [{"address": "10.0.0.1/99"}]}'"#);
    assert!(message.contains("ips[0]: \"10.0.0.1/99\""), "{message}");
}

#[test]
fn death_by_a_signal_names_it() {
    assert_eq!(message("kill -KILL $$"), "died by signal 9");
    assert_eq!(
        message("echo 'out of memory' >&2; kill -TERM $$"),
        "died by signal 15; it said: out of memory"
    );
}

#[test]
fn endless_output_is_cut_off() {
    assert_eq!(
        message("yes"),
        "more than 1048576 bytes on its standard output, killed"
    );
}

#[test]
fn a_plugin_that_hangs_is_killed_at_its_deadline() {
    let world = World::new();
    world.plugin(
        "bad",
        "test $CNI_COMMAND = ADD || exit 0\necho waiting >&2; sleep 1000",
    );
    let cni = Cni::new(vec![world.path("plugins")], world.path("cache"))
        .unwrap()
        .with_deadline(Duration::from_millis(1500));
    let before = Instant::now();
    let error = cni
        .add(&chain("1.0.0", &["bad"]), &attachment("c1"))
        .unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(20));
    assert_eq!(
        crate::world::clean(&error),
        "CNI plugin bad failed to ADD: no answer within 1.5 s, killed; it said: waiting"
    );
    assert_eq!(world.log(), ["bad ADD", "bad DEL"]);
}

#[test]
fn a_plugin_that_is_missing_is_looked_for_everywhere() {
    let world = World::new();
    let plugins = world.path("plugins");
    let dirs = vec![plugins.clone(), world.path("more")];
    let cni = Cni::new(dirs, world.path("cache")).unwrap();
    let error = cni
        .add(&chain("1.0.0", &["none"]), &attachment("c1"))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "CNI plugin none failed to ADD: there is no such file in {}:{}",
            plugins.display(),
            world.path("more").display()
        )
    );
}

#[test]
fn a_plugin_that_is_not_executable_is_said_to_be() {
    let world = World::new();
    world.plugin("bad", "");
    let path = world.path("plugins/bad");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        world.add_error(&chain("1.0.0", &["bad"])),
        format!(
            "CNI plugin bad failed to ADD: {} is not executable",
            path.display()
        )
    );
}

#[test]
fn an_executable_file_in_a_later_directory_is_taken() {
    let world = World::new();
    fs::create_dir(world.path("first")).unwrap();
    fs::write(world.path("first/one"), "not executable").unwrap();
    fs::create_dir_all(world.path("first/dir/one")).unwrap();
    world.plugin("one", "test $CNI_COMMAND = DEL || echo '{}'");
    let dirs = ["first", "first/dir", "plugins"].map(|dir| world.path(dir));
    let cni = Cni::new(dirs.to_vec(), world.path("cache")).unwrap();
    cni.add(&chain("1.0.0", &["one"]), &attachment("c1"))
        .unwrap();
}

#[test]
fn a_file_that_the_kernel_does_not_execute_is_named() {
    let world = World::new();
    world.raw_plugin("bad", "#!/nonexistent/interpreter\n");
    let message = world.add_error(&chain("1.0.0", &["bad"]));
    assert!(message.contains("cannot execute"), "{message}");
    assert!(message.contains("plugins/bad: No such file"), "{message}");
}

#[test]
fn a_directory_that_cannot_be_searched_is_refused() {
    for dir in ["plugins", "/a:b"] {
        let error = Cni::new(vec![dir.into()], "/nonexistent").unwrap_err();
        assert!(error.to_string().contains(dir), "{error}");
    }
}

#[test]
fn the_failure_can_be_told_apart_by_a_program() {
    let world = World::new();
    let error = world.add(&chain("1.0.0", &["none"])).unwrap_err();
    let Error::Plugin(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.plugin.as_str(), "none");
    assert!(matches!(error.failure, Failure::NotFound(_)));
}
