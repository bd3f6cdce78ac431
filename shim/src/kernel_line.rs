//! The kernel's command line of a guest, as far as the configuration decides it: for the pod that is launched
//! with it, and for whoever predicts what hardware will measure.

use std::path::Path;

use evidence::init_data::InitDataDigest;
use hypervisor::qemu::predicted_command_line;
use hypervisor::{SpecError, VmSpec};
use thiserror::Error;

use crate::config::Config;

/// Why there is no line that could be predicted.
#[derive(Debug, Error)]
pub enum LineError {
    /// Nothing measures such a guest, and its line is another one on each host.
    #[error(
        "tee is {0:?}, whose command line nothing measures: set cloister.tee to \"snp\", \"tdx\", \"sim-snp\" or \
         \"sim-tdx\""
    )]
    Unmeasured(&'static str),
    /// No launch has these words.
    #[error(transparent)]
    Words(#[from] SpecError),
}

/// The words behind those that every guest has.
#[must_use]
pub fn words(config: &Config, init_data: Option<&InitDataDigest>) -> Vec<String> {
    let mut words = config.vm.kernel_params.clone();
    words.push(format!("cloister.tee={}", config.tee.name()));
    // A kind with reports has it in a field of those; and so all pods of one image measure the same.
    if let Some(digest) = init_data.filter(|_| !config.tee.has_reports()) {
        words.push(format!("cloister.init_data={digest}"));
    }
    words
}

/// The whole line, as it is measured in every pod of a configuration. The files that it names need not be here.
///
/// # Errors
/// [`LineError`] says why there is none.
pub fn measured(config: &Config) -> Result<String, LineError> {
    if !config.tee.has_reports() {
        return Err(LineError::Unmeasured(config.tee.name()));
    }
    let spec = VmSpec {
        machine: config.vm.machine,
        kernel_params: words(config, None),
        ..VmSpec::new("measured", &config.vm.kernel, Path::new("/"))
    };
    Ok(predicted_command_line(&spec)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tee;
    use evidence::init_data::InitData;
    use hypervisor::Machine;

    #[test]
    fn the_line_has_the_configurations_words_and_its_kind() {
        let mut config = Config::default();
        config.vm.kernel = "/nowhere/vmlinuz".into();
        config.vm.kernel_params = vec!["a=b".to_owned()];
        for tee in [Tee::Snp, Tee::Tdx, Tee::SimSnp, Tee::SimTdx] {
            config.tee = tee;
            let expected = format!(
                "console=ttyS0 reboot=t panic=-1 quiet a=b cloister.tee={}",
                tee.name()
            );
            assert_eq!(measured(&config).unwrap(), expected);
        }
        config.vm.machine = Machine::Microvm;
        let line = measured(&config).unwrap();
        assert!(line.contains(" pci=off a=b "), "{line}");
    }

    #[test]
    fn a_line_that_nothing_measures_or_no_launch_has_is_refused() {
        let mut config = Config::default();
        for tee in [Tee::None, Tee::Sample] {
            config.tee = tee;
            let error = measured(&config).unwrap_err().to_string();
            assert!(error.contains(tee.name()), "{error}");
        }
        config.tee = Tee::Snp;
        config.vm.kernel_params = vec!["\u{e4}".to_owned()];
        assert!(matches!(measured(&config), Err(LineError::Words(_))));
    }

    #[test]
    fn init_data_is_on_the_line_only_where_no_report_has_it() {
        let text = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = \"package x\"\n";
        let digest = InitData::parse(text.as_bytes()).unwrap().digest();
        let mut config = Config::default();
        for (tee, count) in [
            (Tee::None, 2),
            (Tee::Sample, 2),
            (Tee::Snp, 1),
            (Tee::SimTdx, 1),
        ] {
            config.tee = tee;
            assert_eq!(words(&config, Some(&digest)).len(), count, "{}", tee.name());
        }
    }
}
