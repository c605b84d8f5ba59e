//! The result cache across processes, crashes and damage.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nacre_cni::Cni;
use serde_json::json;

use crate::world::{World, attachment, chain, files, id, result};

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
fn an_add_cut_short_leaves_a_trace_with_the_last_result() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    // The cache as a runtime would leave it that is killed while the plugin runs.
    let copy = world.path("copy");
    world.plugin(
        "two",
        &format!(
            "test $CNI_COMMAND = ADD && cp {} {} && echo '{{}}'; exit 0",
            world.cache_file("c1").display(),
            copy.display()
        ),
    );
    let network = chain("1.0.0", &["one", "two"]);
    world.add(&network).unwrap();
    fs::copy(&copy, world.cache_file("c1")).unwrap();

    let other = another(&world);
    let entry = other.attachment(&network.name, &id("c1")).unwrap().unwrap();
    assert!(!entry.complete);
    other.check(&network, &id("c1")).unwrap_err();
    other.del(&entry.network, &entry.attachment).unwrap();
    assert_eq!(world.log()[2..], ["two DEL", "one DEL"]);
    let previous = &world.calls()[3].request["prevResult"];
    assert_eq!(*previous, result("1.0.0", "10.0.0.2/24"));
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
        let until = Instant::now() + Duration::from_secs(20);
        while !started.exists() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        // Without the wait, this would delete what is being added.
        another(&world).gc(&network, &[id("c1")]).unwrap();
        adding.join().unwrap().unwrap();
    });
    assert_eq!(world.log(), ["slow ADD"]);

    let hasty = another(&world).with_deadline(Duration::from_millis(50));
    let holder = fs::File::open(world.path("cache/lock")).unwrap();
    holder.lock_shared().unwrap();
    let error = hasty.gc(&network, &[]).unwrap_err().to_string();
    assert!(
        error.contains("is still locked by another process"),
        "{error}"
    );
}
