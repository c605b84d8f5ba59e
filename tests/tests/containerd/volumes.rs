//! Volumes of pods that the kubelet renews; `tests/renewed_volumes.rs` has the details.

use nacre_tests::crictl::{Pids, Pod};
use nacre_tests::kubelet::Volume;
use nacre_tests::wait_until;

use crate::setting::{POD_KINDS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "renewed_volumes_reach_all_containers_of_a_pod",
    places: POD_KINDS,
    check: renewed,
}];

fn renewed(setting: &mut Setting) {
    let volume = Volume::on_tmpfs("secret");
    volume.write("..1", &[("key", "first")], |_| {});
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let mounts = [(volume.path(), "/volume")];
    let one = pod.start_with("exec sleep 1000", Pids::Private, &mounts);
    let two = pod.start_with("exec sleep 1000", Pids::Private, &mounts);
    let key = "cat /volume/key";
    assert_eq!((one.sh(key), two.sh(key)), ("first".into(), "first".into()));
    volume.write("..2", &[("key", "second")], |_| {});
    wait_until("both have the second", || {
        one.sh(key) == "second" && two.sh(key) == "second"
    });
    one.remove();
    volume.write("..3", &[("key", "third")], |_| {});
    wait_until("who is left has the third", || two.sh(key) == "third");
    let late = pod.start_with(
        "cat /volume/key; echo; exec sleep 1000",
        Pids::Private,
        &mounts,
    );
    wait_until("who comes late has it", || late.log() == "stdout third\n");
    pod.remove();
    volume.unmount();
}
