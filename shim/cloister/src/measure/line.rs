//! `--config`: the kernel's command line that a pod has by the configuration of the shim which launches it. It is
//! made by the shim's own code, and from the file alone: what it names need not be here.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::ensure;
use shim::config::{self, Tee};
use shim::kernel_line;

use super::Kind;
use crate::dev_tee::FIRMWARE;

/// What a configuration says of a launch.
#[derive(Debug, Clone)]
pub(crate) struct Configured {
    tee: Tee,
    pub(crate) line: String,
    /// The firmware; of a simulated kind the one that `dev-tee` measures.
    pub(crate) firmware: Option<PathBuf>,
    /// Of a pod without limits.
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    /// `None` where it is each host's own.
    pub(crate) cpu_model: Option<String>,
}

impl FromStr for Configured {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        let config = config::load(Some(Path::new(path))).map_err(|error| error.to_string())?;
        let line = kernel_line::measured(&config).map_err(|error| error.to_string())?;
        let simulated = config.tee.simulated();
        let own = || simulated.map(|_| config.dev_tee.join(FIRMWARE));
        Ok(Self {
            tee: config.tee,
            line,
            firmware: config.vm.firmware.clone().or_else(own),
            vcpus: config.vm.vcpus,
            memory_mib: config.vm.memory_mib,
            cpu_model: config.vm.confidential.cpu_model,
        })
    }
}

impl Configured {
    /// Whether its pods are TDs, simulated ones too.
    pub(crate) fn is_td(&self) -> bool {
        self.check(Kind::Tdx).is_ok()
    }

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
    use crate::measure::Measure;

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

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        measure: Measure,
    }

    #[test]
    fn a_launch_of_flags_has_one_start_and_one_line_and_an_image_may_say_its_own() {
        use clap::Parser;
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("configuration.toml");
        std::fs::write(&path, "[cloister]\ntee = \"sim-snp\"\n").unwrap();
        let config = format!("--config {}", path.display());
        let parsed = |words: &str| {
            let words = ["measure"].into_iter().chain(words.split_whitespace());
            let parsed = Command::try_parse_from(words);
            parsed.map(|it| it.measure).map_err(|error| error.kind())
        };
        for start in ["--firmware f --image i", "--igvm g --image i"] {
            for line in ["--append quiet", &config] {
                let measure = parsed(&format!("{start} {line}")).unwrap();
                assert!(measure.is_given() && measure.check().is_ok());
            }
            let said = parsed(start).unwrap().check().unwrap_err().to_string();
            assert!(said.contains("--config"), "{said}");
            let both = parsed(&format!("{start} --append quiet {config}"));
            assert_eq!(both.unwrap_err(), ArgumentConflict);
        }
        let alone = parsed("--image i").unwrap();
        assert!(!alone.is_given() && alone.check().is_ok());
        for (words, refusal) in [
            (
                "--firmware f --igvm g --image i --append q",
                ArgumentConflict,
            ),
            ("--firmware f --kernel k", MissingRequiredArgument),
            ("--image i --append q", MissingRequiredArgument),
            (&format!("--image i {config}"), MissingRequiredArgument),
            ("--image i --vcpus 2", MissingRequiredArgument),
        ] {
            assert_eq!(parsed(words).unwrap_err(), refusal, "{words}");
        }
        let igvm = parsed("--igvm g --image i --append q").unwrap();
        let said = igvm.recorded("launch-0").unwrap_err().to_string();
        assert!(said.contains("--igvm"), "{said}");
    }
}
