//! What the shim tells operators of its pod, on the socket of the pod's entry.
//!
//! Only the host's side is told of with certainty: what the guest is asked for has a deadline,
//! and a guest that does not answer is told of as such.

use std::sync::Arc;
use std::time::Duration;

use nacre_pod::status::{
    self, Answer, CONTENT_TYPE, CREATED, ContainerReport, PAUSED, ProcessReport, RUNNING, Report,
    STOPPED,
};
use nacre_pod::text;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::container::{Container, Frozen};
use crate::guest::Guest;
use crate::process::Stage;
use crate::tasks::Tasks;

/// How long the guest may take to say what its containers run.
const ANSWER: Duration = Duration::from_secs(2);

/// Most processes of a pod that are listed. A hostile guest may say that it has any number.
const MAX_PROCESSES: usize = 32 << 10;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Who answers.
#[derive(Clone)]
pub(crate) struct Status {
    guest: Arc<dyn Guest>,
    tasks: Tasks,
}

impl Status {
    pub(crate) fn new(guest: Arc<dyn Guest>, tasks: Tasks) -> Self {
        Self { guest, tasks }
    }

    /// Answers a request for `path`.
    pub(crate) async fn answer(self, path: String) -> Answer {
        match path.as_str() {
            status::METRICS => {
                let report = self.report().await;
                let pods = [(report.identity.clone(), Some(report))];
                Answer::ok(CONTENT_TYPE, status::exposition(&pods))
            }
            status::REPORT => json(&self.report().await),
            status::PROCESSES => match self.processes().await {
                Ok(processes) => json(&processes),
                Err(reason) => Answer::unavailable(reason),
            },
            status::CONSOLE => match self.guest.console().await {
                Ok(console) => Answer::ok(TEXT, text::lines(&console)),
                Err(failure) => Answer::unavailable(&failure.message),
            },
            status::LOG => Answer::ok(TEXT, self.log()),
            _ => Answer::not_found(),
        }
    }

    async fn report(&self) -> Report {
        let containers = self.tasks.all();
        let containers = containers.iter().map(|container| describe(container));
        self.guest.report(containers.collect()).await
    }

    /// Or the reason why they cannot be told.
    async fn processes(&self) -> Result<Vec<ProcessReport>, &'static str> {
        let deadline = Instant::now() + ANSWER;
        let mut processes = Vec::new();
        for container in self.tasks.all() {
            let pids = timeout_at(deadline, self.tasks.pids(&container.id))
                .await
                .map_err(|_| "the guest does not answer")?;
            // One that has just ended has none.
            let pids = pids.unwrap_or_default();
            if processes.len() + pids.len() > MAX_PROCESSES {
                return Err("there are more processes in this pod than can be listed");
            }
            for (pid, exec) in pids {
                processes.push(ProcessReport {
                    container: container.id.clone(),
                    name: container.name_in_pod.clone(),
                    pid,
                    exec,
                });
            }
        }
        Ok(processes)
    }

    /// Some of it is what a monitor wrote that its guest may have taken over.
    fn log(&self) -> String {
        let monitor = text::lines(&self.guest.monitor_log());
        let monitor = monitor.lines().map(|line| format!("monitor: {line}\n"));
        crate::logger::recent() + &monitor.collect::<String>()
    }
}

