//! What pods say of themselves, in the text format of Prometheus (0.0.4), which also
//! node_exporter's textfile collector reads.
//!
//! Metrics of several pods are one exposition: each metric is described once, and each
//! sample says whose it is.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{TEXT_FORMAT, TextEncoder};

use super::entry::Identity;
use super::report::{CREATED, ContainerReport, PAUSED, RUNNING, Report, STOPPED};
use crate::text;

/// The type of an exposition's content.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// Labels with their values; those that are empty are left out.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// The metrics of these pods. One without a report has not answered.
#[must_use]
pub fn exposition(pods: &[(Identity, Option<Report>)]) -> String {
    let mut families = Families::default();
    for (identity, report) in pods {
        Pod {
            families: &mut families,
            identity,
        }
        .add(report.as_ref());
    }
    families.text()
}

/// Metrics in the order in which they first came.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metric: Metric) {
        let position = self.0.iter().position(|family| family.name() == name);
        let position = position.unwrap_or_else(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            self.0.push(family);
            self.0.len() - 1
        });
        self.0[position].mut_metric().push(metric);
    }

    fn text(&self) -> String {
        // It fails only for a family without a name or a metric: there is none.
        TextEncoder::new()
            .encode_to_string(&self.0)
            .unwrap_or_default()
    }
}

/// Where the metrics of a pod go.
struct Pod<'a> {
    families: &'a mut Families,
    identity: &'a Identity,
}

