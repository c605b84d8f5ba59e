use std::fs::File;
use std::os::unix::fs::symlink;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;

/// A guest that notes what it is told, and answers by what it is told.
#[derive(Clone)]
struct FakeGuest(UnboundedSender<String>);

impl Guest for FakeGuest {
    async fn renew(&self, _volume: &str, current: Vec<u8>) -> Result<(), AgentError> {
        let current = String::from_utf8(current).unwrap();
        self.0.send(current.clone()).unwrap();
        match current.as_str() {
            "..gone" => Err(AgentError::Disconnected("renew_volume")),
            "..bad" => Err(AgentError::NotFound("as asked".to_owned())),
            _ => Ok(()),
        }
    }
}

struct Scene {
    dir: tempfile::TempDir,
    changed: Arc<Notify>,
    told: UnboundedReceiver<String>,
    follower: JoinSet<()>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let changed = Arc::new(Notify::new());
        let (sender, told) = unbounded_channel();
        let mut follower = JoinSet::new();
        follower.spawn(follow(
            FakeGuest(sender),
            Followed {
                name: "volume-1".to_owned(),
                path: dir.path().to_owned(),
                dir: File::open(dir.path()).unwrap().into(),
                changed: changed.clone(),
            },
        ));
        Self {
            dir,
            changed,
            told,
            follower,
        }
    }

    fn switch_to(&self, current: &str) {
        let new = self.dir.path().join("..data_tmp");
        symlink(current, &new).unwrap();
        std::fs::rename(new, self.dir.path().join("..data")).unwrap();
        self.changed.notify_one();
    }

    async fn told(&mut self) -> String {
        self.told.recv().await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_of_many_steps_is_told_once() {
    let mut scene = Scene::new();
    let start = Instant::now();
    for step in 0..5 {
        scene.switch_to(&format!("..{step}"));
        tokio::time::sleep(QUIET / 2).await;
    }
    assert_eq!(scene.told().await, "..4");
    assert!(start.elapsed() < LONGEST, "{:?}", start.elapsed());
    tokio::time::sleep(LONGEST * 10).await;
    scene.told.try_recv().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn updates_without_end_are_told_now_and_then() {
    let mut scene = Scene::new();
    let start = Instant::now();
    for step in 0..100 {
        scene.switch_to(&format!("..{step}"));
        tokio::time::sleep(QUIET / 2).await;
    }
    assert!(start.elapsed() > LONGEST * 4);
    tokio::time::sleep(LONGEST * 2).await;
    let mut told = Vec::new();
    while let Ok(current) = scene.told.try_recv() {
        told.push(current);
    }
    assert!((4..20).contains(&told.len()), "{told:?}");
    assert_eq!(told.last().unwrap(), "..99");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_the_guest_cannot_follow_is_told_again_and_then_left() {
    let mut scene = Scene::new();
    scene.switch_to("..bad");
    tokio::time::sleep(RETRY * 10).await;
    for _ in 0..TRIES {
        assert_eq!(scene.told().await, "..bad");
    }
    scene.told.try_recv().unwrap_err();
    scene.switch_to("..good");
    assert_eq!(scene.told().await, "..good");
}

#[tokio::test(start_paused = true)]
async fn a_volume_without_content_waits_for_it() {
    let mut scene = Scene::new();
    scene.changed.notify_one();
    tokio::time::sleep(QUIET * 5).await;
    scene.told.try_recv().unwrap_err();
    scene.switch_to("..1");
    assert_eq!(scene.told().await, "..1");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_when_the_guest_is_gone() {
    let mut scene = Scene::new();
    scene.switch_to("..gone");
    assert_eq!(scene.told().await, "..gone");
    scene.follower.join_next().await.unwrap().unwrap();
}
