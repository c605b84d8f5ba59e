//! What a container may use by its limits of memory and CPU, in numbers that can be added up.

use oci_spec::runtime::LinuxResources;

/// Microseconds of a period of a CPU quota that names none.
const USUAL_PERIOD: u64 = 100_000;

/// What a container may use. Files that `unified` names are not looked at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Allowance {
    memory: Option<u64>,
    quota: Option<u64>,
    period: Option<u64>,
}

impl Allowance {
    /// By `linux.resources` of a new container.
    #[must_use]
    pub fn of(resources: &LinuxResources) -> Self {
        Self::default().after(resources)
    }

    /// After an update with these resources. What they leave out stays as it is: a field that
    /// is not there, or 0. Less than 0 is no limit.
    #[must_use]
    pub fn after(self, resources: &LinuxResources) -> Self {
        let memory = resources
            .memory()
            .as_ref()
            .and_then(|memory| memory.limit());
        let cpu = resources.cpu().as_ref();
        let period = cpu.and_then(|cpu| cpu.period());
        Self {
            memory: limit_after(self.memory, memory),
            quota: limit_after(self.quota, cpu.and_then(|cpu| cpu.quota())),
            period: period.filter(|period| *period > 0).or(self.period),
        }
    }

    /// Bytes of memory, if it has a limit.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// Thousandths of a CPU, rounded up, if it has a limit.
    #[must_use]
    pub fn millicpus(&self) -> Option<u64> {
        let period = self.period.unwrap_or(USUAL_PERIOD);
        let quota = self.quota?;
        Some(quota.saturating_mul(1000).div_ceil(period))
    }
}

fn limit_after(now: Option<u64>, update: Option<i64>) -> Option<u64> {
    match update {
        None | Some(0) => now,
        // Less than 0 fits no limit.
        Some(limit) => u64::try_from(limit).ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resources(value: Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    fn allowed(allowance: Allowance) -> (Option<u64>, Option<u64>) {
        (allowance.memory(), allowance.millicpus())
    }

    #[test]
    fn limits_are_what_the_container_may_use() {
        let of = |value| allowed(Allowance::of(&resources(value)));
        assert_eq!(of(json!({})), (None, None));
        let limits = json!({"memory": {"limit": 4096}, "cpu": {"quota": 150_000}});
        assert_eq!(of(limits), (Some(4096), Some(1500)));
        let third = json!({"cpu": {"quota": 1, "period": 3}});
        assert_eq!(of(third), (None, Some(334)));
        let none = json!({"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 1000}});
        assert_eq!(of(none), (None, None));
        let absurd = json!({"cpu": {"quota": i64::MAX, "period": 1}});
        assert_eq!(of(absurd), (None, Some(u64::MAX)));
    }

    #[test]
    fn what_an_update_leaves_out_stays() {
        let limits = json!({"memory": {"limit": 4096}, "cpu": {"quota": 50_000, "period": 50_000}});
        let before = Allowance::of(&resources(limits));
        let after = |value| allowed(before.after(&resources(value)));
        assert_eq!(after(json!({})), (Some(4096), Some(1000)));
        let zeroes = json!({"memory": {"limit": 0}, "cpu": {"quota": 0, "period": 0}});
        assert_eq!(after(zeroes), (Some(4096), Some(1000)));
        assert_eq!(after(json!({"cpu": {"quota": 100_000}})).1, Some(2000));
        assert_eq!(after(json!({"cpu": {"period": 100_000}})).1, Some(500));
        assert_eq!(after(json!({"memory": {"limit": -1}})).0, None);
    }
}
