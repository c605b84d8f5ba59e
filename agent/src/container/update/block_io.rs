//! `linux.resources.blockIO` in cgroup version 2: a share of the guest's disks.

use oci_spec::runtime::LinuxBlockIo;

use super::plan::{Write, invalid};
use crate::error::Error;

const FIELD: &str = "linux.resources.blockIO";

/// Weights of version 1.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Adds the writes for `block_io`.
pub(super) fn plan(block_io: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<(), Error> {
    let mut others = block_io.clone();
    // Zero stands for "left out" in requests of engines.
    let weight = others.weight().filter(|weight| *weight != 0);
    others.set_weight(None);
    if says_something(&others) {
        return Err(invalid(FIELD, "names devices of the host"));
    }
    let Some(weight) = weight else {
        return Ok(());
    };
    let field = format!("{FIELD}.weight");
    if !WEIGHTS.contains(&weight) {
        return Err(invalid(&field, "must be from 10 to 1000"));
    }
    writes.push(Write::new(&field, "io.weight", in_version_2(weight)));
    Ok(())
}

/// Weight of a weight: 10 is 1 and 1000 is 10000, with the line between them that engines use.
fn in_version_2(weight: u16) -> String {
    let above = u32::from(weight.saturating_sub(*WEIGHTS.start()));
    (1 + above * 9999 / 990).to_string()
}

/// Engines write the field without anything in it.
fn says_something(block_io: &LinuxBlockIo) -> bool {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(block_io) else {
        return true;
    };
    let means_nothing = |value: &serde_json::Value| {
        value.is_null() || *value == 0 || value.as_array().is_some_and(Vec::is_empty)
    };
    !fields.values().all(means_nothing)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(block_io: Value) -> Result<Vec<String>, String> {
        let block_io = serde_json::from_value(block_io).unwrap();
        let mut writes = Vec::new();
        plan(&block_io, &mut writes).map_err(|error| error.to_string())?;
        let write = |write: Write| format!("{}={}", write.file, write.value);
        Ok(writes.into_iter().map(write).collect())
    }

    #[test]
    fn a_weight_is_that_of_version_2() {
        for (weight, expected) in [(10, 1), (500, 4950), (1000, 10_000)] {
            let writes = planned(json!({ "weight": weight })).unwrap();
            assert_eq!(writes, [format!("io.weight={expected}")]);
        }
        let nothing = json!({ "weight": 0, "weightDevice": [] });
        assert_eq!(planned(nothing).unwrap(), [""; 0]);
    }

    #[test]
    fn other_fields_and_weights_of_nothing_are_refused() {
        for (block_io, field) in [
            (json!({ "weight": 9 }), "blockIO.weight"),
            (json!({ "weight": 1001 }), "blockIO.weight"),
            (json!({ "weight": 10, "leafWeight": 10 }), "blockIO"),
        ] {
            let error = planned(block_io).unwrap_err();
            let named = format!("linux.resources.{field}: ");
            assert!(error.starts_with(&named), "{error}");
        }
    }
}
