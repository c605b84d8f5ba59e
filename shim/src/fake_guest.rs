//! A pod for tests: its processes end when the test says so.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use nacre_pod::agent::{ContainerStats, ProcessEnd, ProcessId};
use nacre_pod::status::{ContainerReport, InterfaceReport, Report};
use nacre_pod::stdio::{Stdio, TerminalSize};
use tokio::sync::watch;

use crate::failure::Failure;
use crate::guest::{Guest, Output};
use crate::pod::Setup;

/// The monitor's process.
pub(crate) const PID: u32 = 4711;

type Name = (String, String);

/// A pod of which everything is known.
#[derive(Default)]
pub(crate) struct FakeGuest {
    processes: Mutex<HashMap<Name, watch::Sender<Option<ProcessEnd>>>>,
    /// What was asked, in order.
    pub(crate) calls: Mutex<Vec<String>>,
    /// What the next call fails with.
    fail: Mutex<Option<Failure>>,
    /// Answers signals and does nothing, and deletes nothing.
    lies: AtomicBool,
    /// Held while `start`, `exec` and `boot` are to last.
    pub(crate) slow: tokio::sync::Mutex<()>,
    /// Held while `end` is to last.
    pub(crate) slow_end: tokio::sync::Mutex<()>,
    /// How many further processes each container has.
    pub(crate) crowd: AtomicU32,
    /// Processes killed for want of memory.
    pub(crate) kills: watch::Sender<u64>,
    gone: watch::Sender<bool>,
}

struct FakeOutput(u32);

#[async_trait]
impl Output for FakeOutput {
    fn pid(&self) -> u32 {
        self.0
    }

    async fn drain(&mut self) {}
}

impl FakeGuest {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Lets the next call fail.
    pub(crate) fn fail_next(&self, failure: Failure) {
        *self.fail.lock().unwrap() = Some(failure);
    }

    /// Lets no signal have an effect from now on, whatever is answered, and refuses deletions.
    pub(crate) fn lie(&self) {
        self.lies.store(true, Ordering::Relaxed);
    }

    fn lies(&self) -> bool {
        self.lies.load(Ordering::Relaxed) && !*self.gone.borrow()
    }

    /// Lets a process end.
    pub(crate) fn finish(&self, container: &str, exec: &str, status: u8) {
        self.end_with(container, exec, status, false);
    }

    /// Lets a process end, maybe for want of memory.
    pub(crate) fn end_with(&self, container: &str, exec: &str, status: u8, oom_killed: bool) {
        let processes = self.processes.lock().unwrap();
        let name = (container.to_owned(), exec.to_owned());
        processes[&name].send_replace(Some(ProcessEnd {
            status,
            exited_at: SystemTime::now(),
            oom_killed,
        }));
    }

