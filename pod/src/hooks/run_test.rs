use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn state(&self) -> State {
        let state = json!({ "ociVersion": "1.2.0", "id": "x", "status": "creating", "pid": 7,
            "bundle": self.dir.path(), "annotations": { "a": "b" } });
        serde_json::from_value(state).unwrap()
    }

    async fn run(&self, hooks: Value) -> Result<(), String> {
        let hooks: Hooks = serde_json::from_value(json!({ "createRuntime": hooks })).unwrap();
        let state = self.state();
        let ran = run(Moment::CreateRuntime, &hooks, &state, None).await;
        ran.map_err(|error| error.to_string())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

fn sh(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

#[tokio::test]
async fn a_hook_gets_the_state_its_arguments_and_its_environment() {
    let world = World::new();
    let mut hook = sh("cat >state; echo $0 $A $HOME >args");
    hook["args"].as_array_mut().unwrap().push(json!("zero"));
    hook["env"] = json!(["A=b=c"]);
    world.run(json!([hook])).await.unwrap();
    let state: Value = serde_json::from_str(&world.read("state")).unwrap();
    let expected = json!({ "ociVersion": "1.2.0", "id": "x", "status": "creating", "pid": 7,
        "bundle": world.dir.path(), "annotations": { "a": "b" } });
    assert_eq!(state, expected);
    assert_eq!(world.read("args"), "zero b=c\n");
}

#[tokio::test]
async fn hooks_run_in_their_order_up_to_the_first_that_fails() {
    let world = World::new();
    let error = world
        .run(json!([
            sh("echo 1 >>order"),
            sh("echo 2 >>order; echo 'no such\nthing' >&2; exit 3"),
            sh("echo 3 >>order"),
        ]))
        .await
        .unwrap_err();
    let expected = "hooks.createRuntime[1]: /bin/sh: exit status 3: no such\\nthing";
    assert_eq!(error, expected);
    assert_eq!(world.read("order"), "1\n2\n");
}

#[tokio::test]
async fn after_the_end_each_hook_runs_whatever_the_others_do() {
    let world = World::new();
    let hooks = json!({ "poststop": [sh("exit 1"), sh("echo 2 >>order")] });
    let hooks: Hooks = serde_json::from_value(hooks).unwrap();
    run_each(Moment::Poststop, &hooks, &world.state(), None).await;
    assert_eq!(world.read("order"), "2\n");
}

#[tokio::test]
async fn a_hook_that_takes_too_long_is_killed_with_what_it_has_started() {
    let world = World::new();
    let mut hook = sh("echo waiting >&2; sleep 1000 & echo $! >child; wait");
    hook["timeout"] = json!(1);
    let start = Instant::now();
    let error = world.run(json!([hook])).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(60));
    let expected = "hooks.createRuntime[0]: /bin/sh: not done within 1 s, and killed: waiting";
    assert_eq!(error, expected);
    let child = world.read("child");
    let stat = format!("/proc/{}/stat", child.trim());
    let is_over = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    while !is_over() {
        assert!(start.elapsed() < Duration::from_secs(60), "it still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_a_hook_leaves_running_is_not_waited_for() {
    let world = World::new();
    let start = Instant::now();
    world.run(json!([sh("sleep 60 &")])).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(50));
}

#[tokio::test]
async fn a_hook_that_reads_nothing_has_not_failed() {
    let world = World::new();
    let mut state = world.state();
    // More than a pipe holds.
    let large = "x".repeat(1 << 20);
    state.set_annotations(Some([("a".to_owned(), large)].into()));
    let hooks = json!({ "prestart": [{ "path": "/bin/true" }, sh("wc -c >size")] });
    let hooks: Hooks = serde_json::from_value(hooks).unwrap();
    run(Moment::Prestart, &hooks, &state, None).await.unwrap();
    let size: usize = world.read("size").trim().parse().unwrap();
    assert!(size > 1 << 20, "{size}");
}

#[tokio::test]
async fn what_a_hook_says_is_bounded() {
    let world = World::new();
    let script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo last >&2; exit 1";
    let error = world.run(json!([sh(script)])).await.unwrap_err();
    assert!(error.len() < 1000, "{error}");
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() {
    let world = World::new();
    let error = world.run(json!([{ "path": "/no/such" }])).await;
    let error = error.unwrap_err();
    assert!(
        error.starts_with("hooks.createRuntime[0]: /no/such: No such file"),
        "{error}"
    );
}

#[tokio::test]
async fn a_bundle_that_is_gone_keeps_no_hook_from_running() {
    let world = World::new();
    let mut state = world.state();
    state.set_bundle("/no/such".into());
    let there = world.dir.path().join("there");
    let hooks = json!({ "poststop": [sh(&format!("pwd >{}", there.display()))] });
    let hooks: Hooks = serde_json::from_value(hooks).unwrap();
    run(Moment::Poststop, &hooks, &state, None).await.unwrap();
    assert_eq!(world.read("there"), "/\n");
}
