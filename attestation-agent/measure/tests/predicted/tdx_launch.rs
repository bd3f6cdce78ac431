//! Launches of TDs: what of kernel, memory and Secure Boot decides which register.

use crate::tdvf;

use measure::tdx::{
    Dialect, Firmware, KernelForm, LaunchError, Memory, Origin, SecureBoot, Vmm, authenticode,
    is_signed,
};
use sha2::{Digest, Sha384};
use tdvf::{GLOBAL, SECURITY, entry, image, kernel, launch, loader, sections, small, store};

#[test]
fn a_kernels_hash_leaves_out_checksum_and_signatures_and_nothing_else() {
    let plain = kernel(0);
    let hash = authenticode(&plain).unwrap();
    let mut parts = Sha384::new();
    parts.update(&plain[..0x98]);
    parts.update(&plain[0x9c..0xe8]);
    parts.update(&plain[0xf0..]);
    assert_eq!(parts.finalize()[..], hash[..]);
    assert_eq!(authenticode(&kernel(0x5c0)), Ok(hash));
    for (at, same) in [
        (0x98, true),
        (0x9b, true),
        (0x97, false),
        (0x9c, false),
        (0x2fff, false),
    ] {
        let mut changed = plain.clone();
        changed[at] ^= 1;
        assert_eq!(authenticode(&changed) == Ok(hash), same, "{at:#x}");
    }
    let broken = |at: usize, bytes: &[u8]| {
        let mut broken = plain.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        authenticode(&broken).unwrap_err().to_string()
    };
    for (at, bytes, part) in [
        (0, &b"\x7fELF"[..], "no EFI image"),
        (0x40, b"NE", "no EFI image"),
        (0x3c, &[0xff; 4], "cut off"),
        (0x58, &[0, 0], "PE32+"),
        (0x46, &[97, 0], "more than 96"),
        (0x94, &[0xff; 4], "do not follow"),
        (0x108, &[0xff; 4], "overlap"),
        (0x10c, &[0; 4], "overlap"),
        (0xec, &[1], "signatures lie in a section"),
    ] {
        let said = broken(at, bytes);
        assert!(said.contains(part), "{at:#x}: {said}");
    }
}

#[test]
fn a_patched_kernel_depends_on_memory_and_one_as_in_its_file_does_not() {
    let bytes = small();
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    let (dialect, loader, kernel) = (Dialect::edk2_2024(), loader(), kernel(0));
    let rtmr1 = |mib: u64, form, initramfs| {
        let mut launch = launch(&firmware, &dialect, &loader, &kernel);
        launch.memory = Memory::new(mib << 20).unwrap();
        launch.kernel_form = form;
        launch.initramfs = Some(initramfs);
        launch.predict().unwrap().rtmrs[1]
    };
    let (plain, patched) = (KernelForm::AsInFile, KernelForm::Patched);
    assert_eq!(rtmr1(1024, plain, b"a"), rtmr1(2048, plain, b"ab"));
    assert_ne!(rtmr1(1024, plain, b"a"), rtmr1(1024, patched, b"a"));
    assert_ne!(rtmr1(1024, patched, b"a"), rtmr1(1025, patched, b"a"));
    assert_ne!(rtmr1(1024, patched, b"a"), rtmr1(1024, patched, b"ab"));
    // Memory above 4 GiB moves nothing below.
    assert_eq!(rtmr1(4096, patched, b"a"), rtmr1(8192, patched, b"a"));
    assert_eq!(rtmr1(2048, patched, b"a"), rtmr1(4096, patched, b"a"));
    let mut vga = launch(&firmware, &dialect, &loader, &kernel);
    vga.kernel_form = patched;
    vga.command_line = "vga=ask";
    let said = vga.predict().unwrap_err().to_string();
    assert!(said.contains("vga="), "{said}");
}

#[test]
fn secure_boot_without_an_authority_is_not_predicted() {
    let bytes = small();
    let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
    let (dialect, loader, kernel) = (Dialect::edk2_202508(), loader(), kernel(0));
    let mut launch = launch(&firmware, &dialect, &loader, &kernel);
    launch.secure_boot = SecureBoot::On;
    assert_eq!(launch.predict(), Err(LaunchError::NoAuthority));
    launch.secure_boot = SecureBoot::Off;
    assert!(launch.predict().is_ok());
}

