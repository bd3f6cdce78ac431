//! `--config`: the kernel's command line that a pod has by the configuration of the shim which launches it. It is
//! made by the shim's own code, and from the file alone: what it names need not be here.

use std::path::Path;
use std::str::FromStr;

use anyhow::ensure;
use shim::config::{self, Tee};
use shim::kernel_line;

use super::Kind;

/// What a configuration says of the command line.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    tee: Tee,
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

impl Configured {
    /// Whether the kind that is measured is the one that the configuration launches.
    pub(super) fn check(&self, kind: Kind) -> anyhow::Result<()> {
        let (is_same, word) = match self.tee {
            Tee::Snp | Tee::SimSnp => (kind == Kind::Snp, "snp"),
            Tee::Tdx | Tee::SimTdx => (kind == Kind::Tdx, "tdx"),
            // A line of these was refused when it was read.
            Tee::None | Tee::Sample => (false, "snp"),
        };
        ensure!(
            is_same,
            "--config: its tee is {:?}, and another kind is measured: add --tee {word}",
            self.tee.name()
        );
        Ok(())
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
        assert!(configured.check(Kind::Snp).is_ok());
        assert_eq!(
            configured.line,
            "console=ttyS0 reboot=t panic=-1 quiet a=b cloister.tee=snp"
        );
        let simulated = of("[cloister]\ntee = \"sim-tdx\"\n").unwrap();
        assert_eq!(
            simulated.line,
            "console=ttyS0 reboot=t panic=-1 quiet cloister.tee=sim-tdx"
        );
        assert!(simulated.check(Kind::Tdx).is_ok());
        let error = simulated.check(Kind::Snp).unwrap_err().to_string();
        assert!(error.contains("--tee tdx"), "{error}");
        for (text, named) in [
            ("[cloister]\ntee = \"none\"\n", "nothing measures"),
            ("[cloister]\ntee = \"sev\"\n", "\"sim-snp\""),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        assert!("/nowhere/configuration.toml".parse::<Configured>().is_err());
    }
    #[test]
    fn a_kernel_has_one_line_from_one_of_both() {
        use clap::Parser;
        use clap::error::ErrorKind;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("configuration.toml");
        std::fs::write(&path, "[cloister]\ntee = \"sim-snp\"\n").unwrap();
        let config = ["--config", path.to_str().unwrap()];
        let append = ["--append", "quiet"];
        let parsed = |line: &[&str]| {
            let usual = ["cloister", "measure", "--firmware", "f", "--image", "i"];
            let parsed = crate::Cli::try_parse_from([&usual[..], line].concat());
            parsed.map(drop).map_err(|error| error.kind())
        };
        assert_eq!(parsed(&config), Ok(()));
        assert_eq!(parsed(&append), Ok(()));
        assert_eq!(parsed(&[]), Err(ErrorKind::MissingRequiredArgument));
        let both = [config, append].concat();
        assert_eq!(parsed(&both), Err(ErrorKind::ArgumentConflict));
    }
}
