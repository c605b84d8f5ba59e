//! `pods`: which there are.

use std::time::{SystemTime, UNIX_EPOCH};

use nacre_pod::status::{Identity, Report};
use nacre_pod::text;
use serde_json::json;

use super::cli::PodsArgs;
use super::{PodsError, find, print};
use crate::oci::cli::ListFormat;

/// Stands for what is not known.
const UNKNOWN: &str = "-";

pub(super) async fn pods(args: &PodsArgs) -> Result<(), PodsError> {
    let reports = find::reports(find::all()?, args.patience.limit()).await;
    let pods: Vec<_> = reports
        .into_iter()
        .map(|(identity, report)| (identity, report.ok()))
        .collect();
    match args.format {
        ListFormat::Table => print(&table(&pods, SystemTime::now())),
        ListFormat::Json => print(&format!("{}\n", as_json(&pods))),
    }
}

fn as_json(pods: &[(Identity, Option<Report>)]) -> serde_json::Value {
    let pods = pods.iter().map(|(identity, report)| {
        json!({
            "id": identity.id,
            "containerdNamespace": identity.containerd_namespace,
            "namespace": identity.namespace,
            "name": identity.name,
            "uid": identity.uid,
            "shimPid": identity.shim_pid,
            "state": state(report.as_ref()),
            "vcpus": report.as_ref().map(|report| report.vcpus),
            "memoryBytes": report.as_ref().map(|report| report.memory),
            "startedAt": report.as_ref().and_then(|report| report.started_at),
            "containers": report.as_ref().map(|report| {
                let containers = report.containers.iter();
                let containers = containers.map(|container| {
                    json!({
                        "id": container.id, "name": container.name, "status": container.status
                    })
                });
                containers.collect::<Vec<_>>()
            }),
        })
    });
    pods.collect()
}

/// Its state, also of one that does not answer.
fn state(report: Option<&Report>) -> &'static str {
    match report {
        None => "unresponsive",
        Some(report) => report.state.name(),
    }
}

fn table(pods: &[(Identity, Option<Report>)], now: SystemTime) -> String {
    const TITLES: [&str; 9] = [
        "ID",
        "CONTAINERD",
        "NAMESPACE",
        "NAME",
        "STATE",
        "CONTAINERS",
        "VCPUS",
        "MEMORY",
        "AGE",
    ];
    let mut rows = vec![TITLES.map(str::to_owned)];
    rows.extend(pods.iter().map(|(identity, report)| {
        let told = |told: &dyn Fn(&Report) -> String| match report {
            Some(report) => told(report),
            None => UNKNOWN.to_owned(),
        };
        let name = |name: &Option<String>| match name {
            Some(name) => text::one_line(name),
            None => UNKNOWN.to_owned(),
        };
        [
            text::one_line(&identity.id),
            text::one_line(&identity.containerd_namespace),
            name(&identity.namespace),
            name(&identity.name),
            state(report.as_ref()).to_owned(),
            told(&|report| report.containers.len().to_string()),
            told(&|report| report.vcpus.to_string()),
            told(&|report| format!("{}M", report.memory >> 20)),
            told(&|report| {
                let age = report.started_at.map(|started| age(started, now));
                age.unwrap_or_else(|| UNKNOWN.to_owned())
            }),
        ]
    }));
    columns(&rows)
}

/// Rows with each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    const GAP: usize = 3;
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + GAP);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago `started`, in seconds since the epoch, was: in its largest unit.
fn age(started: f64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = (now.as_secs_f64() - started).max(0.0);
    for (unit, length) in [("d", 86_400.0), ("h", 3_600.0), ("m", 60.0)] {
        if seconds >= 2.0 * length {
            return format!("{:.0}{unit}", (seconds / length).floor());
        }
    }
    format!("{:.0}s", seconds.floor())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nacre_pod::status::State;

    use super::*;

    fn two_pods() -> Vec<(Identity, Option<Report>)> {
        let identity = |id: &str, name: Option<&str>| Identity {
            id: id.into(),
            containerd_namespace: "k8s.io".into(),
            name: name.map(str::to_owned),
            ..Identity::default()
        };
        let report = Report {
            state: State::Running,
            started_at: Some(1000.0),
            vcpus: 2,
            memory: 512 << 20,
            ..Report::default()
        };
        vec![
            (identity("a", Some("web\u{1b}[2J")), Some(report)),
            (identity("b", None), None),
        ]
    }

    #[test]
    fn a_pod_that_does_not_answer_is_in_the_list_all_the_same() {
        let now = UNIX_EPOCH + Duration::from_secs(1090);
        let table = table(&two_pods(), now);
        let rows: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let a = [
            "a",
            "k8s.io",
            "-",
            "web\\u{1b}[2J",
            "running",
            "0",
            "2",
            "512M",
            "90s",
        ];
        assert_eq!(rows[1], a);
        assert_eq!(rows[2][..6], ["b", "k8s.io", "-", "-", "unresponsive", "-"]);
    }

    #[test]
    fn the_list_is_json_for_programs() {
        let list = as_json(&two_pods());
        assert_eq!(list[0]["state"], "running");
        assert_eq!(list[0]["memoryBytes"], 512 << 20);
        assert_eq!(list[1]["state"], "unresponsive");
        assert!(list[1]["vcpus"].is_null());
        assert_eq!(as_json(&[]), json!([]));
    }

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (ago, told) in [
            (0.0, "0s"),
            (119.0, "119s"),
            (121.0, "2m"),
            (7_300.0, "2h"),
            (200_000.0, "2d"),
            (-5.0, "0s"),
        ] {
            assert_eq!(age(1_000_000.0 - ago, now), told);
        }
    }
}
