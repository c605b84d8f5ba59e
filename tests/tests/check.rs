//! `vm-run check`, on a machine that can run pods.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn check(args: &[&str]) -> (Output, String) {
    let output = Command::new("vm-run")
        .arg("check")
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

#[test]
fn every_line_is_ok_and_the_virtualisation_is_named() {
    let (output, text) = check(&[]);
    assert!(output.status.success(), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok ")), "{text}");
    assert!(text.contains("virtualisation: nested: "), "{text}");
    assert!(text.contains("guest code: a vCPU ran it"), "{text}");
}

#[test]
fn a_boot_is_tried_on_request() {
    let (output, text) = check(&["--boot"]);
    assert!(output.status.success(), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("ok    boot: Linux 6."), "{last}");
}

#[test]
fn what_is_wrong_is_one_line_and_the_exit_status() {
    let (output, text) = check(&["--boot", "--kernel=/etc/passwd"]);
    assert_eq!(output.status.code(), Some(1));
    let wrong: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert_eq!(wrong.len(), 1, "{text}");
    assert!(
        wrong[0].contains("/etc/passwd is no guest kernel"),
        "{text}"
    );
    assert!(!text.contains("boot: "), "it is not tried then: {text}");
}

#[test]
fn a_person_without_privilege_is_told_so() {
    let output = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "vm-run",
            "check",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("FAIL  KVM: /dev/kvm may not be opened — run this as root"),
        "{text}"
    );
    assert!(text.contains("FAIL  privilege: user 65534"), "{text}");
}
