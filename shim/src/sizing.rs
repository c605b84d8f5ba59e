//! How large a pod's guest is.
//!
//! It is decided once, before the boot: CRI says in the sandbox's annotations
//! what all of a pod's containers together may use, and a container alone says
//! it by its own limits. Memory that is not touched costs the host nothing but
//! the guest kernel's bookkeeping, so a pod that may grow is born as large as it
//! will ever be, with those CPUs offline that it does not need yet.

use nacre_pod::boot::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use nacre_pod::spec::Bundle;

use crate::annotations::{
    self, Annotations, MAX_MEMORY, MEMORY, SANDBOX_CPU_PERIOD, SANDBOX_CPU_QUOTA, SANDBOX_MEMORY,
    VCPUS,
};
use crate::config::Config;
use crate::failure::Failure;

/// Period of a CPU quota that names none, microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// What a pod's containers may use in all.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// CPUs, rounded up.
    pub(crate) cpus: Option<u64>,
}

/// The guest of a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size {
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u8,
    /// vCPUs that are online from the start.
    pub(crate) cpus_online: u8,
}

impl Limits {
    /// The limits of a CPU quota, its period and memory, where 0 and less are none.
    pub(crate) fn new(quota: i64, period: i64, memory: i64) -> Self {
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        let period = positive(period).unwrap_or(DEFAULT_PERIOD);
        Self {
            memory: positive(memory),
            cpus: positive(quota).map(|quota| quota.div_ceil(period)),
        }
    }

    /// What CRI says of the pod.
    fn of_sandbox(annotations: &Annotations) -> Result<Self, Failure> {
        let [quota, period, memory] = [SANDBOX_CPU_QUOTA, SANDBOX_CPU_PERIOD, SANDBOX_MEMORY]
            .map(|name| number(annotations, name));
        Ok(Self::new(
            quota?.unwrap_or(0),
            period?.unwrap_or(0),
            memory?.unwrap_or(0),
        ))
    }

    /// What the container itself may use.
    pub(crate) fn of_container(bundle: &Bundle) -> Self {
        Self {
            memory: bundle.memory_limit(),
            cpus: bundle.cpu_limit(),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            cpus: self.cpus.or(other.cpus),
        }
    }
}

impl Size {
    /// By Nacre's annotations where they are allowed, else by CRI's, else by
    /// `fallback`, else as configured.
    pub(crate) fn choose(
        config: &Config,
        annotations: &Annotations,
        fallback: Limits,
    ) -> Result<Self, Failure> {
        let limits = Limits::of_sandbox(annotations)?.or(fallback);
        let memory_mib = match own(config, annotations, MEMORY, MIN_MEMORY_MIB, MAX_MEMORY_MIB)? {
            Some(memory) => memory,
            None => match limits.memory {
                Some(limit) => limit
                    .div_ceil(1 << 20)
                    .saturating_add(config.overhead_memory_mib)
                    .clamp(MIN_MEMORY_MIB, MAX_MEMORY_MIB),
                None => config.default_memory_mib,
            },
        };
        let vcpus = match own(config, annotations, VCPUS, 1, MAX_VCPUS.into())? {
            Some(vcpus) => vcpus,
            None => limits.cpus.unwrap_or(config.default_vcpus.into()),
        };
        let cpus_online = u8::try_from(vcpus.max(1)).map_or(MAX_VCPUS, |n| n.min(MAX_VCPUS));
        let room = Room::choose(config, annotations)?;
        Ok(Self {
            memory_mib: memory_mib.max(room.memory_mib),
            vcpus: cpus_online.max(room.vcpus),
            cpus_online,
        })
    }
}

/// What a pod may grow to while it runs; less than its size is none.
struct Room {
    memory_mib: u64,
    vcpus: u8,
}

impl Room {
    /// By Nacre's annotations where they are allowed, else as configured.
    fn choose(config: &Config, annotations: &Annotations) -> Result<Self, Failure> {
        let max = |name, min, max| own(config, annotations, name, min, max);
        let memory_mib = max(MAX_MEMORY, MIN_MEMORY_MIB, MAX_MEMORY_MIB)?;
        let vcpus = max(annotations::MAX_VCPUS, 1, MAX_VCPUS.into())?;
        Ok(Self {
            memory_mib: memory_mib.unwrap_or(config.max_memory_mib),
            vcpus: vcpus.map_or(config.max_vcpus, |n| u8::try_from(n).unwrap_or(MAX_VCPUS)),
        })
    }
}

