//! `trace`: how the start of a pod went, as a trace of OpenTelemetry.
//!
//! What is printed is an `ExportTraceServiceRequest` in the JSON of OTLP (opentelemetry-proto,
//! `opentelemetry/proto/collector/trace/v1`), on one line: what a collector takes by HTTP, and
//! reads from files. Asked again, a pod gives the same spans under the same identifiers.

use std::time::Duration;

use nacre_pod::status::{Identity, Report};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::cli::TraceArgs;
use super::{PodsError, find, print};

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;
/// `SPAN_KIND_SERVER`: somebody else waits for its end.
const SERVER: u8 = 2;

pub(super) async fn trace(args: &TraceArgs) -> Result<(), PodsError> {
    let pods = match &args.pod {
        Some(word) => vec![find::one(word)?],
        None => find::all()?,
    };
    let only_one = args.pod.is_some();
    let mut traces = Vec::new();
    for (_, report) in find::reports(pods, args.patience.limit()).await {
        match report {
            Ok(report) => traces.extend(of_pod(&report)),
            Err(error) if only_one => return Err(error),
            Err(error) => log::warn!("{error}"),
        }
    }
    print(&format!("{}\n", json!({ "resourceSpans": traces })))
}

/// The spans of one pod; `None` until it has been started.
fn of_pod(report: &Report) -> Option<Value> {
    let spans = spans(report)?;
    Some(json!({
        "resource": { "attributes": resource(&report.identity) },
        "scopeSpans": [{
            "scope": { "name": "nacre", "version": env!("CARGO_PKG_VERSION") },
            "spans": spans,
        }],
    }))
}

/// The start as a whole, and its phases.
fn spans(report: &Report) -> Option<Vec<Value>> {
    let begin = Duration::try_from_secs_f64(report.started_at?).ok()?;
    let id = &report.identity.id;
    let parent = report.trace_parent;
    let trace = parent.map_or_else(|| identifier(&[id], 16), |parent| parent.trace_id());
    let whole = identifier(&[id, "start"], 8);
    let mut at = begin;
    let mut spans = Vec::new();
    for phase in &report.phases {
        let from = at;
        at = at.saturating_add(Duration::try_from_secs_f64(phase.seconds).ok()?);
        spans.push(json!({
            "traceId": trace,
            "spanId": identifier(&[id, &phase.name], 8),
            "parentSpanId": whole,
            "name": phase.name,
            "kind": INTERNAL,
            "startTimeUnixNano": nanos(from)?,
            "endTimeUnixNano": nanos(at)?,
        }));
    }
    let mut start = json!({
        "traceId": trace,
        "spanId": whole,
        "name": "start pod",
        "kind": if parent.is_some() { SERVER } else { INTERNAL },
        "startTimeUnixNano": nanos(begin)?,
        "endTimeUnixNano": nanos(at)?,
        "attributes": [
            number("nacre.pod.vcpus", report.vcpus.into()),
            number("nacre.pod.memory_bytes", report.memory),
        ],
    });
    if let Some(parent) = parent {
        start["parentSpanId"] = json!(parent.span_id());
    }
    spans.insert(0, start);
    Some(spans)
}

/// Whose spans these are, named by the semantic conventions for Kubernetes.
fn resource(identity: &Identity) -> Vec<Value> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    let names = [
        ("service.name", Some("nacre")),
        ("host.name", Some(&*host)),
        ("nacre.pod.id", Some(identity.id.as_str())),
        ("k8s.namespace.name", identity.namespace.as_deref()),
        ("k8s.pod.name", identity.name.as_deref()),
        ("k8s.pod.uid", identity.uid.as_deref()),
    ];
    names
        .into_iter()
        .filter_map(|(key, value)| Some(json!({ "key": key, "value": { "stringValue": value? } })))
        .collect()
}

/// OTLP's JSON has 64-bit integers as strings.
fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

/// Nanoseconds in 64 bits, as OTLP has them.
fn nanos(at: Duration) -> Option<String> {
    Some(u64::try_from(at.as_nanos()).ok()?.to_string())
}

/// An identifier of so many bytes for what has this name, the same each time.
fn identifier(name: &[&str], bytes: usize) -> String {
    let digest = Sha256::digest(name.join("/"));
    digest
        .iter()
        .take(bytes)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use nacre_pod::status::PhaseReport;

    use super::*;

    fn started() -> Report {
        let phase = |name: &str, seconds| PhaseReport {
            name: name.to_owned(),
            seconds,
        };
        Report {
            identity: Identity {
                id: "abc".to_owned(),
                name: Some("web".to_owned()),
                ..Identity::default()
            },
            started_at: Some(1_000.0),
            phases: vec![phase("monitor up", 0.5), phase("agent ready", 1.25)],
            vcpus: 2,
            ..Report::default()
        }
    }

    #[test]
    fn phases_follow_one_another_within_the_start() {
        let spans = spans(&started()).unwrap();
        let times: Vec<_> = spans
            .iter()
            .map(|span| {
                (
                    &span["name"],
                    &span["startTimeUnixNano"],
                    &span["endTimeUnixNano"],
                )
            })
            .collect();
        assert_eq!(
            json!(times),
            json!([
                ["start pod", "1000000000000", "1001750000000"],
                ["monitor up", "1000000000000", "1000500000000"],
                ["agent ready", "1000500000000", "1001750000000"],
            ])
        );
        assert_eq!(spans[0]["traceId"].as_str().unwrap().len(), 32);
        assert_eq!(spans[0].get("parentSpanId"), None);
        for phase in &spans[1..] {
            assert_eq!(phase["traceId"], spans[0]["traceId"]);
            assert_eq!(phase["parentSpanId"], spans[0]["spanId"]);
            assert_eq!(phase["spanId"].as_str().unwrap().len(), 16);
        }
        assert_ne!(spans[1]["spanId"], spans[2]["spanId"]);
    }

    #[test]
    fn a_start_is_a_part_of_its_caller_s_trace() {
        let mut report = started();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        report.trace_parent = Some(parent.parse().unwrap());
        let spans = spans(&report).unwrap();
        assert_eq!(spans[0]["parentSpanId"], "b7ad6b7169203331");
        assert_eq!(spans[0]["kind"], SERVER);
        for span in &spans {
            assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
        }
    }

    #[test]
    fn a_pod_that_was_not_started_or_says_nonsense_has_no_trace() {
        assert_eq!(of_pod(&Report::default()), None);
        for seconds in [f64::NAN, -1.0, f64::INFINITY, 1e300, 1e11] {
            let mut report = started();
            report.started_at = Some(seconds);
            assert_eq!(of_pod(&report), None);
            let mut report = started();
            report.phases[0].seconds = seconds;
            assert_eq!(of_pod(&report), None);
        }
    }
}
