//! ID-mapped mounts: files of a source that belong to others as its container sees them.
//!
//! The host's mount below the share is what is mapped, so the guest has nothing to do with it:
//! it sees the files as the mapping says, and what it makes there belongs to whom the mapping
//! says.

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use serde_json::Value;

use super::refuse::{find, is_bind, says_something};
use super::{Refusal, Role};
use crate::host::{IdMapping, UserNamespace};

/// Options that ask for a mapping; with the second one, also what is mounted below is mapped.
const OPTIONS: [&str; 2] = ["idmap", "ridmap"];

const BINDS: &str = "only bind mounts can be ID-mapped";
const BOTH: &str = "uidMappings and gidMappings must be given together";
const NONE: &str = "without uidMappings and gidMappings, those of linux are meant, of which \
                    there are none";
const OF_POD: &str = "the pod's shared memory cannot be ID-mapped";

/// Refuses a mapping that cannot be, and half of one.
pub(super) fn check(spec: &Value, role: Role) -> Result<(), Refusal> {
    let has = |value: &Value, key| value.get(key).is_some_and(says_something);
    let linux = spec.get("linux").unwrap_or(&Value::Null);
    for (field, mount) in find(spec, "mounts[*]") {
        let (uids, gids) = (has(mount, "uidMappings"), has(mount, "gidMappings"));
        let option = find(mount, "options[*]").find(|(_, option)| {
            let option = option.as_str();
            option.is_some_and(|option| OPTIONS.contains(&option))
        });
        let asked = match option {
            Some((option, _)) => option,
            None if uids => "uidMappings".to_owned(),
            None if gids => "gidMappings".to_owned(),
            None => continue,
        };
        let is_shm = mount.get("destination").and_then(Value::as_str) == Some("/dev/shm");
        let wrong = match (uids, gids) {
            _ if !is_bind(mount) => BINDS,
            _ if role != Role::Alone && is_shm => OF_POD,
            (true, true) => continue,
            (false, false) if has(linux, "uidMappings") && has(linux, "gidMappings") => continue,
            (false, false) => NONE,
            _ => BOTH,
        };
        return Err(Refusal::new(format!("{field}.{asked}"), wrong));
    }
    Ok(())
}

/// The users of a mount that was accepted, if it is ID-mapped.
pub(super) fn users_of(
    mount: &Mount,
    field: &str,
    spec: &Spec,
) -> Result<Option<UserNamespace>, Refusal> {
    let own = (
        mount.uid_mappings().as_deref().unwrap_or_default(),
        mount.gid_mappings().as_deref().unwrap_or_default(),
    );
    let has_option = |wanted: &str| {
        let options = mount.options().as_deref().unwrap_or_default();
        options.iter().any(|option| option == wanted)
    };
    let (uids, gids) = match spec.linux() {
        _ if !own.0.is_empty() => own,
        Some(linux) if OPTIONS.into_iter().any(has_option) => (
            linux.uid_mappings().as_deref().unwrap_or_default(),
            linux.gid_mappings().as_deref().unwrap_or_default(),
        ),
        _ => return Ok(None),
    };
    let users = UserNamespace::new(&mapping(uids), &mapping(gids), has_option("ridmap"));
    let users = users.map_err(|error| {
        Refusal::new(
            field,
            format!("uidMappings and gidMappings: {error}: they must be ranges without overlap"),
        )
    })?;
    Ok(Some(users))
}

/// Leaves out of a guest's mount what the host has done.
pub(super) fn drop(mount: &mut Mount) {
    mount.set_uid_mappings(None).set_gid_mappings(None);
    if let Some(options) = mount.options_mut() {
        options.retain(|option| !OPTIONS.contains(&option.as_str()));
    }
}

fn mapping(mappings: &[LinuxIdMapping]) -> Vec<IdMapping> {
    let mapping = |mapping: &LinuxIdMapping| IdMapping {
        source: mapping.container_id(),
        seen: mapping.host_id(),
        count: mapping.size(),
    };
    mappings.iter().map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_one(mount: &Value, linux: &Value) -> Option<String> {
        let mut whole = json!({ "destination": "/x", "type": "bind", "source": "/y" });
        for (key, value) in mount.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let checked = check(&json!({ "mounts": [whole], "linux": linux }), Role::Alone);
        checked.err().map(|refusal| refusal.field)
    }

    #[test]
    fn a_mapping_is_whole_of_a_bind_mount_and_somebodys() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
        let users = json!({ "uidMappings": map, "gidMappings": map });
        let none = json!({});
        for (mount, linux, refused) in [
            (json!({}), &users, None),
            (users.clone(), &none, None),
            (json!({ "options": ["idmap"] }), &users, None),
            (json!({ "options": ["ro", "ridmap"] }), &users, None),
            (
                json!({ "options": ["ro", "ridmap"] }),
                &none,
                Some("mounts[0].options[1]"),
            ),
            (
                json!({ "uidMappings": map }),
                &users,
                Some("mounts[0].uidMappings"),
            ),
            (
                json!({ "gidMappings": map, "uidMappings": [] }),
                &none,
                Some("mounts[0].gidMappings"),
            ),
            (
                json!({ "type": "tmpfs", "options": ["idmap"] }),
                &users,
                Some("mounts[0].options[0]"),
            ),
            (
                json!({ "type": "tmpfs", "uidMappings": map, "gidMappings": map }),
                &none,
                Some("mounts[0].uidMappings"),
            ),
        ] {
            let field = check_one(&mount, linux);
            assert_eq!(field.as_deref(), refused, "{mount} {linux}");
        }
    }

    #[test]
    fn the_memory_of_a_pod_is_not_one_containers_to_map() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
        let spec = json!({ "mounts": [{ "destination": "/dev/shm", "type": "bind",
            "source": "/y", "uidMappings": map, "gidMappings": map }] });
        assert_eq!(check(&spec, Role::Alone), Ok(()));
        let refused = check(&spec, Role::Member).unwrap_err();
        assert_eq!(refused.field, "mounts[0].uidMappings");
    }

    #[test]
    fn the_guest_is_told_nothing_of_it() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
        let mut mount: Mount = serde_json::from_value(json!({ "destination": "/x",
            "options": ["idmap", "ro"], "uidMappings": map, "gidMappings": map }))
        .unwrap();
        drop(&mut mount);
        assert_eq!(
            serde_json::to_value(&mount).unwrap(),
            json!({ "destination": "/x", "options": ["ro"] })
        );
    }
}
