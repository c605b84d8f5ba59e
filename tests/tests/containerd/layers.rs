//! The layers of an image, which many containers share.

use std::collections::BTreeSet;

use nacre_tests::ctr;
use nacre_tests::{Running, sh, wait_until};

use crate::setting::{ONE_VERSION, Setting, Test};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "the_layers_of_an_image_are_never_written",
    places: ONE_VERSION,
    check: never_written,
}];

/// Two of an image, of which the other image has the lower one, in two namespaces.
const LAYERS: usize = 4;

fn assert_unchanged(before: &str, after: &str) {
    let known: BTreeSet<_> = before.lines().collect();
    let changed: Vec<_> = after.lines().filter(|line| !known.contains(line)).collect();
    assert!(before == after, "changed: {changed:#?}");
}

fn never_written(setting: &mut Setting) {
    let snapshots = setting
        .containerd
        .dir()
        .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    // One that goes at that moment is none.
    let all = || {
        sh(&format!(
            "ls -d {}/*/fs 2>/dev/null || true",
            snapshots.display()
        ))
    };
    // What the last container wrote goes a moment after it.
    wait_until("there are the images' layers only", || {
        all().lines().count() == LAYERS
    });
    let layers = all().replace('\n', " ");
    // Names, contents' and inodes' times, sizes, modes, owners and links of all of them.
    let look = || {
        sh(&format!(
            "find {layers} -printf '%p %T@ %C@ %s %m %U %n\\n' | sort"
        ))
    };
    let before = look();
    assert!(before.contains("/etc/greeting "), "{before}");

    let script = "echo changed > /etc/greeting; rm /etc/passwd; mv /noise /moved; chmod 700 /bin
        mkdir /etc/made; ln /etc/group /etc/linked; echo more >> /etc/group
        ls /etc; cat /etc/greeting; stat -c %a /bin; wc -c < /moved";
    let run = ctr::run(
        setting.containerd,
        setting.runtime,
        &[],
        &["sh", "-euc", script],
    );
    let text = Running::to_the_end(run).expect_code(0).text();
    // ctr adds /etc/hosts and the like to none.
    for line in [
        "group", "greeting", "linked", "made", "changed", "700", "8388608",
    ] {
        assert!(text.lines().any(|other| other == line), "no {line}: {text}");
    }
    assert!(!text.contains("passwd"), "{text}");
    assert_unchanged(&before, &look());

    let script = "cat /etc/greeting /etc/passwd; touch /etc/x";
    let run = ctr::run(
        setting.containerd,
        setting.runtime,
        &["--read-only"],
        &["sh", "-c", script],
    );
    let ended = Running::to_the_end(run).expect_code(1);
    assert_eq!(
        ended.text(),
        "of the upper layer\nroot:x:0:0:root:/root:/bin/sh\n",
        "{ended}"
    );
    assert_eq!(ended.stderr, "touch: /etc/x: Read-only file system\n");
    assert_unchanged(&before, &look());
}
