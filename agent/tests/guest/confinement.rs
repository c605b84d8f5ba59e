//! What a process of a container is, may do, and may not.

use serde_json::{Value, json};

use crate::Check;
use crate::guest::{Guest, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("a_seccomp_profile_is_in_force", seccomp),
        ("a_seccomp_rule_may_mask_an_argument", masked_argument),
        ("capabilities_are_those_of_the_specification", capabilities),
        ("user_groups_and_umask_are_set", user),
        ("the_environment_is_passed_as_it_is", environment),
        ("the_working_directory_is_made", working_directory),
        ("a_root_without_dev_gets_one", dev_is_made),
        ("device_files_can_be_made_but_not_opened", devices),
        ("a_device_rule_opens_a_device", device_rule),
        ("mounts_and_a_read_only_root", mounts),
        ("paths_are_masked_and_read_only", masked),
        ("the_namespaces_are_the_containers", namespaces),
        ("the_cgroup_is_the_containers", cgroup),
        ("kernel_parameters_are_set", sysctl),
        ("a_start_hook_runs_in_the_container", start_hook),
        (
            "a_script_that_executes_its_executor_gets_nowhere",
            executes_executor,
        ),
        ("a_container_over_its_memory_is_killed", out_of_memory),
    ]
}

fn sh(command: &str) -> Value {
    spec(&["sh", "-c", command])
}

fn seccomp(guest: &Guest) {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO",
                      "errnoRet": 38}]
    });
    for no_new_privileges in [json!(true), json!(false), Value::Null] {
        let mut spec = sh("grep Seccomp: /proc/self/status; mkdir /tmp/x");
        spec["linux"]["seccomp"] = profile.clone();
        spec["process"]["noNewPrivileges"] = no_new_privileges;
        let output = guest.run(&spec);
        assert_eq!(output.stdout, "Seccomp:\t2\n", "{output:?}");
        assert!(
            output.stderr.contains("Function not implemented"),
            "{output:?}"
        );
    }
    assert_eq!(
        guest.sh("grep Seccomp: /proc/self/status").stdout,
        "Seccomp:\t0\n"
    );
}

/// A profile that refuses signals 10 and 26 by their last four bits.
pub(crate) fn masking_profile() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
            "args": [{"index": 1, "value": 15, "valueTwo": 10, "op": "SCMP_CMP_MASKED_EQ"}]
        }]
    })
}

/// Sends signals of which [`masking_profile`] lets two pass.
pub(crate) const MASKED: &str = "for n in 26 10 17 18; do kill -$n $$ && echo $n; done";

fn masked_argument(guest: &Guest) {
    let mut spec = sh(MASKED);
    spec["linux"]["seccomp"] = masking_profile();
    assert_eq!(guest.run(&spec).stdout, "17\n18\n");
}

fn capabilities(guest: &Guest) {
    let mut spec = sh("grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status");
    let set = json!(["CAP_CHOWN", "CAP_KILL"]);
    spec["process"]["capabilities"] = json!({
        "bounding": set, "effective": set, "permitted": set
    });
    let output = guest.run(&spec).stdout;
    assert_eq!(
        output,
        "CapInh:\t0000000000000000\nCapPrm:\t0000000000000021\nCapEff:\t0000000000000021\n\
         CapBnd:\t0000000000000021\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n"
    );
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = guest.run(&spec).stdout;
    assert!(output.contains("CapEff:\t0000000000000000\n"), "{output}");
    // None given is none had, for root as well.
    for none in [json!({}), Value::Null] {
        spec["process"]["user"] = json!({"uid": 0, "gid": 0});
        spec["process"]["capabilities"] = none;
        let output = guest.run(&spec).stdout;
        let empty = output.matches("0000000000000000\n").count();
        assert_eq!(empty, 5, "{output}");
    }
}

