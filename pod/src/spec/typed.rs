//! From JSON to the types of `oci-spec`, with an error that names the field.

use oci_spec::runtime::Capability;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Refusal;

/// Flags of a scheduler that `oci-spec` knows by another name than the specification.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

const CAPABILITY_SETS: [&str; 5] = [
    "bounding",
    "effective",
    "inheritable",
    "permitted",
    "ambient",
];

/// Reads a value whose field is `at`; empty for the whole specification.
pub(super) fn read<T: DeserializeOwned>(value: &Value, at: &str) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = match (at, path.as_str()) {
            ("", ".") => "config.json".to_owned(),
            (at, ".") => at.to_owned(),
            ("", path) => path.to_owned(),
            (at, path) => format!("{at}.{path}"),
        };
        Refusal::new(field, error.inner().to_string())
    })
}

/// Gives what the specification allows in `process` the form that `oci-spec` reads.
/// Capabilities that nobody knows are left out, as the specification wants it.
pub(super) fn fit_process(process: &mut Value) {
    if let Some(fields) = process.as_object_mut() {
        // Who says nothing is root.
        let root = || json!({ "uid": 0, "gid": 0 });
        fields.entry("user").or_insert_with(root);
    }
    let flags = process.pointer_mut("/scheduler/flags");
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        let known = SCHEDULER_FLAGS.iter().find(|(name, _)| *flag == *name);
        if let Some((_, other)) = known {
            *flag = Value::from(*other);
        }
    }
    for set in CAPABILITY_SETS {
        let names = process.pointer_mut(&format!("/capabilities/{set}"));
        if let Some(Value::Array(names)) = names {
            names.retain(|name| is_known_or_no_name(set, name));
        }
    }
}

/// What is no text is left for the types to refuse.
fn is_known_or_no_name(set: &str, name: &Value) -> bool {
    let is_known = !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
    if !is_known {
        log::warn!("process.capabilities.{set}: {name} is not known and is left out");
    }
    is_known
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Process, Spec};

    use super::*;

    fn process(more: &str, value: Value) -> Result<Process, Refusal> {
        let mut process = json!({ "cwd": "/", "args": ["x"], "user": { "uid": 0, "gid": 0 } });
        process[more] = value;
        fit_process(&mut process);
        read(&process, "process")
    }

    #[test]
    fn an_error_names_the_field() {
        let spec = json!({ "ociVersion": "1.2.0", "linux": { "namespaces": [
            { "type": "pid" }, { "type": "moon" }] } });
        let refusal = read::<Spec>(&spec, "").unwrap_err();
        assert_eq!(refusal.field, "linux.namespaces[1].type");
        assert!(refusal.reason.contains("moon"), "{refusal}");
        let refusal = process("rlimits", json!([{ "type": 7 }])).unwrap_err();
        assert_eq!(refusal.field, "process.rlimits[0].type");
        let refusal = read::<Spec>(&json!({ "root": 7 }), "").unwrap_err();
        assert_eq!(refusal.field, "root");
        assert_eq!(
            read::<Spec>(&json!(7), "").unwrap_err().field,
            "config.json"
        );
    }

    #[test]
    fn every_flag_of_a_scheduler_is_known_by_the_specifications_name() {
        let flags = [
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX",
        ];
        let process = process(
            "scheduler",
            json!({ "policy": "SCHED_OTHER", "flags": flags }),
        );
        let process = process.unwrap();
        let read = process.scheduler().as_ref().unwrap().flags().as_ref();
        assert_eq!(read.unwrap().len(), flags.len());
    }

    #[test]
    fn capabilities_of_other_kernels_are_left_out() {
        let process = process(
            "capabilities",
            json!({ "bounding": ["CAP_KILL", "CAP_OF_THE_FUTURE"], "effective": ["KILL"] }),
        );
        let process = process.unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    }
}
