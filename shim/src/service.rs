//! The Task API on the wire, for containerd of any age.
//!
//! `containerd.task.v2.Task` and `containerd.task.v3.Task` have the same messages
//! under two names, so one service answers to both. A call goes on when its
//! caller gives up or its connection breaks: what it has begun is completed.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use nacre_pod::stdio::TerminalSize;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message, MessageFull};
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::failure::Failure;
use crate::tasks::{Tasks, timestamp};
use crate::trace;

/// The service's names: containerd 2 renamed it.
const NAMES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The Task services over `tasks`.
pub(crate) fn services(tasks: &Tasks) -> HashMap<String, Service> {
    let service = Arc::new(TaskService(tasks.clone()));
    NAMES
        .into_iter()
        .flat_map(|name| {
            create_task(service.clone())
                .into_values()
                .map(|service| (name.to_owned(), service))
        })
        .collect()
}

struct TaskService(Tasks);

/// Carries a call out to its end, also when nobody waits for it any more.
pub(crate) async fn complete<T: Send + 'static>(
    call: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(call).await {
        Ok(answer) => Ok(answer?),
        Err(error) => Err(Failure::internal(error.to_string()).into()),
    }
}

fn done(_: ()) -> Empty {
    Empty::new()
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(self.0.state(&r.id, &r.exec_id)?)
    }

    async fn create(
        &self,
        context: &TtrpcContext,
        r: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let tasks = self.0.clone();
        let pid = complete(trace::within(context, async move { tasks.create(r).await })).await?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> ttrpc::Result<StartResponse> {
        let tasks = self.0.clone();
        let pid = complete(async move { tasks.start(&r.id, &r.exec_id).await }).await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let tasks = self.0.clone();
        let deleted = complete(async move { tasks.delete(&r.id, &r.exec_id).await }).await?;
        Ok(DeleteResponse {
            pid: deleted.pid,
            exit_status: deleted.exit.map_or(0, |exit| exit.status),
            exited_at: deleted.exit.and_then(timestamp).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let tasks = self.0.clone();
        let pids = complete(async move { tasks.pids(&r.id).await }).await?;
        let processes = pids.into_iter().map(|(pid, exec)| process_info(pid, exec));
        Ok(PidsResponse {
            processes: processes.collect::<Result<_, _>>()?,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> ttrpc::Result<Empty> {
        let tasks = self.0.clone();
        complete(async move { tasks.pause(&r.id).await })
            .await
            .map(done)
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> ttrpc::Result<Empty> {
        let tasks = self.0.clone();
        complete(async move { tasks.resume(&r.id).await })
            .await
            .map(done)
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(Failure::unimplemented("checkpoints are not supported").into())
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> ttrpc::Result<Empty> {
        let tasks = self.0.clone();
        complete(async move { tasks.kill(&r.id, &r.exec_id, r.signal, r.all).await })
            .await
            .map(done)
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> ttrpc::Result<Empty> {
        Ok(self.0.exec(&r).map(done)?)
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let characters = |number| u16::try_from(number).unwrap_or(u16::MAX);
        let size = TerminalSize {
            columns: characters(r.width),
            rows: characters(r.height),
        };
        let tasks = self.0.clone();
        complete(async move { tasks.resize(&r.id, &r.exec_id, size).await })
            .await
            .map(done)
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> ttrpc::Result<Empty> {
        Ok(self.0.close_io(&r.id, &r.exec_id, r.stdin).map(done)?)
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let tasks = self.0.clone();
        complete(async move { tasks.update(&r.id, &r.resources).await })
            .await
            .map(done)
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> ttrpc::Result<WaitResponse> {
        // It changes nothing, so it may end with its caller.
        let exit = self.0.wait(&r.id, &r.exec_id).await?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let tasks = self.0.clone();
        let stats = complete(async move { tasks.stats(&r.id).await }).await?;
        Ok(StatsResponse {
            stats: Some(stats).into(),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.0.pid(&r.id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        let tasks = self.0.clone();
        complete(async move {
            tasks.shutdown().await;
            Ok(())
        })
        .await
        .map(done)
    }
}

fn process_info(pid: u32, exec: Option<String>) -> Result<ProcessInfo, Failure> {
    let details = exec.map(|exec_id| ProcessDetails {
        exec_id,
        ..Default::default()
    });
    let pack = |details: ProcessDetails| -> Result<Any, Failure> {
        Ok(Any {
            type_url: ProcessDetails::descriptor().full_name().to_owned(),
            value: details
                .write_to_bytes()
                .map_err(|error| Failure::internal(error.to_string()))?,
            ..Default::default()
        })
    };
    Ok(ProcessInfo {
        pid,
        info: details.map(pack).transpose()?.into(),
        ..Default::default()
    })
}