impl Pod<'_> {
    fn gauge(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::from_label(self.labels(labels));
        metric.set_gauge(gauge);
        self.families.add(name, help, MetricType::GAUGE, metric);
    }

    fn counter(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::from_label(self.labels(labels));
        metric.set_counter(counter);
        self.families.add(name, help, MetricType::COUNTER, metric);
    }

    /// The pod's own labels and further ones.
    fn labels(&self, further: Labels<'_>) -> Vec<LabelPair> {
        let identity = self.identity;
        let own = [
            ("pod_id", identity.id.as_str()),
            ("containerd_namespace", &identity.containerd_namespace),
            ("namespace", identity.namespace.as_deref().unwrap_or("")),
            ("pod", identity.name.as_deref().unwrap_or("")),
        ];
        own.iter()
            .chain(further)
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| {
                let mut label = LabelPair::default();
                label.set_name((*name).to_owned());
                label.set_value(text::lines(value));
                label
            })
            .collect()
    }

    fn add(&mut self, report: Option<&Report>) {
        self.gauge(
            "nacre_pod_up",
            "Whether the pod's shim answered this scrape in time.",
            &[],
            f64::from(u8::from(report.is_some())),
        );
        let Some(report) = report else { return };
        self.gauge(
            "nacre_pod_guest_up",
            "Whether the agent in the pod's guest answered this scrape in time.",
            &[],
            f64::from(u8::from(report.guest_answers)),
        );
        self.add_start(report);
        self.add_machine(report);
        self.add_network(report);
        self.add_containers(report);
    }

    fn add_start(&mut self, report: &Report) {
        if let Some(at) = report.started_at {
            self.gauge(
                "nacre_pod_start_time_seconds",
                "When the pod was asked for, in seconds since the epoch.",
                &[],
                at,
            );
        }
        for phase in &report.phases {
            let name = phase.name.replace(' ', "_");
            self.gauge(
                "nacre_pod_start_phase_seconds",
                "How long a phase of the pod's start took; it ended when this was reached.",
                &[("phase", &name)],
                phase.seconds,
            );
        }
    }

    fn add_machine(&mut self, report: &Report) {
        self.gauge(
            "nacre_pod_vcpus",
            "vCPUs of the guest.",
            &[],
            f64::from(report.vcpus),
        );
        self.gauge(
            "nacre_pod_memory_size_bytes",
            "Memory of the guest.",
            &[],
            float(report.memory),
        );
        if let Some(bytes) = report.memory_resident {
            self.gauge(
                "nacre_pod_memory_resident_bytes",
                "Guest memory that the host has pages for.",
                &[],
                float(bytes),
            );
        }
        if let Some(bytes) = report.memory_available {
            self.gauge(
                "nacre_pod_memory_available_bytes",
                "Memory that the guest's kernel could still give to programs.",
                &[],
                float(bytes),
            );
        }
        if let Some(exits) = report.exits {
            self.counter(
                "nacre_pod_vm_exits_total",
                "VM exits that reached the monitor.",
                &[],
                float(exits),
            );
        }
        for (name, process) in &report.processes {
            self.gauge(
                "nacre_pod_process_resident_memory_bytes",
                "Resident memory of a process of the pod on the host; the monitor's includes the \
                 guest's.",
                &[("process", name)],
                float(process.resident),
            );
            self.counter(
                "nacre_pod_process_cpu_seconds_total",
                "CPU time of a process of the pod on the host; the monitor's includes the guest's.",
                &[("process", name)],
                process.cpu_seconds,
            );
        }
    }

    fn add_network(&mut self, report: &Report) {
        for interface in &report.interfaces {
            let labels = [("interface", interface.name.as_str())];
            for (name, help, value) in [
                (
                    "nacre_pod_network_receive_bytes_total",
                    "Bytes that came to the pod.",
                    interface.received_bytes,
                ),
                (
                    "nacre_pod_network_receive_packets_total",
                    "Packets that came to the pod.",
                    interface.received_packets,
                ),
                (
                    "nacre_pod_network_transmit_bytes_total",
                    "Bytes that the pod sent.",
                    interface.sent_bytes,
                ),
                (
                    "nacre_pod_network_transmit_packets_total",
                    "Packets that the pod sent.",
                    interface.sent_packets,
                ),
            ] {
                self.counter(name, help, &labels, float(value));
            }
        }
    }

    fn add_containers(&mut self, report: &Report) {
        for status in [CREATED, RUNNING, PAUSED, STOPPED] {
            let there = report.containers.iter();
            let count = there.filter(|container| container.status == status);
            self.gauge(
                "nacre_pod_containers",
                "Containers of the pod, by their status.",
                &[("status", status)],
                float(count.count() as u64),
            );
        }
        let execs = report.containers.iter().map(|container| container.execs);
        self.gauge(
            "nacre_pod_execs",
            "Processes that were executed in the pod's containers and run.",
            &[],
            float(execs.sum()),
        );
        for container in &report.containers {
            self.add_container(container);
        }
    }

    fn add_container(&mut self, container: &ContainerReport) {
        let Some(usage) = container.usage else { return };
        let labels = [
            ("container_id", container.id.as_str()),
            ("container", container.name.as_deref().unwrap_or("")),
        ];
        for (name, help, value) in [
            (
                "nacre_container_cpu_seconds_total",
                "CPU time of the container.",
                seconds(usage.cpu_usec),
            ),
            (
                "nacre_container_cpu_throttled_seconds_total",
                "Time for which the container's CPU quota held it up.",
                seconds(usage.throttled_usec),
            ),
            (
                "nacre_container_oom_kills_total",
                "Processes of the container that were killed for want of memory.",
                float(usage.oom_kills),
            ),
        ] {
            self.counter(name, help, &labels, value);
        }
        for (name, help, value) in [
            (
                "nacre_container_memory_usage_bytes",
                "Memory of the container, with caches.",
                Some(usage.memory),
            ),
            (
                "nacre_container_memory_working_set_bytes",
                "Memory of the container without the files that were not used for a while.",
                Some(usage.memory_working_set),
            ),
            (
                "nacre_container_memory_limit_bytes",
                "Limit of the container's memory, if it has one.",
                usage.memory_limit,
            ),
            (
                "nacre_container_pids",
                "Processes and threads of the container.",
                Some(usage.pids),
            ),
            (
                "nacre_container_pids_limit",
                "Limit of the container's processes and threads, if it has one.",
                usage.pids_limit,
            ),
        ] {
            if let Some(value) = value {
                self.gauge(name, help, &labels, float(value));
            }
        }
    }
}

/// As Prometheus has all numbers; above 2^53 to the nearest one.
fn float(number: u64) -> f64 {
    number as f64
}

fn seconds(usec: u64) -> f64 {
    float(usec) / 1e6
}

#[cfg(test)]
mod tests {
    use super::super::report::{HostProcess, InterfaceReport, PhaseReport, Usage};
    use super::*;

    fn identity(id: &str, name: Option<&str>) -> Identity {
        Identity {
            id: id.into(),
            containerd_namespace: "k8s.io".into(),
            name: name.map(str::to_owned),
            namespace: name.map(|_| "default".to_owned()),
            ..Identity::default()
        }
    }

