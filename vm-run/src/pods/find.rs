//! Which pods there are, and what they say.

use std::time::Duration;

use nacre_pod::status::{self, Identity, Known, Report};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::PodsError;

/// All pods of this host.
pub(super) fn all() -> Result<Vec<Known>, PodsError> {
    status::entries().map_err(|source| PodsError::List { source })
}

/// The one that is meant by `word`.
pub(super) fn one(word: &str) -> Result<Known, PodsError> {
    choose(all()?, word)
}

fn choose(pods: Vec<Known>, word: &str) -> Result<Known, PodsError> {
    let meant = |known: &Known| known.identity.is_meant_by(word);
    let mut meant: Vec<_> = pods.into_iter().filter(meant).collect();
    // One whole identifier may be the beginning of another.
    if let [exact] = meant
        .iter()
        .filter(|known| known.identity.id == word)
        .cloned()
        .collect::<Vec<_>>()
        .as_slice()
    {
        return Ok(exact.clone());
    }
    match meant.len() {
        0 => Err(PodsError::Missing(word.to_owned())),
        1 => Ok(meant.remove(0)),
        _ => {
            let pods = meant.iter().map(|known| {
                let Identity {
                    id,
                    containerd_namespace,
                    ..
                } = &known.identity;
                format!("{id} (containerd's namespace {containerd_namespace})")
            });
            Err(PodsError::Ambiguous {
                word: word.to_owned(),
                pods: pods.collect::<Vec<_>>().join(", "),
            })
        }
    }
}

/// Asks a pod.
pub(super) async fn ask(pod: &Known, path: &str, limit: Duration) -> Result<Vec<u8>, PodsError> {
    let asked = status::ask(&pod.socket, path, limit).await;
    asked.map_err(|source| PodsError::Silent {
        pod: pod.identity.id.clone(),
        source,
    })
}

/// Asks a pod for what it says in JSON.
pub(super) async fn ask_json<T: DeserializeOwned>(
    pod: &Known,
    path: &str,
    limit: Duration,
) -> Result<T, PodsError> {
    let answer = ask(pod, path, limit).await?;
    serde_json::from_slice(&answer).map_err(|_| PodsError::Nonsense(pod.identity.id.clone()))
}

/// What each pod says of itself, in their order; all are asked at the same time, and none is
/// waited for longer than `limit`.
pub(super) async fn reports(
    pods: Vec<Known>,
    limit: Duration,
) -> Vec<(Identity, Result<Report, PodsError>)> {
    let mut asked = JoinSet::new();
    for (position, pod) in pods.into_iter().enumerate() {
        asked.spawn(async move {
            let report = ask_json(&pod, status::REPORT, limit).await;
            (position, pod.identity, report)
        });
    }
    let mut reports = asked.join_all().await;
    reports.sort_by_key(|(position, ..)| *position);
    reports
        .into_iter()
        .map(|(_, identity, report)| (identity, report))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(ids: &[&str]) -> Vec<Known> {
        let known = |id: &&str| Known {
            identity: Identity {
                id: (*id).to_owned(),
                ..Identity::default()
            },
            socket: "/nowhere/socket".into(),
        };
        ids.iter().map(known).collect()
    }

    #[test]
    fn a_pod_is_found_by_as_much_of_its_identifier_as_it_takes() {
        let id = |ids, word| choose(pods(ids), word).map(|known| known.identity.id);
        assert_eq!(id(&["abc", "abd", "x"], "abd").unwrap(), "abd");
        assert_eq!(id(&["abc", "abd", "x"], "x").unwrap(), "x");
        assert_eq!(id(&["web", "web-2"], "web").unwrap(), "web");
        let error = id(&["abc", "abd"], "ab").unwrap_err().to_string();
        assert!(
            error.contains("abc (") && error.contains("abd ("),
            "{error}"
        );
        let error = id(&["abc"], "z").unwrap_err().to_string();
        assert!(error.contains("no pod \"z\""), "{error}");
    }

    #[tokio::test]
    async fn a_pod_that_is_dead_has_its_place_among_the_others() {
        let reports = reports(pods(&["a", "b"]), Duration::from_secs(1)).await;
        let ids: Vec<_> = reports.iter().map(|(identity, _)| &identity.id).collect();
        assert_eq!(ids, ["a", "b"]);
        assert!(reports.iter().all(|(_, report)| report.is_err()));
    }
}
