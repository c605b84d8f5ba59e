use nacre_pod::agent::AgentError;
use serde_json::{Value, json};
use ttrpc::Code;

use super::*;

/// A guest that does what it is told, but for calls that begin as `refuses` says.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    refuses: Mutex<Option<&'static str>>,
}

impl Fake {
    fn refuse(&self, calls: &'static str) {
        *self.refuses.lock().unwrap() = Some(calls);
    }

    fn call(&self, call: String) -> Result<(), PodError> {
        let refuses = self.refuses.lock().unwrap();
        let refused = refuses.is_some_and(|refused| call.starts_with(refused));
        self.calls.lock().unwrap().push(call);
        match refused {
            true => Err(AgentError::FailedPrecondition("no".to_owned()).into()),
            false => Ok(()),
        }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[async_trait]
impl Adjust for Fake {
    async fn set_cpus(&self, cpus: u8) -> Result<(), PodError> {
        self.call(format!("cpus {cpus}"))
    }

    async fn set_limits(&self, id: &str, _: &[u8]) -> Result<(), PodError> {
        self.call(format!("limits {id}"))
    }
}

fn resources() -> Resources {
    Resources::new(Size {
        memory_mib: 512,
        vcpus: 4,
        cpus_online: 1,
    })
}

fn cpus(cpus: u64) -> Value {
    json!({"cpu": {"quota": cpus * 100_000, "period": 100_000}})
}

async fn update(resources: &Resources, pod: &Fake, value: Value) -> Result<(), Failure> {
    resources
        .update(pod, "a", value.to_string().as_bytes())
        .await
}

async fn admitted(pod: &Fake) -> Resources {
    let resources = resources();
    let none = Allowance::default();
    resources.admit(pod, "a", none).await.unwrap();
    assert!(pod.calls().is_empty());
    resources
}

#[tokio::test]
async fn cpus_come_before_their_limit_and_go_after_it() {
    let pod = Fake::default();
    let resources = admitted(&pod).await;
    update(&resources, &pod, cpus(3)).await.unwrap();
    assert_eq!(pod.calls(), ["cpus 3", "limits a"]);
    update(&resources, &pod, cpus(3)).await.unwrap();
    assert_eq!(pod.calls(), ["limits a"]);
    update(&resources, &pod, cpus(2)).await.unwrap();
    assert_eq!(pod.calls(), ["limits a", "cpus 2"]);
}

#[tokio::test]
async fn what_the_vm_has_not_is_refused_before_the_guest_hears_of_it() {
    let pod = Fake::default();
    let resources = admitted(&pod).await;
    for too_much in [cpus(5), json!({"memory": {"limit": 513_u64 << 20}})] {
        let failure = update(&resources, &pod, too_much).await.unwrap_err();
        assert_eq!(failure.code, Code::INVALID_ARGUMENT);
        assert!(failure.message.contains("the pod's VM has "), "{failure}");
    }
    assert!(pod.calls().is_empty());
}

#[tokio::test]
async fn an_update_that_the_guest_refuses_leaves_all_as_it_was() {
    let pod = Fake::default();
    let resources = admitted(&pod).await;
    pod.refuse("limits");
    let failure = update(&resources, &pod, cpus(4)).await.unwrap_err();
    assert_eq!(failure.code, Code::FAILED_PRECONDITION);
    assert_eq!(pod.calls(), ["cpus 4", "limits a", "cpus 1"]);

    pod.refuse("cpus 3");
    update(&resources, &pod, cpus(3)).await.unwrap_err();
    assert_eq!(pod.calls(), ["cpus 3", "cpus 1"]);

    // The limit that was refused counts for nothing.
    let all = Allowance::of(&serde_json::from_value(cpus(1)).unwrap());
    resources.admit(&pod, "b", all).await.unwrap();
    assert!(pod.calls().is_empty());
}

#[tokio::test]
async fn a_cpu_that_does_not_go_is_tried_again() {
    let pod = Fake::default();
    let resources = admitted(&pod).await;
    update(&resources, &pod, cpus(2)).await.unwrap();
    pod.refuse("cpus 1");
    update(&resources, &pod, cpus(1)).await.unwrap();
    pod.refuse("nothing");
    pod.calls();
    update(&resources, &pod, cpus(1)).await.unwrap();
    assert_eq!(pod.calls(), ["limits a", "cpus 1"]);
}

#[tokio::test]
async fn a_new_container_brings_its_cpus() {
    let pod = Fake::default();
    let resources = admitted(&pod).await;
    let two = Allowance::of(&serde_json::from_value(cpus(2)).unwrap());
    resources.admit(&pod, "b", two).await.unwrap();
    assert_eq!(pod.calls(), ["cpus 2"]);
    resources.leave("b");
    update(&resources, &pod, cpus(1)).await.unwrap();
    assert_eq!(pod.calls(), ["limits a", "cpus 1"]);
}