#[test]
fn firmware_with_a_platform_key_is_none_without_secure_boot() {
    let stores: [(&[tdvf::Variable<'_>], bool); 4] = [
        (&[], false),
        (&[(0x3f, GLOBAL, "PK", b"")], false),
        (&[(0x3f, SECURITY, "PK", b"key")], false),
        (&[(0x3f, GLOBAL, "PK", b"key")], true),
    ];
    for (variables, is_enrolled) in stores {
        let stored = store(0x1000, variables);
        let bytes = image(0x4000, &stored, &sections(0x1000, 0x3000), &[entry()]);
        let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
        assert_eq!(firmware.has_platform_key(), Ok(is_enrolled));
        let (dialect, loader, kernel) = (Dialect::edk2_202508(), loader(), kernel(0));
        let mut launch = launch(&firmware, &dialect, &loader, &kernel);
        let absent = launch.predict().err();
        assert_eq!(absent, is_enrolled.then_some(LaunchError::Enrolled));
        launch.secure_boot = SecureBoot::Off;
        assert!(launch.predict().is_ok());
    }
    assert_eq!(is_signed(&kernel(0)), Ok(false));
    assert_eq!(is_signed(&kernel(0x5c0)[..0x300]), Ok(true));
}

/// What the firmware's image has of Secure Boot decides RTMR0, and which of two values of a variable.
#[test]
fn keys_in_the_firmwares_image_count() {
    let rtmr0 = |variables: &[u8]| {
        let bytes = image(0x4000, variables, &sections(0x1000, 0x3000), &[entry()]);
        let firmware = Firmware::parse(&bytes, Vmm::Qemu).unwrap();
        let (dialect, loader, kernel) = (Dialect::edk2_202508(), loader(), kernel(0));
        let mut launch = launch(&firmware, &dialect, &loader, &kernel);
        launch.secure_boot = SecureBoot::Off;
        let prediction = launch.predict()?;
        let events = prediction.events.into_iter();
        let keys = events.filter(|event| matches!(event.origin, Origin::SecureBoot(_)));
        Ok::<_, LaunchError>(keys.map(|event| event.digest).collect::<Vec<_>>())
    };
    let of = |variables: &[tdvf::Variable<'_>]| rtmr0(&store(0x1000, variables)).unwrap();
    let empty = of(&[]);
    assert_eq!(empty.len(), 5);
    let held = of(&[(0x3f, GLOBAL, "PK", b"key")]);
    assert_ne!(held, empty);
    for (variables, expected) in [
        (&[(0x3c, GLOBAL, "PK", &b"key"[..])][..], &empty),
        (&[(0x3f, SECURITY, "PK", b"key")], &empty),
        (&[(0x3e, GLOBAL, "PK", b"key")], &held),
        (
            &[(0x3e, GLOBAL, "PK", b"old"), (0x3f, GLOBAL, "PK", b"key")],
            &held,
        ),
        (
            &[(0x3f, GLOBAL, "PK", b"key"), (0x3e, GLOBAL, "PK", b"old")],
            &held,
        ),
    ] {
        assert_eq!(of(variables), *expected, "{variables:?}");
    }
    assert_eq!(of(&[(0x3f, SECURITY, "dbt", b"list")]).len(), 6);
    let good = store(0x1000, &[(0x3f, GLOBAL, "PK", b"key")]);
    for (at, bytes, part) in [
        (0x28, &b"_FVX"[..], "no volume"),
        (0x30, &[0xff, 0xff], "no store"),
        (0x48, &[0], "no store"),
        (0x5d, &[0xff], "not healthy"),
        (0x58, &[0xff; 4], "cut off"),
        (0x64, &[0, 0], "something else"),
        (0x64 + 40, &[0xff; 4], "a variable is cut off"),
    ] {
        let mut broken = good.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        let said = rtmr0(&broken).unwrap_err().to_string();
        assert!(said.contains(part), "{at:#x}: {said}");
    }
}
