//! Masked comparisons of a seccomp profile, as libcontainer takes them.

use oci_spec::runtime::{LinuxSeccompArgBuilder, LinuxSeccompOperator, Spec};

/// Swaps the values of each `SCMP_CMP_MASKED_EQ`: `(argument & value) == valueTwo`
/// for everybody else, libcontainer takes the second one for the mask. With it,
/// the rule for `clone` in the profiles of engines would match nothing.
pub(in crate::container) fn swap_masks(spec: &mut Spec) {
    let Some(mut linux) = spec.linux().clone() else {
        return;
    };
    let Some(mut profile) = linux.seccomp().clone() else {
        return;
    };
    let Some(mut rules) = profile.syscalls().clone() else {
        return;
    };
    for rule in &mut rules {
        let Some(mut arguments) = rule.args().clone() else {
            continue;
        };
        for argument in &mut arguments {
            let swapped = LinuxSeccompArgBuilder::default()
                .index(argument.index())
                .op(argument.op())
                .value(argument.value_two().unwrap_or(0))
                .value_two(argument.value())
                .build();
            if argument.op() == LinuxSeccompOperator::ScmpCmpMaskedEq
                && let Ok(swapped) = swapped
            {
                *argument = swapped;
            }
        }
        rule.set_args(Some(arguments));
    }
    profile.set_syscalls(Some(rules));
    linux.set_seccomp(Some(profile));
    spec.set_linux(Some(linux));
}
