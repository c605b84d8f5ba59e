//! The Sandbox API on the wire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox as SandboxApi, create_sandbox};
use containerd_shim_protos::types::platform::Platform;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::sandbox::Sandbox;
use crate::service::complete;
use crate::tasks::timestamp;
use crate::trace;

/// The Sandbox service over `sandbox`.
pub(crate) fn services(sandbox: &Sandbox) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService(sandbox.clone())))
}

struct SandboxService(Sandbox);

#[async_trait]
impl SandboxApi for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        r: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.0.create(&r)?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        context: &TtrpcContext,
        r: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let sandbox = self.0.clone();
        let start = async move { sandbox.start(&r.sandbox_id).await };
        let (pid, created_at) = complete(trace::within(context, start)).await?;
        Ok(StartSandboxResponse {
            pid,
            created_at: created_at.into(),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        r: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        self.0.check(&r.sandbox_id)?;
        Ok(PlatformResponse {
            platform: MessageField::some(platform()),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        r: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let sandbox = self.0.clone();
        complete(async move { sandbox.stop(&r.sandbox_id).await }).await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        r: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let exit = self.0.wait(&r.sandbox_id).await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        r: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        Ok(self.0.status(&r.sandbox_id, r.verbose)?)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, r: PingRequest) -> ttrpc::Result<PingResponse> {
        self.0.ping(&r.sandbox_id)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        _: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let sandbox = self.0.clone();
        complete(async move {
            sandbox.shutdown().await;
            Ok(ShutdownSandboxResponse::new())
        })
        .await
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        r: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let (sandbox, id) = (self.0.clone(), r.sandbox_id.clone());
        let data = complete(async move { sandbox.metrics(&id).await }).await?;
        let mut response = SandboxMetricsResponse::new();
        let metrics = response.mut_metrics();
        metrics.timestamp = MessageField::some(Timestamp::from(SystemTime::now()));
        metrics.id = r.sandbox_id;
        metrics.data = MessageField::some(data);
        Ok(response)
    }
}

/// What containers run on, in Go's words.
fn platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        ..Default::default()
    }
}
