//! Copies of volumes that the host renews.

use std::fs;
use std::os::unix::fs::symlink;

use nacre_protocol::agent::{CopiedVolume, RenewVolumeRequest};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::Check;
use crate::guest::{CallError, Container, Guest, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("a_copied_volume_is_renewed_when_the_host_says_so", renewed),
        ("containers_have_one_copy_of_a_volume", shared),
        ("a_volume_that_is_too_large_stays_as_it_was", too_large),
        ("only_directories_of_the_share_are_copied", sources),
        ("only_bind_mounts_show_copies", mounts),
        ("a_first_copy_outlasts_an_update", first_copy),
    ]
}

/// The number of the mount that [`with_volume`] adds.
const MOUNT: u32 = 7;

fn with_volume(command: &str) -> Value {
    let mut spec = spec(&["sh", "-c", command]);
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    assert_eq!(mounts.len(), MOUNT as usize);
    mounts.push(json!({"destination": "/volume", "type": "bind",
        "source": "/run/nacre/share/volume", "options": ["rbind", "ro"]}));
    spec
}

fn copied(source: &str) -> Vec<CopiedVolume> {
    vec![CopiedVolume {
        mount: MOUNT,
        volume_id: "volume-1".to_owned(),
        source: source.to_owned(),
        ..CopiedVolume::default()
    }]
}

/// Writes a generation of the volume in the share, without an end of the one before it.
fn write(guest: &Guest, generation: &str, text: &str) {
    let volume = guest.share("volume");
    fs::create_dir_all(volume.join(generation)).unwrap();
    fs::write(volume.join(generation).join("key"), text).unwrap();
    let _ = fs::remove_file(volume.join("..data"));
    symlink(generation, volume.join("..data")).unwrap();
    let _ = symlink("..data/key", volume.join("key"));
}

fn start<'a>(guest: &'a Guest, id: &str) -> Container<'a> {
    let spec = with_volume("cat /volume/key; echo; exec sleep 1000");
    let volumes = copied("/run/nacre/share/volume");
    let container = guest.create_copying(id, &spec, volumes).unwrap();
    container.start().unwrap();
    container
}

fn renew(guest: &Guest, volume: &str, current: &str) -> Result<(), CallError> {
    let request = RenewVolumeRequest {
        volume_id: volume.to_owned(),
        current: current.as_bytes().to_vec(),
        ..RenewVolumeRequest::default()
    };
    guest
        .call(async |agent, context| agent.renew_volume(context, &request).await)
        .map(drop)
}

fn sh(container: &Container<'_>, command: &str) -> String {
    let process = &spec(&["sh", "-c", command])["process"];
    container.exec("sh", process).unwrap().finish().stdout
}

fn end(container: Container<'_>) {
    container.signal(9, true).unwrap();
    assert_eq!(container.finish().status, 128 + 9);
}

fn renewed(guest: &Guest) {
    write(guest, "..1", "old");
    let mut container = start(guest, "web");
    container.read_until("old\n");
    write(guest, "..2", "new");
    assert_eq!(sh(&container, "cat /volume/key"), "old", "not yet");
    renew(guest, "volume-1", "..2").unwrap();
    assert_eq!(sh(&container, "cat /volume/key"), "new");
    assert_eq!(
        sh(&container, "ls -a /volume | tr '\\n' ' '"),
        ". .. ..2 ..data key "
    );
    let touch = sh(&container, "touch /volume/x 2>&1");
    assert!(touch.contains("Read-only"), "{touch}");
    renew(guest, "volume-2", "..2")
        .unwrap_err()
        .expect(Code::NOT_FOUND, "volume \"volume-2\"");
    renew(guest, "volume-1", "../..")
        .unwrap_err()
        .expect(Code::FAILED_PRECONDITION, "no directory of the kubelet's");
    renew(guest, "volume-1", "..3")
        .unwrap_err()
        .expect(Code::FAILED_PRECONDITION, "..3: No such file");
    assert_eq!(sh(&container, "cat /volume/key"), "new");
    end(container);
    renew(guest, "volume-1", "..2")
        .unwrap_err()
        .expect(Code::NOT_FOUND, "volume-1");
}

