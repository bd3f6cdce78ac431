//! What distributions call the packages, and the command that installs them.

/// Something that a distribution has in a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Package {
    /// QEMU for x86.
    Qemu,
    /// The virtio-fs daemon.
    Virtiofsd,
}

/// A family of distributions: how it installs, and what it calls QEMU and the virtio-fs daemon.
struct Family {
    ids: &'static [&'static str],
    install: &'static str,
    qemu: &'static str,
    virtiofsd: &'static str,
}

const FAMILIES: [Family; 5] = [
    Family {
        ids: &["debian", "ubuntu"],
        install: "sudo apt-get install",
        qemu: "qemu-system-x86",
        virtiofsd: "virtiofsd",
    },
    Family {
        ids: &["fedora", "rhel", "centos"],
        install: "sudo dnf install",
        qemu: "qemu-kvm",
        virtiofsd: "virtiofsd",
    },
    Family {
        ids: &["arch"],
        install: "sudo pacman -S",
        qemu: "qemu-base",
        virtiofsd: "virtiofsd",
    },
    Family {
        ids: &["suse", "opensuse"],
        install: "sudo zypper install",
        qemu: "qemu-x86",
        virtiofsd: "virtiofsd",
    },
    Family {
        ids: &["alpine"],
        install: "sudo apk add",
        qemu: "qemu-system-x86_64",
        virtiofsd: "virtiofsd",
    },
];

/// The command for these packages on the distribution of an os-release(5); `None` where there is nothing
/// to install, or the distribution is not known.
pub(super) fn command(os_release: &str, packages: &[Package]) -> Option<String> {
    let values = os_release.lines().filter_map(|line| {
        let value = line
            .strip_prefix("ID=")
            .or_else(|| line.strip_prefix("ID_LIKE="))?;
        Some(value.trim_matches('"'))
    });
    let ids: Vec<&str> = values.flat_map(str::split_ascii_whitespace).collect();
    let family = FAMILIES
        .iter()
        .find(|family| family.ids.iter().any(|id| ids.contains(id)))?;
    let mut packages = packages.to_vec();
    packages.sort_unstable();
    packages.dedup();
    let names = packages.iter().map(|package| match package {
        Package::Qemu => family.qemu,
        Package::Virtiofsd => family.virtiofsd,
    });
    let names = names.collect::<Vec<_>>().join(" ");
    (!names.is_empty()).then(|| format!("{} {names}", family.install))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_known_by_its_own_name_or_what_it_is_like() {
        let both = [Package::Virtiofsd, Package::Qemu, Package::Qemu];
        assert_eq!(
            command("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", &both).unwrap(),
            "sudo apt-get install qemu-system-x86 virtiofsd"
        );
        assert_eq!(
            command("ID=\"fedora\"\n", &[Package::Qemu]).unwrap(),
            "sudo dnf install qemu-kvm"
        );
        assert_eq!(command("ID=none\n", &both), None);
        assert_eq!(command("ID=debian\n", &[]), None);
    }
}
