//! Commands and specifications that cannot be run.

use std::os::unix::fs::symlink;

use nacre_protocol::agent::{CreateContainerRequest, Stdio};
use serde_json::json;
use ttrpc::Code;

use crate::Check;
use crate::guest::{Guest, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("a_missing_command_is_told_at_create", missing_command),
        (
            "a_file_that_may_not_be_executed_is_told_at_create",
            not_executable,
        ),
        ("a_command_on_a_mount_is_found", command_on_mount),
        (
            "a_failed_execution_is_told_at_start_and_by_the_status",
            late_failures,
        ),
        (
            "what_cannot_be_honoured_is_refused_by_name",
            refused_by_name,
        ),
        ("broken_json_is_refused", broken_json),
        ("a_missing_root_or_source_is_named", missing_paths),
        (
            "a_mount_point_that_a_read_only_root_lacks_is_named",
            missing_mount_point,
        ),
        ("a_link_in_the_share_does_not_lead_out_of_it", planted_links),
        ("a_stream_that_was_not_opened_is_named", missing_stream),
        ("the_terminal_must_agree", terminal_disagrees),
        ("a_failed_create_frees_the_identifier", identifier_is_freed),
    ]
}

fn missing_command(guest: &Guest) {
    for (command, message) in [
        (
            "nope",
            r#"exec: "nope": executable file not found in $PATH"#,
        ),
        (
            "/bin/nope",
            r#"exec: "/bin/nope": no such file or directory"#,
        ),
        ("./nope", r#"exec: "./nope": no such file or directory"#),
    ] {
        let error = guest.create("c", &spec(&[command])).err().unwrap();
        error.expect(Code::INVALID_ARGUMENT, message);
    }
}

fn not_executable(guest: &Guest) {
    guest.add_file("bin/data", "text", 0o644);
    for (command, message) in [
        ("/bin/data", r#"exec: "/bin/data": permission denied"#),
        ("data", r#"exec: "data": permission denied"#),
        ("/etc", r#"exec: "/etc": is a directory"#),
    ] {
        let error = guest.create("c", &spec(&[command])).err().unwrap();
        error.expect(Code::INVALID_ARGUMENT, message);
    }
    // Executable, but not for the container's user.
    guest.add_file("bin/private", "#!/bin/sh\n", 0o700);
    let mut spec = spec(&["private"]);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    spec["process"]["capabilities"] = json!({});
    let error = guest.create("c", &spec).err().unwrap();
    error.expect(
        Code::INVALID_ARGUMENT,
        r#"exec: "private": permission denied"#,
    );
}

fn command_on_mount(guest: &Guest) {
    std::fs::create_dir(guest.share("tools")).unwrap();
    let tool = guest.share("tools/tool");
    std::fs::write(&tool, "#!/bin/sh\necho from the mount\n").unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut spec = spec(&["tool"]);
    spec["process"]["env"] = json!(["PATH=/opt/tools:/bin"]);
    spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/opt/tools", "type": "bind", "source": "/run/nacre/share/tools",
        "options": ["rbind", "ro"]
    }));
    assert_eq!(guest.run(&spec).stdout, "from the mount\n");
}

fn late_failures(guest: &Guest) {
    guest.add_file("bin/orphan", "#!/no/such/interpreter\n", 0o755);
    guest.add_file("bin/text", "just text", 0o755);
    for (command, message, status) in [
        ("orphan", "no such file or directory", 127),
        ("text", "exec format error", 126),
    ] {
        let container = guest.create("c", &spec(&[command])).unwrap();
        let error = container.start().unwrap_err();
        error.expect(Code::INVALID_ARGUMENT, message);
        assert_eq!(container.finish().status, status);
    }
}

fn refused_by_name(guest: &Guest) {
    for (pointer, value, field) in [
        ("/ociVersion", json!("3.0.0"), "ociVersion"),
        ("/process/args", json!([]), "process.args"),
        (
            "/process/apparmorProfile",
            json!("x"),
            "process.apparmorProfile",
        ),
        (
            "/linux/namespaces/0/path",
            json!("/proc/1/ns/pid"),
            "linux.namespaces[0].path",
        ),
        (
            "/linux/namespaces/0/type",
            json!("user"),
            "linux.namespaces",
        ),
        (
            "/hooks",
            json!({"createRuntime": [{"path": "/x"}]}),
            "hooks.createRuntime",
        ),
        ("/root/path", json!("/"), "root.path"),
    ] {
        let mut spec = spec(&["true"]);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value;
        let error = guest.create("c", &spec).err().unwrap();
        error.expect(Code::INVALID_ARGUMENT, &format!("{field}: "));
    }
}

fn broken_json(guest: &Guest) {
    for json in ["", "{", "[]", "\u{0}", &"[".repeat(100_000)] {
        let request = CreateContainerRequest {
            container_id: "c".to_owned(),
            spec: json.as_bytes().to_vec(),
            ..CreateContainerRequest::default()
        };
        let error = guest.create_with(&request).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ARGUMENT, "{error:?}");
    }
}

