//! The `process` of a further process in a container, checked and translated for
//! the guest as that of a bundle is.

use oci_spec::runtime::Process;
use serde_json::{Value, json};

use super::{Refusal, refuse, typed};

/// Translates `process`, JSON as in the specification's `process`.
///
/// # Errors
/// The first field that cannot be honoured.
pub(crate) fn for_guest(process: &[u8]) -> Result<Vec<u8>, Refusal> {
    let not_json = |error: serde_json::Error| Refusal::new("process", error.to_string());
    let process: Value = serde_json::from_slice(process).map_err(not_json)?;
    let mut spec = json!({ "process": process });
    refuse::check_process(&spec)?;
    let process = &mut spec["process"];
    if let Some(fields) = process.as_object_mut() {
        fields.remove("apparmorProfile");
        fields.remove("selinuxLabel");
    }
    typed::fit_process(process);
    let process: Process = typed::read(process, "process")?;
    serde_json::to_vec(&process).map_err(not_json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate(process: &Value) -> Result<Value, Refusal> {
        let text = for_guest(process.to_string().as_bytes())?;
        Ok(serde_json::from_slice(&text).unwrap())
    }

    #[test]
    fn a_process_is_refused_by_the_field_as_a_bundle_is() {
        let field = |process: Value| translate(&process).unwrap_err().field;
        assert_eq!(field(json!({ "cwd": "/", "args": [] })), "process.args");
        assert_eq!(field(json!({ "cwd": "tmp", "args": ["x"] })), "process.cwd");
        assert_eq!(
            field(json!({ "cwd": "/", "args": ["x"], "apparmorProfile": "strict" })),
            "process.apparmorProfile"
        );
        assert_eq!(for_guest(b"{").unwrap_err().field, "process");
    }

    #[test]
    fn an_engines_own_profile_and_label_are_left_out() {
        let process = json!({
            "cwd": "/", "args": ["x"], "apparmorProfile": "cri-containerd.apparmor.d",
            "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2"
        });
        let expected = json!({ "cwd": "/", "args": ["x"], "user": { "uid": 0, "gid": 0 } });
        assert_eq!(translate(&process), Ok(expected));
    }
}
