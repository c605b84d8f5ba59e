//! The result cache across processes, crashes and damage.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nacre_cni::Cni;
use serde_json::json;

use crate::world::{World, attachment, chain, files, id, result, wait_for};

/// Tells a test that it is the process to be killed, and where its files are.
const KILLED: &str = "NACRE_CNI_TEST_KILLED";

/// A library in another process would look like this.
fn another(world: &World) -> Cni {
    Cni::new(vec![world.path("plugins")], world.path("cache")).unwrap()
}

#[test]
fn another_process_deletes_what_this_one_added() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    world.add(&chain("1.0.0", &["one"])).unwrap();

    let other = another(&world);
    for known in other.attachments().unwrap() {
        let entry = known.entry.unwrap();
        assert!(entry.complete);
        other.del(&entry.network, &entry.attachment).unwrap();
    }
    assert_eq!(
        world.calls()[1].request["prevResult"],
        result("1.0.0", "10.0.0.2/24")
    );
    assert_eq!(files(&world.path("cache")), ["lock"]);
}

#[test]
fn a_runtime_killed_during_add_leaves_a_trace_and_no_plugin() {
    let network = chain("1.0.0", &["one", "slow"]);
    if let Some(dir) = env::var_os(KILLED) {
        let dir = PathBuf::from(dir);
        let cni = Cni::new(vec![dir.join("plugins")], dir.join("cache")).unwrap();
        panic!("{:?}", cni.add(&network, &attachment("c1")));
    }
    let world = World::new();
    let pid = world.path("pid");
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    world.plugin(
        "slow",
        &format!(
            "test $CNI_COMMAND = ADD || exit 0\necho $$ >{0}.new; mv {0}.new {0}; exec sleep 1000",
            pid.display()
        ),
    );
    // This very test, in a process that can be killed.
    let mut killed = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "cached::a_runtime_killed_during_add_leaves_a_trace_and_no_plugin",
        ])
        .env(KILLED, world.path(""))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the second plugin", || pid.exists());
    killed.kill().unwrap();
    killed.wait().unwrap();
    let plugin = fs::read_to_string(&pid).unwrap();
    let plugin = Path::new("/proc").join(plugin.trim());
    wait_for("the plugin's end", || {
        // Nobody may have waited for it yet.
        fs::read_to_string(plugin.join("stat")).map_or(true, |stat| stat.contains(") Z "))
    });

    let other = another(&world);
    let entry = other.attachment(&network.name, &id("c1")).unwrap().unwrap();
    assert!(!entry.complete);
    other.check(&network, &id("c1")).unwrap_err();
    other.gc(&network, Vec::new).unwrap();
    assert_eq!(world.log(), ["one ADD", "slow ADD", "slow DEL", "one DEL"]);
    for call in &world.calls()[2..] {
        assert_eq!(call.request["prevResult"], result("1.0.0", "10.0.0.2/24"));
    }
    assert_eq!(files(&world.path("cache")), ["lock"]);
}

#[test]
fn damage_does_not_keep_del_from_working() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let network = chain("1.0.0", &["one"]);
    world.add(&network).unwrap();
    fs::write(world.cache_file("c1"), "\u{1b}{").unwrap();
    let error = world.add_error(&network);
    assert!(error.contains("net:c1:eth0 is damaged"), "{error}");
    world.cni.del(&network, &attachment("c1")).unwrap();
    assert_eq!(world.log(), ["one ADD", "one DEL"]);
    assert_eq!(world.calls()[1].request.get("prevResult"), None);
    assert!(!world.cache_file("c1").exists());
}

#[test]
fn a_cache_that_cannot_be_written_stops_add_before_any_plugin_runs() {
    let world = World::new();
    world.answering("one", &json!({}));
    fs::write(world.path("cache"), "in the way").unwrap();
    let error = world.add_error(&chain("1.0.0", &["one"]));
    assert!(
        error.contains("cannot make") && error.contains("/cache"),
        "{error}"
    );
    assert!(world.log().is_empty());
}

#[test]
fn a_cache_that_breaks_during_add_makes_it_undone() {
    let world = World::new();
    let cache = world.path("cache");
    world.plugin(
        "one",
        &format!(
            "test $CNI_COMMAND = DEL && exit 0\n\
             rm {0} && mkdir -p {0}/in-the-way && echo '{{}}'",
            world.cache_file("c1").display()
        ),
    );
    let error = world.add_error(&chain("1.0.0", &["one"]));
    assert!(error.contains("cannot write"), "{error}");
    assert!(error.contains(cache.to_str().unwrap()), "{error}");
    assert_eq!(world.log(), ["one ADD", "one DEL"]);
}

#[test]
fn collection_waits_for_an_add_under_way() {
    let world = World::new();
    let started = world.path("started");
    world.plugin(
        "slow",
        &format!(
            "test $CNI_COMMAND = ADD || exit 0\ntouch {}; sleep 1; echo '{{}}'",
            started.display()
        ),
    );
    let network = chain("1.0.0", &["slow"]);
    thread::scope(|scope| {
        let adding = scope.spawn(|| world.add(&network));
        wait_for("the plugin", || started.exists());
        let other = another(&world);
        // Asked too early, the answer would not have the attachment.
        let complete = || {
            let known = other.attachments().unwrap().into_iter();
            known
                .filter(|known| known.entry.as_ref().is_some_and(|entry| entry.complete))
                .map(|known| known.id)
                .collect()
        };
        other.gc(&network, complete).unwrap();
        adding.join().unwrap().unwrap();
    });
    assert_eq!(world.log(), ["slow ADD"]);

    let hasty = another(&world).with_deadline(Duration::from_millis(50));
    let holder = fs::File::open(world.path("cache/lock")).unwrap();
    holder.lock_shared().unwrap();
    let error = hasty.gc(&network, Vec::new).unwrap_err().to_string();
    assert!(
        error.contains("is still locked by another process"),
        "{error}"
    );
}