fn user(guest: &Guest) {
    // Limits take a privilege that a test, unlike a guest's agent, may lack.
    let command = "id -u; id -g; id -G; umask; ulimit -l; cat /proc/self/oom_score_adj";
    let mut spec = sh(command);
    spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [5, 42]});
    spec["process"]["oomScoreAdj"] = json!(77);
    let output = guest.run(&spec);
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(
        lines[..4],
        ["1000", "1001", "1001 5 42", "0027"],
        "{output:?}"
    );
    let own = std::process::Command::new("sh")
        .args(["-c", "ulimit -l"])
        .output()
        .unwrap();
    assert_eq!(
        lines[4],
        String::from_utf8(own.stdout).unwrap().trim(),
        "a limit nobody set"
    );
    assert_eq!(lines[5], "77");
    // Nothing of the agent's own protection is inherited.
    assert_eq!(guest.sh("cat /proc/self/oom_score_adj").stdout, "0\n");
}

fn environment(guest: &Guest) {
    let mut spec = spec(&["env"]);
    spec["process"]["env"] = json!(["Z=1", "PATH=/bin", "A=b=c", "EMPTY=", "NOVALUE"]);
    let output = guest.run(&spec);
    assert_eq!(
        output.stdout,
        "Z=1\nPATH=/bin\nA=b=c\nEMPTY=\nNOVALUE\nHOME=/root\n"
    );
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert!(guest.run(&spec).stdout.ends_with("HOME=/tmp\n"));
}

fn working_directory(guest: &Guest) {
    let mut spec = spec(&["pwd"]);
    spec["process"]["cwd"] = json!("/srv/deep/place");
    assert_eq!(guest.run(&spec).stdout, "/srv/deep/place\n");
}

fn dev_is_made(guest: &Guest) {
    let dev = guest.share("rootfs/dev");
    std::fs::remove_dir_all(&dev).unwrap();
    let mut spec = spec(&["head", "-c", "3", "/dev/zero"]);
    spec["mounts"] = json!([]);
    let linux = spec["linux"].as_object_mut().unwrap();
    linux.remove("maskedPaths");
    linux.remove("readonlyPaths");
    assert_eq!(guest.run(&spec).stdout, "\0\0\0");
    // The devices are in the root file system now.
    std::fs::remove_dir_all(&dev).unwrap();
    std::fs::create_dir(&dev).unwrap();
}

fn devices(guest: &Guest) {
    let output = guest.sh(
        "mknod /tmp/disk b 8 0 && mknod /tmp/mem c 1 1 && mknod /tmp/null c 1 3; \
         cat /tmp/disk; cat /tmp/mem; echo x >/tmp/null && cat /dev/null && head -c 3 /dev/zero | wc -c",
    );
    assert_eq!(output.stdout, "3\n", "{output:?}");
    let refusals = output.stderr.matches("Operation not permitted").count();
    assert_eq!(refusals, 2, "{output:?}");
}

fn device_rule(guest: &Guest) {
    let mut spec = sh("mknod /tmp/tun c 10 200 && head -c 0 /tmp/tun && echo opened");
    spec["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"}
    ]);
    assert_eq!(guest.run(&spec).stdout, "opened\n");
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    spec["process"]["args"][2] = json!("head -c 0 /tmp/tun && echo privileged");
    assert_eq!(guest.run(&spec).stdout, "privileged\n");
}

fn mounts(guest: &Guest) {
    std::fs::create_dir(guest.share("volume")).unwrap();
    std::fs::write(guest.share("volume/file"), "from the host\n").unwrap();
    std::fs::write(guest.share("single"), "one file\n").unwrap();
    let mut spec = sh(
        "cat /data/file /etc/single; touch /ro/x; touch /x; echo new >/data/new; \
         echo -n kept >/dev/shm/x && cat /dev/shm/x; ls /dev/mqueue; stat -c %a /scratch",
    );
    spec["root"]["readonly"] = json!(true);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    for (source, destination, options) in [
        ("volume", "/data", json!(["rbind", "rprivate", "rw"])),
        ("volume", "/ro", json!(["rbind", "ro"])),
        ("single", "/etc/single", json!(["bind", "ro"])),
    ] {
        mounts.push(json!({
            "destination": destination, "type": "bind", "options": options,
            "source": format!("/run/nacre/share/{source}")
        }));
    }
    mounts.push(json!({
        "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["mode=711"]
    }));
    let output = guest.run(&spec);
    assert_eq!(
        output.stdout, "from the host\none file\nkept711\n",
        "{output:?}"
    );
    assert_eq!(
        output.stderr.matches("Read-only file system").count(),
        2,
        "{output:?}"
    );
    let new = std::fs::read_to_string(guest.share("volume/new")).unwrap();
    assert_eq!(new, "new\n");
}

