//! What a pod may ask for by annotation: one table, one row for each, behind the operator's list.
//!
//! Kata's names: `io.katacontainers.config.{hypervisor,runtime,agent}.<name>`, and `cloister` in that
//! place for what Kata does not have. A row is allowed
//! where `enable_annotations` has `<name>` (of the hypervisor's), or `runtime.<name>` and so on of
//! the others'. Nothing is ever ignored: an annotation that is not allowed, unknown or malformed
//! fails the pod.

use std::collections::BTreeMap;

use super::key::nearest;
use super::{Config, ConfigError, kernel_words, scratch_size};

/// What every such annotation starts with.
pub const PREFIX: &str = "io.katacontainers.config.";
/// The annotation that carries init-data: base64(gzip(TOML)).
pub const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// One value has at most this many bytes. Kubernetes caps all annotations at 256 KiB.
const MAX_VALUE: usize = 256 * 1024;

type Apply = fn(&mut Config, &str) -> Result<(), String>;

/// The name behind [`PREFIX`], and what it does. Init-data is read by its own module; here it is
/// only allowed or not.
const TABLE: &[(&str, Apply)] = &[
    ("hypervisor.cc_init_data", |_, _| Ok(())),
    ("hypervisor.default_vcpus", |config, text| {
        config.vm.vcpus = number(text)?;
        Ok(())
    }),
    ("hypervisor.default_memory", |config, text| {
        config.vm.memory_mib = number(text)?;
        Ok(())
    }),
    ("hypervisor.kernel_params", |config, text| {
        config.vm.kernel_params.extend(kernel_words(text)?);
        Ok(())
    }),
    ("runtime.disable_guest_seccomp", |config, text| {
        config.disable_guest_seccomp = switch(text)?;
        Ok(())
    }),
    ("runtime.create_container_timeout", |config, text| {
        config.create_timeout = std::time::Duration::from_secs(number(text)?.into());
        Ok(())
    }),
    // Cloister's own: Kata has no such disk.
    ("cloister.scratch_disk", |config, text| {
        config.scratch_mib = number(text)?;
        scratch_size(config.scratch_mib)
    }),
];

/// The configuration of one pod.
///
/// # Errors
/// [`ConfigError`] names the first annotation that is not allowed, unknown or malformed.
pub fn apply(
    mut config: Config,
    annotations: &BTreeMap<String, String>,
) -> Result<Config, ConfigError> {
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let Some((_, apply)) = TABLE.iter().find(|(known, _)| *known == name) else {
            return Err(unknown(key, name));
        };
        check_allowed(&config.enable_annotations, key, name)?;
        let malformed = |cause| ConfigError::AnnotationValue {
            key: key.clone(),
            cause,
        };
        if value.len() > MAX_VALUE {
            return Err(malformed(format!("has more than {MAX_VALUE} bytes")));
        }
        apply(&mut config, value).map_err(malformed)?;
    }
    Ok(config)
}

fn check_allowed(allowed: &[String], key: &str, name: &str) -> Result<(), ConfigError> {
    let listed = name.strip_prefix("hypervisor.").unwrap_or(name);
    if allowed.iter().any(|entry| entry == ".*" || entry == listed) {
        return Ok(());
    }
    Err(ConfigError::AnnotationDenied {
        key: key.to_owned(),
        name: listed.to_owned(),
    })
}

fn unknown(key: &str, name: &str) -> ConfigError {
    let names: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    let suggestion = nearest(name, &names).map(|near| format!("{PREFIX}{near}"));
    ConfigError::AnnotationUnknown {
        key: key.to_owned(),
        suggestion,
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(0) => Err("must not be zero".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("{:?} is not a whole number", shorten(text))),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| format!("{:?} is neither true nor false", shorten(text)))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply_one(allowed: &[&str], key: &str, value: &str) -> Result<Config, String> {
        let config = Config {
            enable_annotations: allowed.iter().map(|name| (*name).to_owned()).collect(),
            ..Config::default()
        };
        let annotations = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        apply(config, &annotations).map_err(|error| error.to_string())
    }

    const VCPUS: &str = "io.katacontainers.config.hypervisor.default_vcpus";

    #[test]
    fn an_allowed_annotation_takes_effect() {
        assert_eq!(
            apply_one(&["default_vcpus"], VCPUS, "3").unwrap().vm.vcpus,
            3
        );
        assert_eq!(apply_one(&[".*"], VCPUS, "3").unwrap().vm.vcpus, 3);
        assert_eq!(apply_one(&[], "unrelated", "3").unwrap(), Config::default());
    }

    #[test]
    fn one_that_is_not_allowed_is_refused_with_the_fix() {
        let error = apply_one(&["default_memory"], VCPUS, "3").unwrap_err();
        assert!(
            error.contains("default_vcpus") && error.contains("enable_annotations"),
            "{error}"
        );
        let key = "io.katacontainers.config.runtime.disable_guest_seccomp";
        assert!(apply_one(&["disable_guest_seccomp"], key, "true").is_err());
        assert!(apply_one(&["runtime.disable_guest_seccomp"], key, "true").is_ok());
    }

    #[test]
    fn a_pod_may_ask_for_a_scratch_disk_of_its_own_size() {
        let key = "io.katacontainers.config.cloister.scratch_disk";
        let allowed = ["cloister.scratch_disk"];
        assert_eq!(apply_one(&allowed, key, "4096").unwrap().scratch_mib, 4096);
        for value in ["0", "1", "999999999"] {
            assert!(apply_one(&allowed, key, value).is_err(), "{value}");
        }
        assert!(apply_one(&["scratch_disk"], key, "4096").is_err());
    }

    #[test]
    fn malformed_values_are_refused() {
        for value in ["", "0", "-1", "1.5", "many"] {
            assert!(
                apply_one(&[".*"], VCPUS, value)
                    .unwrap_err()
                    .contains(VCPUS)
            );
        }
        let params = "io.katacontainers.config.hypervisor.kernel_params";
        assert!(apply_one(&[".*"], params, "cloister.tee=none").is_err());
    }

    #[test]
    fn unknown_ones_are_refused_with_a_suggestion() {
        let error = apply_one(
            &[".*"],
            "io.katacontainers.config.hypervisor.default_vcpu",
            "1",
        )
        .unwrap_err();
        assert!(
            error.contains("did you mean io.katacontainers.config.hypervisor.default_vcpus?"),
            "{error}"
        );
    }
}
