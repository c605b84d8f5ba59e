//! `linux.resources.cpu` in cgroup version 2.

use oci_spec::runtime::LinuxCpu;

use super::plan::{Current, Write, invalid};
use crate::error::Error;

const QUOTA: &str = "linux.resources.cpu.quota";
const BURST: &str = "linux.resources.cpu.burst";
const CPU_MAX: &str = "cpu.max";

/// Microseconds of a period when nobody says, as in the kernel.
const USUAL_PERIOD: &str = "100000";

/// Adds the writes for `cpu`.
pub(super) fn plan(
    cpu: &LinuxCpu,
    current: Current<'_>,
    writes: &mut Vec<Write>,
) -> Result<(), Error> {
    for (present, field, reason) in [
        (is_given(cpu.cpus()), "cpus", "numbers CPUs of the host"),
        (is_given(cpu.mems()), "mems", "numbers nodes of the host"),
        (
            cpu.realtime_runtime().is_some_and(|runtime| runtime != 0),
            "realtimeRuntime",
            "is of cgroup version 1",
        ),
        (
            cpu.realtime_period().is_some_and(|period| period != 0),
            "realtimePeriod",
            "is of cgroup version 1",
        ),
    ] {
        if present {
            return Err(invalid(&format!("linux.resources.cpu.{field}"), reason));
        }
    }
    // A cgroup that is idle has no weight, so that this comes first.
    if let Some(idle) = cpu.idle() {
        let field = "linux.resources.cpu.idle";
        writes.push(Write::new(field, "cpu.idle", idle.to_string()));
    }
    if let Some(weight) = cpu.shares().and_then(weight)
        && cpu.idle() != Some(1)
    {
        let field = "linux.resources.cpu.shares";
        writes.push(Write::new(field, "cpu.weight", weight.to_string()));
    }
    plan_quota(cpu, current, writes)
}

fn is_given(list: &Option<String>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

/// Quota and burst. A burst is at most the quota, at each moment: it grows after
/// the quota, and shrinks before it.
fn plan_quota(cpu: &LinuxCpu, current: Current<'_>, writes: &mut Vec<Write>) -> Result<(), Error> {
    let max = cpu_max(cpu, current)?.map(|value| Write::new(QUOTA, CPU_MAX, value));
    let Some(burst) = cpu.burst() else {
        writes.extend(max);
        return Ok(());
    };
    let before = current("cpu.max.burst").and_then(|burst| burst.trim().parse::<u64>().ok());
    let burst_write = Write::new(BURST, "cpu.max.burst", burst.to_string());
    if before.is_some_and(|before| burst < before) {
        writes.push(burst_write);
        writes.extend(max);
    } else {
        writes.extend(max);
        writes.push(burst_write);
    }
    Ok(())
}

/// The line of `cpu.max`: quota and period, each as it is when it is left out.
fn cpu_max(cpu: &LinuxCpu, current: Current<'_>) -> Result<Option<String>, Error> {
    // Zero stands for "left out" in requests of engines.
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_none() && period.is_none() {
        return Ok(None);
    }
    let now = current(CPU_MAX).unwrap_or_default();
    let (quota_now, period_now) = now.trim().split_once(' ').unwrap_or(("max", USUAL_PERIOD));
    let quota = match quota {
        None => quota_now.to_owned(),
        Some(quota @ 1..) => quota.to_string(),
        Some(_) => "max".to_owned(),
    };
    let period = period.map_or_else(|| period_now.to_owned(), |period| period.to_string());
    Ok(Some(format!("{quota} {period}")))
}

/// Weight of shares: 2 is 1, 1024 is 100 and 262144 is 10000, with the curve
/// between them that engines use. `None` for 0, which means "left out".
fn weight(shares: u64) -> Option<u64> {
    const LEAST: u64 = 2;
    const MOST: u64 = 262_144;
    if shares == 0 {
        return None;
    }
    let shares = shares.clamp(LEAST, MOST);
    // Up to 262144 a float is exact.
    let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // The curve is a little off at its ends.
    let weight = 10f64.powf(exponent).ceil().clamp(1.0, 10_000.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // A whole number from 1 to 10000.
    let weight = weight as u64;
    Some(if shares == LEAST { 1 } else { weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_usual_and_most_shares_have_the_kernels_weights() {
        assert_eq!(weight(0), None);
        for (shares, expected) in [
            (1, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), Some(expected), "{shares}");
        }
        assert!(weight(512) < weight(1024) && weight(1024) < weight(2048));
    }
}