fn shared(guest: &Guest) {
    write(guest, "..1", "old");
    let mut first = start(guest, "first");
    first.read_until("old\n");
    write(guest, "..2", "new");
    let mut second = start(guest, "second");
    second.read_until("new\n");
    assert_eq!(sh(&first, "cat /volume/key"), "new", "the copy is one");
    end(first);
    write(guest, "..3", "newest");
    renew(guest, "volume-1", "..3").unwrap();
    assert_eq!(sh(&second, "cat /volume/key"), "newest");
    end(second);
}

fn too_large(guest: &Guest) {
    write(guest, "..1", "small");
    let mut container = start(guest, "web");
    container.read_until("small\n");
    write(guest, "..2", "large");
    let large = fs::File::create(guest.share("volume/..2/large")).unwrap();
    large.set_len(1 << 40).unwrap();
    renew(guest, "volume-1", "..2")
        .unwrap_err()
        .expect(Code::RESOURCE_EXHAUSTED, "..2: large: No space left");
    assert_eq!(sh(&container, "cat /volume/key"), "small");
    fs::remove_file(guest.share("volume/..2/large")).unwrap();
    for number in 0..5000 {
        fs::write(guest.share(&format!("volume/..2/{number}")), "").unwrap();
    }
    renew(guest, "volume-1", "..2")
        .unwrap_err()
        .expect(Code::RESOURCE_EXHAUSTED, "No space left");
    let listed = sh(&container, "ls -a /volume | tr '\\n' ' '");
    assert_eq!(listed, ". .. ..1 ..data key ", "nothing half-made is left");
    write(guest, "..3", "fits");
    renew(guest, "volume-1", "..3").unwrap();
    assert_eq!(sh(&container, "cat /volume/key"), "fits");
    end(container);
}

fn sources(guest: &Guest) {
    write(guest, "..1", "text");
    symlink("/etc", guest.share("out")).unwrap();
    symlink("volume", guest.share("link")).unwrap();
    for source in [
        "/etc",
        "/run/nacre/share/../../etc",
        "/run/nacre/share/out",
        "/run/nacre/share/link",
        "/run/nacre/share/volume/..1/key",
        "/run/nacre/share/missing",
        "",
    ] {
        let spec = with_volume("true");
        let refused = guest.create_copying("web", &spec, copied(source));
        let Err(error) = refused else {
            panic!("{source:?} is copied");
        };
        assert_ne!(error.code, Code::INTERNAL, "{source:?}: {error:?}");
        guest.check_nothing_is_left();
    }
}

fn mounts(guest: &Guest) {
    write(guest, "..1", "text");
    for mount in [0, MOUNT + 1, u32::MAX] {
        let mut volumes = copied("/run/nacre/share/volume");
        volumes[0].mount = mount;
        let spec = with_volume("true");
        let refused = guest.create_copying("web", &spec, volumes);
        let message = format!("mounts[{mount}] is no bind mount");
        let Err(error) = refused else {
            panic!("{mount}");
        };
        error.expect(Code::INVALID_ARGUMENT, &message);
        guest.check_nothing_is_left();
    }
    let mut volumes = copied("/run/nacre/share/volume");
    volumes[0].volume_id = "../x".to_owned();
    let Err(error) = guest.create_copying("web", &with_volume("true"), volumes) else {
        panic!("../x");
    };
    error.expect(Code::INVALID_ARGUMENT, "copied_volumes.volume_id");
}

fn first_copy(guest: &Guest) {
    write(guest, "..1", "text");
    // In the middle of an update that has taken the old content away.
    fs::rename(guest.share("volume/..1"), guest.share("volume/..2")).unwrap();
    let share = guest.share("volume");
    let kubelet = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        fs::remove_file(share.join("..data")).unwrap();
        symlink("..2", share.join("..data")).unwrap();
    });
    let mut container = start(guest, "web");
    container.read_until("text\n");
    kubelet.join().unwrap();
    end(container);
}