fn missing_paths(guest: &Guest) {
    let mut broken = spec(&["true"]);
    broken["root"]["path"] = json!("/run/nacre/share/nope");
    let error = guest.create("c", &broken).err().unwrap();
    error.expect(Code::INVALID_ARGUMENT, "root.path: /run/nacre/share/nope: ");
    let mut broken = spec(&["true"]);
    broken["mounts"][0] = json!({
        "destination": "/x", "type": "bind", "source": "/run/nacre/share/nope",
        "options": ["bind"]
    });
    let error = guest.create("c", &broken).err().unwrap();
    error.expect(
        Code::INVALID_ARGUMENT,
        "mounts[0].source: /run/nacre/share/nope: ",
    );
}

fn missing_mount_point(guest: &Guest) {
    guest.share_read_only("rootfs", "read-only");
    let mut spec = spec(&["sh", "-c", "ls /dev/shm /tmp && touch /x"]);
    spec["root"] = json!({"path": "/run/nacre/share/read-only", "readonly": true});
    let output = guest.run(&spec);
    assert!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
    for place in ["/data", "/etc/sub/file"] {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.truncate(7);
        mounts.push(json!({
            "destination": place, "type": "bind", "source": "/run/nacre/share/rootfs/etc",
            "options": ["rbind", "ro"]
        }));
        let error = guest.create("c", &spec).err().unwrap();
        let message = format!("mounts[7].destination: {place} does not exist");
        error.expect(Code::INVALID_ARGUMENT, &message);
    }
}

fn planted_links(guest: &Guest) {
    symlink("/", guest.share("outside")).unwrap();
    symlink("rootfs", guest.share("inside")).unwrap();
    for source in ["outside", "outside/etc", "inside/etc"] {
        let mut spec = spec(&["true"]);
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/x", "type": "bind", "options": ["rbind"],
            "source": format!("/run/nacre/share/{source}")
        }));
        let error = guest.create("c", &spec).err().unwrap();
        error.expect(Code::INVALID_ARGUMENT, "mounts[7].source: ");
    }
    let mut spec = spec(&["true"]);
    spec["root"]["path"] = json!("/run/nacre/share/outside");
    let error = guest.create("c", &spec).err().unwrap();
    error.expect(Code::INVALID_ARGUMENT, "root.path: ");
}

fn missing_stream(guest: &Guest) {
    let request = CreateContainerRequest {
        container_id: "c".to_owned(),
        spec: spec(&["true"]).to_string().into_bytes(),
        stdio: Some(Stdio {
            stdout_stream: 4711,
            ..Stdio::default()
        })
        .into(),
        ..CreateContainerRequest::default()
    };
    let error = guest.create_with(&request).unwrap_err();
    error.expect(Code::FAILED_PRECONDITION, "stream 4711 has not been opened");
}

fn terminal_disagrees(guest: &Guest) {
    let mut spec = spec(&["true"]);
    spec["process"]["terminal"] = json!(true);
    let request = CreateContainerRequest {
        container_id: "c".to_owned(),
        spec: spec.to_string().into_bytes(),
        ..CreateContainerRequest::default()
    };
    let error = guest.create_with(&request).unwrap_err();
    error.expect(Code::INVALID_ARGUMENT, "process.terminal: ");
}

fn identifier_is_freed(guest: &Guest) {
    guest.create("c", &spec(&["nope"])).err().unwrap();
    let container = guest.create("c", &spec(&["true"])).unwrap();
    container.start().unwrap();
    assert_eq!(container.finish().status, 0);
}
