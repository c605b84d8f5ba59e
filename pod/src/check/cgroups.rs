//! Control groups of the host, version 2.

use std::path::Path;

use super::Finding;

const WHAT: &str = "cgroup v2";
const ROOT: &str = "/sys/fs/cgroup";

pub(super) fn check() -> Finding {
    judge(Path::new(ROOT))
}

fn judge(root: &Path) -> Finding {
    if root.join("cgroup.controllers").exists() {
        return Finding::ok(WHAT, root.display().to_string());
    }
    Finding::warn(
        WHAT,
        format!("not mounted at {}", root.display()),
        "a bundle that sets linux.cgroupsPath is refused; boot with \
         systemd.unified_cgroup_hierarchy=1",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn version_1_is_not_taken_for_version_2() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("memory")).unwrap();
        assert_eq!(judge(root.path()).verdict, Verdict::Warn);
        std::fs::write(root.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(judge(root.path()).verdict, Verdict::Ok);
    }
}