/// A number that the pod itself asks for.
fn own(
    config: &Config,
    annotations: &Annotations,
    name: &str,
    min: u64,
    max: u64,
) -> Result<Option<u64>, Failure> {
    let Some(value) = number(annotations, name)? else {
        return Ok(None);
    };
    if !config.allows(name) {
        let message = format!("annotation {name}: pod_annotations in the configuration lacks it");
        return Err(Failure::invalid_argument(message));
    }
    match u64::try_from(value) {
        Ok(value) if (min..=max).contains(&value) => Ok(Some(value)),
        _ => {
            let message = format!("annotation {name}: {value}: must be {min} to {max}");
            Err(Failure::invalid_argument(message))
        }
    }
}

fn number(annotations: &Annotations, name: &str) -> Result<Option<i64>, Failure> {
    let Some(text) = annotations.get(name) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(error) => {
            let message = format!("annotation {name}: {text:?}: {error}");
            Err(Failure::invalid_argument(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(pairs: &[(&str, &str)], fallback: Limits) -> Result<Size, Failure> {
        let annotations = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Size::choose(&Config::default(), &annotations, fallback)
    }

    #[test]
    fn a_pod_without_limits_is_as_configured() {
        let size = size(&[], Limits::default()).unwrap();
        assert_eq!(
            size,
            Size {
                memory_mib: 512,
                vcpus: 1,
                cpus_online: 1
            }
        );
    }

    #[test]
    fn a_pod_gets_its_limits_and_the_overhead() {
        let size = size(
            &[
                (SANDBOX_CPU_QUOTA, "250000"),
                (SANDBOX_CPU_PERIOD, "100000"),
                (SANDBOX_MEMORY, "268435456"),
            ],
            Limits::new(100_000, 100_000, 1 << 30),
        )
        .unwrap();
        assert_eq!(
            size,
            Size {
                memory_mib: 256 + 128,
                vcpus: 3,
                cpus_online: 3
            }
        );
    }

    #[test]
    fn zero_and_less_are_no_limit() {
        let zero = [(SANDBOX_CPU_QUOTA, "-1"), (SANDBOX_MEMORY, "0")];
        let container = Limits::new(150_000, 0, 64 << 20);
        let size = size(&zero, container).unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (64 + 128, 2));
    }

    #[test]
    fn what_a_pod_asks_for_itself_comes_first() {
        let asked = [(MEMORY, "1024"), (VCPUS, "4"), (SANDBOX_MEMORY, "1048576")];
        let size = size(&asked, Limits::default()).unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (1024, 4));
    }

    #[test]
    fn limits_beyond_a_guests_are_cut() {
        let size = size(
            &[(SANDBOX_MEMORY, "9223372036854775807")],
            Limits::new(i64::MAX, 1, 0),
        );
        let size = size.unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (MAX_MEMORY_MIB, MAX_VCPUS));
    }

    #[test]
    fn a_pod_that_may_grow_is_born_large_with_the_cpus_offline_that_it_does_not_need() {
        let asked = [
            (SANDBOX_MEMORY, "268435456"),
            (SANDBOX_CPU_QUOTA, "200000"),
            (MAX_MEMORY, "2048"),
            (annotations::MAX_VCPUS, "8"),
        ];
        let grows = Size {
            memory_mib: 2048,
            vcpus: 8,
            cpus_online: 2,
        };
        assert_eq!(size(&asked, Limits::default()).unwrap(), grows);
        let config = Config {
            max_memory_mib: 1024,
            max_vcpus: 4,
            ..Config::default()
        };
        let size = Size::choose(&config, &Annotations::default(), Limits::default()).unwrap();
        assert_eq!(
            (size.memory_mib, size.vcpus, size.cpus_online),
            (1024, 4, 1)
        );
    }

    #[test]
    fn less_room_than_its_size_takes_nothing_from_a_pod() {
        let asked = [
            (MEMORY, "1024"),
            (VCPUS, "4"),
            (MAX_MEMORY, "64"),
            (annotations::MAX_VCPUS, "1"),
        ];
        let size = size(&asked, Limits::default()).unwrap();
        assert_eq!(
            (size.memory_mib, size.vcpus, size.cpus_online),
            (1024, 4, 4)
        );
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (name, value) in [
            (SANDBOX_MEMORY, "much"),
            (MEMORY, "1"),
            (MEMORY, "-5"),
            (VCPUS, "1000"),
            (VCPUS, "two"),
            (MAX_MEMORY, "0"),
            (annotations::MAX_VCPUS, "33"),
        ] {
            let failure = size(&[(name, value)], Limits::default()).unwrap_err();
            assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT);
            assert!(failure.message.contains(name), "{failure}");
        }
    }

    #[test]
    fn an_annotation_that_is_not_allowed_is_refused() {
        let config = Config {
            pod_annotations: vec![VCPUS.to_owned()],
            ..Config::default()
        };
        let annotations = [(MEMORY.to_owned(), "1024".to_owned())].into();
        let failure = Size::choose(&config, &annotations, Limits::default()).unwrap_err();
        assert!(failure.message.contains("pod_annotations"), "{failure}");
    }
}
