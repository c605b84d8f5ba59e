//! `linux.resources.memory` in cgroup version 2.

use oci_spec::runtime::LinuxMemory;

use super::plan::{Current, Write, invalid, limit};
use crate::error::Error;

const LIMIT: &str = "linux.resources.memory.limit";
const SWAP: &str = "linux.resources.memory.swap";
const SWAP_MAX: &str = "memory.swap.max";

/// Adds the writes for `memory`.
pub(super) fn plan(
    memory: &LinuxMemory,
    current: Current<'_>,
    writes: &mut Vec<Write>,
) -> Result<(), Error> {
    refuse_version_1(memory)?;
    // Zero stands for "left out" in requests of engines.
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(reservation) = given(memory.reservation()) {
        let field = "linux.resources.memory.reservation";
        writes.push(Write::new(field, "memory.low", limit(field, reservation)?));
    }
    let wanted = given(memory.limit());
    if let Some(swap) = given(memory.swap()) {
        let swap = swap_max(swap, wanted, current)?;
        // Without swapping in the guest there is nothing to limit.
        if current(SWAP_MAX).is_some_and(|now| !now.is_empty()) || swap != "max" && swap != "0" {
            writes.push(Write::new(SWAP, SWAP_MAX, swap));
        }
    }
    let Some(wanted) = wanted else {
        return Ok(());
    };
    if memory.check_before_update() == Some(true) {
        check_use(wanted, current)?;
    }
    writes.push(Write::new(LIMIT, "memory.max", limit(LIMIT, wanted)?));
    Ok(())
}

#[allow(deprecated)] // A field that must be refused must be read.
fn refuse_version_1(memory: &LinuxMemory) -> Result<(), Error> {
    let positive = |value: Option<i64>| value.is_some_and(|value| value > 0);
    for (present, field) in [
        (positive(memory.kernel()), "kernel"),
        (positive(memory.kernel_tcp()), "kernelTCP"),
        (
            memory.swappiness().is_some_and(|value| value > 0),
            "swappiness",
        ),
        (
            memory.disable_oom_killer() == Some(true),
            "disableOOMKiller",
        ),
    ] {
        if present {
            let field = format!("linux.resources.memory.{field}");
            return Err(invalid(&field, "is of cgroup version 1"));
        }
    }
    Ok(())
}

/// Version 1 counts memory and swap together, version 2 swap alone.
fn swap_max(swap: i64, memory: Option<i64>, current: Current<'_>) -> Result<String, Error> {
    if swap == -1 {
        return Ok("max".to_owned());
    }
    let now = || {
        let now = current("memory.max")?;
        now.trim().parse::<i64>().ok()
    };
    let memory = match memory {
        Some(memory) => (memory != -1).then_some(memory),
        None => now(),
    };
    let Some(memory) = memory else {
        return Err(invalid(SWAP, "needs a limit of memory"));
    };
    let only_swap = swap.checked_sub(memory).filter(|only_swap| *only_swap >= 0);
    let Some(only_swap) = only_swap else {
        return Err(invalid(SWAP, "must not be below the limit of memory"));
    };
    Ok(only_swap.to_string())
}

/// For who asks for it: a limit below what is used would kill.
fn check_use(wanted: i64, current: Current<'_>) -> Result<(), Error> {
    let used = current("memory.current").and_then(|used| used.trim().parse::<i64>().ok());
    if wanted != -1 && used.is_some_and(|used| used > wanted) {
        return Err(invalid(LIMIT, "is below what the container uses"));
    }
    Ok(())
}
