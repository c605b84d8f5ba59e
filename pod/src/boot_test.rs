use super::*;

/// The first bytes of an ELF file for `machine`, 64-bit or not.
fn elf(class: u8, machine: u8) -> Vec<u8> {
    let mut head = vec![0; 64];
    head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
    head[18] = machine;
    head
}

#[test]
fn a_file_that_is_no_kernel_is_told_apart() {
    const X86_64: u8 = 62;
    const AARCH64: u8 = 183;
    let mut compressed = vec![0; 0x206];
    compressed[0x202..].copy_from_slice(b"HdrS");
    assert_eq!(not_a_kernel(&elf(2, X86_64)), None);
    for (head, reason) in [
        (elf(2, AARCH64), "not for x86-64"),
        (elf(1, X86_64), "not for x86-64"),
        (compressed, "compressed bzImage"),
        (b"#!/bin/sh\n".to_vec(), "not an ELF file"),
        (Vec::new(), "not an ELF file"),
    ] {
        assert!(not_a_kernel(&head).unwrap().contains(reason));
    }
}

#[test]
fn a_kernel_that_cannot_be_read_is_named() {
    let error = open_kernel(Path::new("/no/vmlinux"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot read the guest kernel /no/vmlinux: No such file"),
        "{error}"
    );
    let error = open_kernel(Path::new("/dev/null")).unwrap_err().to_string();
    assert!(
        error.starts_with("/dev/null is no guest kernel: it is not an ELF file"),
        "{error}"
    );
}

#[test]
fn advice_for_kvm_fits_the_error() {
    let missing = BootError::Kvm {
        source: io::ErrorKind::NotFound.into(),
    }
    .to_string();
    assert!(missing.contains("this machine has no KVM"), "{missing}");
    let forbidden = BootError::Kvm {
        source: io::ErrorKind::PermissionDenied.into(),
    }
    .to_string();
    assert!(forbidden.contains("run as root"), "{forbidden}");
}