fn describe(container: &Container) -> ContainerReport {
    let status = match (container.init.stage(), container.frozen()) {
        (Stage::Stopped(_), _) => STOPPED,
        (_, Frozen::Yes | Frozen::Changing) => PAUSED,
        (Stage::Running, Frozen::No) => RUNNING,
        (Stage::Created | Stage::Starting, Frozen::No) => CREATED,
    };
    let execs = container.execs();
    let running = execs.iter().filter(|exec| exec.stage() == Stage::Running);
    ContainerReport {
        id: container.id.clone(),
        name: container.name_in_pod.clone(),
        status: status.to_owned(),
        execs: running.count() as u64,
        usage: None,
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(text) => Answer::ok(JSON, text),
        Err(error) => Answer::unavailable(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::Ordering;

    use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest};
    use protobuf::well_known_types::any::Any;

    use super::*;
    use crate::events::Publisher;
    use crate::fake_guest::FakeGuest;
    use crate::lifetime::Lifetime;

    /// A shim whose pod has a container that runs and one that has ended.
    async fn shim() -> (tempfile::TempDir, Arc<FakeGuest>, Status) {
        let bundle = tempfile::tempdir().unwrap();
        let spec = r#"{"annotations": {"io.kubernetes.cri.container-name": "main"}}"#;
        std::fs::write(bundle.path().join("config.json"), spec).unwrap();
        let guest = FakeGuest::new();
        let (publisher, _) = Publisher::for_test();
        let lifetime = Arc::new(Lifetime::new(PathBuf::from("/nowhere/socket")));
        let tasks = Tasks::new(guest.clone(), publisher, "ns", lifetime);
        for id in ["runs", "ended"] {
            let request = CreateTaskRequest {
                id: id.into(),
                bundle: bundle.path().display().to_string(),
                ..Default::default()
            };
            tasks.create(request).await.unwrap();
            tasks.start(id, "").await.unwrap();
        }
        guest.finish("ended", "", 0);
        tasks.wait("ended", "").await.unwrap();
        let status = Status::new(guest.clone(), tasks);
        (bundle, guest, status)
    }

    #[tokio::test]
    async fn a_report_holds_each_container() {
        let (_bundle, guest, status) = shim().await;
        let report = status.report().await;
        let [ended, runs] = &report.containers[..] else {
            panic!("{report:?}");
        };
        assert_eq!(
            (ended.id.as_str(), ended.status.as_str()),
            ("ended", "stopped")
        );
        assert_eq!(
            (runs.id.as_str(), runs.status.as_str()),
            ("runs", "running")
        );
        assert_eq!(runs.name.as_deref(), Some("main"));
        // The guest was woken once for all of it.
        let asked = guest.calls().into_iter().filter(|call| call == "report");
        assert_eq!(asked.count(), 1);
        assert!(report.guest_answers);
    }

    #[tokio::test]
    async fn execs_are_counted_while_they_run() {
        let (_bundle, guest, status) = shim().await;
        let request = ExecProcessRequest {
            id: "runs".into(),
            exec_id: "e".into(),
            spec: Some(Any {
                value: b"{}".to_vec(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        status.tasks.exec(&request).unwrap();
        assert_eq!(status.report().await.containers[1].execs, 0);
        status.tasks.start("runs", "e").await.unwrap();
        assert_eq!(status.report().await.containers[1].execs, 1);
        guest.finish("runs", "e", 0);
        status.tasks.wait("runs", "e").await.unwrap();
        assert_eq!(status.report().await.containers[1].execs, 0);
    }

    #[tokio::test]
    async fn a_guest_that_says_it_has_any_number_of_processes_is_not_listed() {
        let (_bundle, guest, status) = shim().await;
        assert_eq!(status.processes().await.unwrap().len(), 3);
        guest
            .crowd
            .store(u32::try_from(MAX_PROCESSES).unwrap(), Ordering::Relaxed);
        status.processes().await.unwrap_err();
    }

    #[tokio::test]
    async fn each_path_has_its_answer() {
        let (_bundle, _guest, status) = shim().await;
        let answer = |path: &str| status.clone().answer(path.to_owned());
        let metrics = format!("{:?}", answer(status::METRICS).await);
        assert!(metrics.contains("nacre_pod_vcpus 2"), "{metrics}");
        let processes = format!("{:?}", answer(status::PROCESSES).await);
        assert!(
            processes.contains("77") && !processes.contains("ended"),
            "{processes}"
        );
        let console = Answer::ok(TEXT, "a \\u{1b}[2Jconsole\n".into());
        assert_eq!(answer(status::CONSOLE).await, console);
        let log = Answer::ok(TEXT, "monitor: a monitor's \\u{9b}line\n".into());
        assert_eq!(answer(status::LOG).await, log);
        assert_eq!(answer("/elsewhere").await, Answer::not_found());
    }
}
