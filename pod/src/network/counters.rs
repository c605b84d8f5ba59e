//! What has gone through a pod's network interfaces, as the kernel of the host counts.
//!
//! Interfaces are counted in their namespace, so the thread that stays there is asked.

use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, Stats64};
use tokio::sync::{mpsc, oneshot};

use super::NetworkError;
use super::follow::Attached;
use super::netlink::failed;
use crate::status::InterfaceReport;

/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where to ask for the counters.
#[derive(Clone, Debug)]
pub(crate) struct Counters(mpsc::Sender<Question>);

/// What is asked of the thread in the namespace.
pub(super) type Questions = mpsc::Receiver<Question>;

/// Somebody waits for the counters.
#[derive(Debug)]
pub(super) struct Question(oneshot::Sender<Vec<InterfaceReport>>);

pub(super) fn channel() -> (Counters, Questions) {
    let (sender, questions) = mpsc::channel(1);
    (Counters(sender), questions)
}

impl Counters {
    /// Reads them; empty if they cannot be had.
    pub(crate) async fn read(&self) -> Vec<InterfaceReport> {
        let asked = async {
            let (sender, answer) = oneshot::channel();
            self.0.send(Question(sender)).await.ok()?;
            answer.await.ok()
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        answer.ok().flatten().unwrap_or_default()
    }
}

impl Question {
    /// Answers with the counters of these interfaces.
    pub(super) async fn answer(self, netlink: &Handle, attached: &[&Attached]) {
        match links(netlink).await {
            // Who has asked may be gone.
            Ok(links) => drop(self.0.send(reports(&links, attached))),
            Err(error) => log::debug!("{error}"),
        }
    }
}

async fn links(netlink: &Handle) -> Result<Vec<LinkMessage>, NetworkError> {
    let links = netlink.link().get().execute().try_collect().await;
    links.map_err(failed("read the counters of network interfaces"))
}

fn reports(links: &[LinkMessage], attached: &[&Attached]) -> Vec<InterfaceReport> {
    let report = |attached: &&Attached| {
        let link = links
            .iter()
            .find(|link| link.header.index == attached.index)?;
        let stats = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => Some(stats),
                _ => None,
            })?;
        let name = attached.interface.name.clone();
        Some(InterfaceReport {
            name,
            ..seen_by_the_pod(stats, attached.tap.is_none())
        })
    };
    attached.iter().filter_map(report).collect()
}

/// What a tap receives is what its guest sends.
fn seen_by_the_pod(stats: &Stats64, is_tap: bool) -> InterfaceReport {
    let received = (stats.rx_bytes, stats.rx_packets);
    let sent = (stats.tx_bytes, stats.tx_packets);
    let (received, sent) = match is_tap {
        true => (sent, received),
        false => (received, sent),
    };
    InterfaceReport {
        name: String::new(),
        received_bytes: received.0,
        received_packets: received.1,
        sent_bytes: sent.0,
        sent_packets: sent.1,
    }
}

#[cfg(test)]
mod tests {
    use nacre_protocol::agent::Interface;

    use super::*;

    fn attached(index: u32, tap: Option<u32>, name: &str) -> Attached {
        Attached {
            index,
            tap,
            interface: Interface {
                name: name.into(),
                ..Interface::default()
            },
        }
    }

    fn link(index: u32) -> LinkMessage {
        let mut stats = Stats64::default();
        (stats.rx_bytes, stats.rx_packets) = (10, 1);
        (stats.tx_bytes, stats.tx_packets) = (20, 2);
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::Stats64(stats));
        link
    }

    #[test]
    fn counters_are_told_as_the_pod_sees_them() {
        let (veth, tap) = (attached(2, Some(3), "eth0"), attached(4, None, "tap0"));
        let gone = attached(9, Some(8), "eth1");
        let reports = reports(&[link(1), link(2), link(3), link(4)], &[&veth, &gone, &tap]);
        let seen: Vec<_> = reports
            .iter()
            .map(|report| {
                (
                    report.name.as_str(),
                    report.received_bytes,
                    report.sent_packets,
                )
            })
            .collect();
        assert_eq!(seen, [("eth0", 10, 2), ("tap0", 20, 1)]);
    }

    #[tokio::test]
    async fn without_the_thread_there_are_none() {
        let (counters, questions) = channel();
        drop(questions);
        assert_eq!(counters.read().await, []);
    }
}