    fn report() -> Report {
        Report {
            guest_answers: true,
            started_at: Some(1_700_000_000.5),
            phases: vec![PhaseReport {
                name: "kernel entered".into(),
                seconds: 0.25,
            }],
            vcpus: 2,
            memory: 512 << 20,
            memory_resident: Some(48 << 20),
            exits: Some(1234),
            processes: [("shim".to_owned(), HostProcess::default())].into(),
            interfaces: vec![InterfaceReport {
                name: "eth0".into(),
                received_bytes: 5,
                ..InterfaceReport::default()
            }],
            containers: vec![ContainerReport {
                id: "c1".into(),
                name: Some("main".into()),
                status: "running".into(),
                execs: 3,
                usage: Some(Usage {
                    cpu_usec: 1_500_000,
                    memory: 33_554_432,
                    memory_limit: Some(67_108_864),
                    ..Usage::default()
                }),
            }],
            ..Report::default()
        }
    }

    #[test]
    fn samples_say_whose_they_are_in_base_units() {
        let text = exposition(&[(identity("p1", Some("web")), Some(report()))]);
        let pod = r#"pod_id="p1",containerd_namespace="k8s.io",namespace="default",pod="web""#;
        for line in [
            format!("nacre_pod_up{{{pod}}} 1"),
            format!("nacre_pod_start_time_seconds{{{pod}}} 1700000000.5"),
            format!("nacre_pod_start_phase_seconds{{{pod},phase=\"kernel_entered\"}} 0.25"),
            format!("nacre_pod_memory_size_bytes{{{pod}}} 536870912"),
            format!("nacre_pod_network_receive_bytes_total{{{pod},interface=\"eth0\"}} 5"),
            format!("nacre_pod_containers{{{pod},status=\"running\"}} 1"),
            format!("nacre_pod_containers{{{pod},status=\"stopped\"}} 0"),
            format!("nacre_pod_execs{{{pod}}} 3"),
            format!(
                "nacre_container_cpu_seconds_total{{{pod},container_id=\"c1\",container=\"main\"}} 1.5"
            ),
            format!(
                "nacre_container_memory_usage_bytes{{{pod},container_id=\"c1\",container=\"main\"}} \
                 33554432"
            ),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("nacre_container_pids_limit"), "{text}");
        assert!(text.contains("# TYPE nacre_pod_vm_exits_total counter\n"));
        assert!(text.contains("# TYPE nacre_pod_up gauge\n"));
    }

    #[test]
    fn metrics_of_several_pods_are_described_once() {
        let text = exposition(&[
            (identity("p1", None), Some(report())),
            (identity("p2", None), None),
            (identity("p3", None), Some(report())),
        ]);
        let ups: Vec<_> = text
            .lines()
            .filter(|line| line.contains("nacre_pod_up"))
            .collect();
        assert_eq!(
            ups[1..],
            [
                "# TYPE nacre_pod_up gauge",
                r#"nacre_pod_up{pod_id="p1",containerd_namespace="k8s.io"} 1"#,
                r#"nacre_pod_up{pod_id="p2",containerd_namespace="k8s.io"} 0"#,
                r#"nacre_pod_up{pod_id="p3",containerd_namespace="k8s.io"} 1"#,
            ]
        );
        let mut described: Vec<_> = text.lines().filter(|line| line.starts_with('#')).collect();
        let count = described.len();
        described.dedup();
        described.sort_unstable();
        described.dedup();
        assert_eq!(described.len(), count);
    }

    #[test]
    fn names_cannot_break_out_of_their_labels() {
        let text = exposition(&[(identity("a\"} 1\nx{\u{1b}[2J", None), None)]);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn each_metric_is_in_the_documentation() {
        let mut report = report();
        report.memory_available = Some(1);
        let usage = report.containers[0].usage.as_mut().unwrap();
        usage.pids_limit = Some(1);
        let text = exposition(&[(identity("p1", None), Some(report))]);
        let page = include_str!("../../../docs/kubernetes.md");
        let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names: Vec<_> = described
            .filter_map(|line| Some(line.split_once(' ')?.0))
            .collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn no_pods_are_no_metrics() {
        assert_eq!(exposition(&[]), "");
    }
}
