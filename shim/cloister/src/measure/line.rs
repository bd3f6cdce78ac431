//! `--config`: the kernel's command line that a pod has by the configuration of the shim which launches it. It is
//! made by the shim's own code, and from the file alone: what it names need not be here.

use std::path::Path;
use std::str::FromStr;

use shim::config::{self, Tee};
use shim::kernel_line;

/// What a configuration says of the command line.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    pub(super) tee: Tee,
    pub(super) line: String,
}

impl FromStr for Configured {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        let config = config::load(Some(Path::new(path))).map_err(|error| error.to_string())?;
        let line = kernel_line::measured(&config).map_err(|error| error.to_string())?;
        Ok(Self {
            tee: config.tee,
            line,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_the_line_of_its_pods_or_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            let path = directory.path().join("configuration.toml");
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().parse::<Configured>()
        };
        let snp = "[hypervisor.qemu]\nfirmware = \"/nowhere/OVMF.fd\"\nkernel_params = \"a=b\"\n\
                   [cloister]\ntee = \"snp\"\n";
        let configured = of(snp).unwrap();
        assert_eq!(configured.tee, Tee::Snp);
        assert_eq!(
            configured.line,
            "console=ttyS0 reboot=t panic=-1 quiet a=b cloister.tee=snp"
        );
        let simulated = of("[cloister]\ntee = \"sim-tdx\"\n").unwrap();
        assert_eq!(
            simulated.line,
            "console=ttyS0 reboot=t panic=-1 quiet cloister.tee=sim-tdx"
        );
        for (text, named) in [
            ("[cloister]\ntee = \"none\"\n", "nothing measures"),
            ("[cloister]\ntee = \"sev\"\n", "\"sim-snp\""),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        assert!("/nowhere/configuration.toml".parse::<Configured>().is_err());
    }
}