    /// Lets the pod go.
    pub(crate) fn lose(&self) {
        self.gone.send_replace(true);
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn call(&self, call: String) -> Result<(), Failure> {
        self.calls.lock().unwrap().push(call);
        match self.fail.lock().unwrap().take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn refuse_if_lying(&self) -> Result<(), Failure> {
        match self.lies() {
            true => Err(Failure::failed_precondition("it runs")),
            false => Ok(()),
        }
    }

    fn add(&self, process: ProcessId<'_>) -> Box<dyn Output> {
        let mut processes = self.processes.lock().unwrap();
        let pid = u32::try_from(processes.len()).unwrap() + 1;
        let name = (process.container.to_owned(), process.exec.to_owned());
        processes.insert(name, watch::Sender::new(None));
        Box::new(FakeOutput(pid))
    }

    fn ends(&self, process: ProcessId<'_>) -> Result<watch::Receiver<Option<ProcessEnd>>, Failure> {
        let processes = self.processes.lock().unwrap();
        let name = (process.container.to_owned(), process.exec.to_owned());
        let ends = processes.get(&name);
        ends.map(watch::Sender::subscribe)
            .ok_or_else(|| Failure::not_found("no such process"))
    }
}

#[async_trait]
impl Guest for FakeGuest {
    async fn boot(&self, setup: Setup) -> Result<(), Failure> {
        let _slow = self.slow.lock().await;
        self.call(format!("boot {}", setup.hostname))
    }

    fn pid(&self) -> u32 {
        PID
    }

    async fn gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    async fn end(&self) {
        self.calls.lock().unwrap().push("end".to_owned());
        let _slow = self.slow_end.lock().await;
        self.lose();
    }

    async fn kill(&self) {
        self.calls.lock().unwrap().push("kill the pod".to_owned());
        self.lose();
    }

    async fn create(
        &self,
        id: &str,
        _: &Path,
        _: &[Mount],
        _: Stdio,
    ) -> Result<Box<dyn Output>, Failure> {
        self.call(format!("create {id}"))?;
        Ok(self.add(ProcessId::first_of(id)))
    }

    async fn start(&self, id: &str) -> Result<(), Failure> {
        let _slow = self.slow.lock().await;
        self.call(format!("start {id}"))
    }

    async fn exec(
        &self,
        process: ProcessId<'_>,
        spec: &[u8],
        _: Stdio,
    ) -> Result<Box<dyn Output>, Failure> {
        let _slow = self.slow.lock().await;
        let spec = String::from_utf8_lossy(spec);
        self.call(format!("exec {} {spec}", process.exec))?;
        Ok(self.add(process))
    }

    async fn wait(&self, process: ProcessId<'_>) -> Result<ProcessEnd, Failure> {
        let mut ends = self.ends(process)?;
        tokio::select! {
            end = ends.wait_for(Option::is_some) => Ok(end.unwrap().unwrap()),
            () = self.gone() => Err(Failure::unavailable("the pod is gone")),
        }
    }

    async fn wait_out_of_memory(&self, _: &str, known: u64) -> Result<u64, Failure> {
        let mut kills = self.kills.subscribe();
        let kills = kills.wait_for(|kills| *kills > known).await;
        Ok(*kills.unwrap())
    }

    async fn signal(&self, process: ProcessId<'_>, signal: u32, all: bool) -> Result<(), Failure> {
        self.call(format!("signal {signal} {all} {}", process.exec))?;
        if self.ends(process)?.borrow().is_some() {
            return Err(Failure::failed_precondition("it has ended"));
        }
        if signal == 9 && !self.lies() {
            self.finish(process.container, process.exec, 137);
        }
        Ok(())
    }

    async fn resize(&self, process: ProcessId<'_>, size: TerminalSize) -> Result<(), Failure> {
        let (columns, rows) = (size.columns, size.rows);
        self.call(format!("resize {}{columns}x{rows}", process.exec))
    }

    async fn pause(&self, id: &str) -> Result<(), Failure> {
        self.call(format!("pause {id}"))
    }

    async fn resume(&self, id: &str) -> Result<(), Failure> {
        self.call(format!("resume {id}"))
    }

    async fn update(&self, id: &str, resources: &[u8]) -> Result<(), Failure> {
        self.call(format!(
            "update {id} {}",
            String::from_utf8_lossy(resources)
        ))
    }

    async fn processes(&self, id: &str) -> Result<Vec<u32>, Failure> {
        self.call(format!("processes {id}"))?;
        let crowd = 1000..1000 + self.crowd.load(Ordering::Relaxed);
        Ok([1, 2, 77].into_iter().chain(crowd).collect())
    }

    async fn stats(&self, id: &str) -> Result<ContainerStats, Failure> {
        self.call(format!("stats {id}"))?;
        Ok(ContainerStats {
            pids_current: 3,
            ..Default::default()
        })
    }

    async fn interfaces(&self) -> Vec<InterfaceReport> {
        vec![InterfaceReport {
            name: "eth0".to_owned(),
            received_bytes: 11,
            ..InterfaceReport::default()
        }]
    }

    async fn report(&self, containers: Vec<ContainerReport>) -> Report {
        Report {
            vcpus: 2,
            guest_answers: self.call("report".to_owned()).is_ok(),
            containers,
            ..Report::default()
        }
    }

    async fn console(&self) -> Result<String, Failure> {
        self.call("console".to_owned())?;
        Ok("a \u{1b}[2Jconsole\n".to_owned())
    }

    fn monitor_log(&self) -> String {
        "a monitor's \u{9b}line\n".to_owned()
    }

    async fn delete(&self, id: &str) -> Result<(), Failure> {
        self.call(format!("delete {id}"))?;
        self.refuse_if_lying()
    }

    async fn delete_exec(&self, process: ProcessId<'_>) -> Result<(), Failure> {
        self.call(format!("delete {} {}", process.container, process.exec))?;
        self.refuse_if_lying()
    }
}
