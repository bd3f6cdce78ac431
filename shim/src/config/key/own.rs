//! `[cloister]`, `[relay]` and `[mirror]`: what Kata does not have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::{LineError, Target};
use hypervisor::Accel;
use toml::Value;

use super::{Honoured, Keys, Set};
use crate::config::{LogTo, Tee, confidential, observe, scratch_size};

/// The least time of silence that means that a guest is stuck, in seconds.
const MIN_HEALTH_SECONDS: u32 = 60;

/// The table of what belongs to no other.
pub(super) static CLOISTER: Keys = Keys {
    honoured: &[
        Honoured {
            name: "accel",
            set: Set::Text(|config, name| {
                config.vm.accel = match name {
                    "auto" => Accel::Auto,
                    "kvm" => Accel::Kvm,
                    "tcg" => Accel::Tcg,
                    other => {
                        return Err(format!(
                            "{other:?} is not one of \"auto\", \"kvm\", \"tcg\""
                        ));
                    }
                };
                Ok(())
            }),
            get: |config| {
                Value::from(match config.vm.accel {
                    Accel::Auto => "auto",
                    Accel::Kvm => "kvm",
                    Accel::Tcg => "tcg",
                })
            },
        },
        Honoured {
            name: "tee",
            set: Set::Text(|config, name| {
                config.tee = Tee::parse(name)?;
                Ok(())
            }),
            get: |config| Value::from(config.tee.name()),
        },
        Honoured {
            name: "dev_tee",
            set: Set::Text(|config, path| {
                if !path.is_empty() {
                    config.dev_tee = absolute(path)?;
                }
                Ok(())
            }),
            get: |config| path_value(Some(&config.dev_tee)),
        },
        Honoured {
            name: "snp_cpu_model",
            set: Set::Text(|config, name| {
                config.vm.confidential.cpu_model = confidential::cpu_model(name)?;
                Ok(())
            }),
            get: |config| Value::from(confidential::cpu_model_word(config)),
        },
        Honoured {
            name: "snp_vcek_disabled",
            set: Set::Switch(|config, on| config.vm.confidential.vcek_disabled = on),
            get: |config| Value::from(config.vm.confidential.vcek_disabled),
        },
        Honoured {
            name: "tdx_mrowner",
            set: Set::Text(|config, text| {
                config.vm.confidential.mrowner = confidential::register(text)?;
                Ok(())
            }),
            get: |config| Value::from(confidential::register_word(&config.vm.confidential.mrowner)),
        },
        Honoured {
            name: "tdx_mrownerconfig",
            set: Set::Text(|config, text| {
                config.vm.confidential.mrownerconfig = confidential::register(text)?;
                Ok(())
            }),
            get: |config| {
                let register = &config.vm.confidential.mrownerconfig;
                Value::from(confidential::register_word(register))
            },
        },
        Honoured {
            name: "init_data",
            set: Set::Text(|config, path| {
                config.init_data = Some(PathBuf::from(path)).filter(|_| !path.is_empty());
                Ok(())
            }),
            get: |config| path_value(config.init_data.as_deref()),
        },
        Honoured {
            name: "scratch_disk",
            set: Set::Number(|config, mib| {
                let mib = u32::try_from(mib).unwrap_or(u32::MAX);
                scratch_size(mib)?;
                config.scratch_mib = mib;
                Ok(())
            }),
            get: |config| Value::from(config.scratch_mib),
        },
        Honoured {
            name: "scratch_dir",
            set: Set::Text(|config, path| {
                if !path.is_empty() {
                    config.scratch_dir = absolute(path)?;
                }
                Ok(())
            }),
            get: |config| path_value(Some(&config.scratch_dir)),
        },
        Honoured {
            name: "health_timeout",
            set: Set::Number(|config, seconds| {
                let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
                if seconds > 0 && seconds < MIN_HEALTH_SECONDS {
                    return Err(format!(
                        "{seconds} s is less than a slow guest may take: use 0, which is never, or at least {MIN_HEALTH_SECONDS}"
                    ));
                }
                config.health_timeout = Duration::from_secs(seconds.into());
                Ok(())
            }),
            get: |config| {
                let seconds = i64::try_from(config.health_timeout.as_secs());
                Value::from(seconds.unwrap_or(i64::MAX))
            },
        },
        Honoured {
            name: "log",
            set: Set::Text(|config, word| {
                config.observe.log_to = LogTo::parse(word)?;
                Ok(())
            }),
            get: |config| Value::from(config.observe.log_to.name()),
        },
        Honoured {
            name: "otlp_endpoint",
            set: Set::Text(|config, url| {
                if !url.is_empty() {
                    observe::endpoint(url)?;
                    config.observe.otlp_endpoint = Some(url.to_owned());
                }
                Ok(())
            }),
            get: |config| Value::from(config.observe.otlp_endpoint.clone().unwrap_or_default()),
        },
    ],
    moot: &[],
    only: &[],
};

/// The relay's table.
pub(super) static RELAY: Keys = Keys {
    honoured: &[Honoured {
        name: "allow",
        set: Set::Words(|config, entries| {
            let targets = entries.iter().map(|entry| entry.parse::<Target>());
            config.relay_allow = targets
                .collect::<Result<_, LineError>>()
                .map_err(|error| error.to_string())?;
            Ok(())
        }),
        get: |config| {
            let targets = config.relay_allow.iter();
            Value::Array(
                targets
                    .map(|target| Value::from(target.to_string()))
                    .collect(),
            )
        },
    }],
    moot: &[],
    only: &[],
};

/// The mirror's table.
pub(super) static MIRROR: Keys = Keys {
    honoured: &[
        Honoured {
            name: "directory",
            set: Set::Text(|config, path| {
                // Shims of one node are started in different places.
                config.mirror.directory = absolute(path)?;
                Ok(())
            }),
            get: |config| path_value(Some(&config.mirror.directory)),
        },
        Honoured {
            name: "size_mib",
            set: Set::Number(|config, mib| {
                config.mirror.size_mib = mib;
                Ok(())
            }),
            get: |config| Value::from(i64::try_from(config.mirror.size_mib).unwrap_or(i64::MAX)),
        },
    ],
    moot: &[],
    only: &[],
};

fn absolute(path: &str) -> Result<PathBuf, String> {
    match Path::new(path).is_absolute() {
        true => Ok(PathBuf::from(path)),
        false => Err(format!("{path:?} is not an absolute path")),
    }
}

/// A path as a value; none is the empty string.
pub(super) fn path_value(path: Option<&Path>) -> Value {
    Value::from(
        path.map(|path| path.display().to_string())
            .unwrap_or_default(),
    )
}

/// Words as a value.
pub(super) fn words_value(words: &[String]) -> Value {
    Value::Array(
        words
            .iter()
            .map(|word| Value::from(word.as_str()))
            .collect(),
    )
}
