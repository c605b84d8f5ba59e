//! The trace of which a call is a part, from where it comes in to where a pod is started.

use std::future::Future;

use nacre_pod::status::TraceParent;
use ttrpc::asynchronous::TtrpcContext;

/// The key of a call's metadata under which OpenTelemetry's instrumentation of ttrpc puts it.
const KEY: &str = "traceparent";

tokio::task_local! {
    static PARENT: Option<TraceParent>;
}

/// Carries out a call as a part of its caller's trace.
pub(crate) fn within<F: Future>(
    context: &TtrpcContext,
    call: F,
) -> impl Future<Output = F::Output> + use<F> {
    let values = context.metadata.get(KEY);
    let parent = values.and_then(|values| values.first()?.parse().ok());
    PARENT.scope(parent, call)
}

/// The span that asked for what is done now, if its caller keeps a trace.
pub(crate) fn parent() -> Option<TraceParent> {
    PARENT.try_with(|parent| *parent).ok().flatten()
}