fn masked(guest: &Guest) {
    let output = guest.sh("head -c 1 /proc/keys | wc -c; ls /sys/firmware | wc -l; \
         echo 1 >/proc/sys/kernel/printk");
    assert_eq!(output.stdout, "0\n0\n", "{output:?}");
    let refused = output.stderr.contains("Read-only file system");
    assert!(refused, "{output:?}");
}

fn namespaces(guest: &Guest) {
    let mut spec =
        sh("hostname; echo $$; ls /proc | grep -c '^[0-9]*$'; tail -n 1 /proc/self/cgroup");
    spec["hostname"] = json!("inside");
    let output = guest.run(&spec);
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(
        (lines[0], lines[1], lines[3]),
        ("inside", "1", "0::/"),
        "{output:?}"
    );
    assert!(
        lines[2].parse::<u32>().unwrap() <= 3,
        "only its own processes: {output:?}"
    );
}

fn cgroup(guest: &Guest) {
    // An engine's own path means nothing in the guest.
    let mut spec = sh(
        "ls /sys/fs/cgroup | grep -c cgroup.procs; tail -n 1 /proc/self/cgroup; \
                       mkdir /sys/fs/cgroup/x",
    );
    spec["linux"]["cgroupsPath"] = json!("/../../somewhere");
    let output = guest.run(&spec);
    assert_eq!(output.stdout, "1\n0::/\n", "{output:?}");
    assert!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
    // One that may make cgroups leaves none of them behind.
    spec["mounts"][6]["options"] = json!(["nosuid"]);
    spec["process"]["args"][2] =
        json!("mkdir -p /sys/fs/cgroup/a/b/c /sys/fs/cgroup/d && echo made");
    assert_eq!(guest.run(&spec).stdout, "made\n");
}

fn sysctl(guest: &Guest) {
    let mut spec = sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced");
    spec["linux"]["sysctl"] = json!({
        "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"
    });
    assert_eq!(guest.run(&spec).stdout, "1\n1\n");
}

fn start_hook(guest: &Guest) {
    guest.add_file("hook", "#!/bin/sh\ncat >/tmp/state\n", 0o755);
    let mut spec = sh("grep -c '\"status\"' /tmp/state");
    spec["hooks"] = json!({"startContainer": [{"path": "/hook"}]});
    assert_eq!(guest.run(&spec).stdout, "1\n");
}

/// The builder's program is what a container's first process is before it
/// executes the workload; a workload must not get to keep or change it.
fn executes_executor(guest: &Guest) {
    guest.add_file("again", "#!/proc/self/exe\n", 0o755);
    let container = guest.create("c", &spec(&["/again"])).unwrap();
    // Whatever it is taken for, it ends, and the agent goes on.
    let _ = container.start();
    let output = container.finish();
    assert_ne!(output.status, 0);
    assert_eq!(guest.sh("echo fine").stdout, "fine\n");
}

fn out_of_memory(guest: &Guest) {
    let mut spec = sh("x=$(yes | head -c 100000000 | tr -d '\\n'); echo ${#x}");
    spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let output = guest.run(&spec);
    assert!(output.oom_killed, "{output:?}");
    spec["process"]["args"] = json!(["tail", "/dev/zero"]);
    let output = guest.run(&spec);
    assert!(output.oom_killed && output.status == 128 + 9, "{output:?}");
    assert!(!guest.sh("true").oom_killed);
}
