//! The annotations of an encrypted layer's descriptor.
//!
//! `…enc.pubopts` holds the public options in base64; each `…enc.keys.*` holds a comma-separated list of wrapped
//! private options in base64, one for each way to open the layer.

use std::collections::HashMap;
use std::hash::BuildHasher;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::options::{OptionsError, PublicOptions};

/// The public options.
pub const PUBLIC_OPTIONS: &str = "org.opencontainers.image.enc.pubopts";
/// Private options wrapped as JWE.
pub const KEYS_JWE: &str = "org.opencontainers.image.enc.keys.jwe";
/// What the name of a key provider is appended to.
pub const KEYS_PROVIDER: &str = "org.opencontainers.image.enc.keys.provider.";
/// The key provider of Confidential Containers.
pub const PROVIDER_COCO: &str = "attestation-agent";
/// What every annotation of an encrypted layer starts with.
pub const PREFIX: &str = "org.opencontainers.image.enc.";

/// What the names of all wrapped keys start with.
const KEYS: &str = "org.opencontainers.image.enc.keys.";
/// Schemes of ocicrypt which are refused, each with the reason.
const REFUSED: [(&str, &str); 3] = [
    (
        "pkcs7",
        "PKCS#7, refused because ocicrypt wraps its key by RSA with PKCS#1 v1.5 padding, which whoever may try \
         messages on can open",
    ),
    (
        "pgp",
        "OpenPGP, refused because its keys are a user's and no guest is given a keyring",
    ),
    (
        "pkcs11",
        "PKCS#11, refused because its key is in a device that no guest has",
    ),
];

/// Cap on one annotation in bytes; a real one has about 1000.
const ANNOTATION_BYTES_MAX: usize = 256 * 1024;
/// Cap on the ways in which one layer can be opened.
const WAYS_MAX: usize = 32;

/// Why the annotations of a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationError {
    /// No public options.
    #[error("an encrypted layer has no annotation {PUBLIC_OPTIONS}")]
    NoPublicOptions,
    /// No wrapped key that we know how to open.
    #[error(
        "an encrypted layer has no key for a broker, a key provider or a JWE recipient; encrypt it again with \
         kbs:///, provider: or jwe:. It has: {0}"
    )]
    NoKeys(String),
    /// Not base64.
    #[error("annotation {0:?} is not base64")]
    Base64(String),
    /// A cap.
    #[error(
        "annotation {0:?} is longer than {ANNOTATION_BYTES_MAX} bytes, or has more than {WAYS_MAX} keys"
    )]
    TooLong(String),
    /// The public options themselves.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

/// One wrapped copy of a layer's private options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrapped {
    /// For a key provider.
    Provider {
        /// The provider's name.
        name: String,
        /// What the provider wrote; for [`PROVIDER_COCO`] the JSON of a [`crate::packet::Packet`].
        annotation: Vec<u8>,
    },
    /// A JWE in JSON.
    Jwe(Vec<u8>),
}

/// What the annotations of one layer say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// The options in clear.
    pub public: PublicOptions,
    /// The wrapped copies: those for key providers first.
    pub keys: Vec<Wrapped>,
}

impl Encryption {
    /// Reads the annotations of an encrypted layer.
    ///
    /// # Errors
    /// See [`AnnotationError`].
    pub fn read<S: BuildHasher>(
        annotations: &HashMap<String, String, S>,
    ) -> Result<Self, AnnotationError> {
        let public = annotations
            .get(PUBLIC_OPTIONS)
            .ok_or(AnnotationError::NoPublicOptions)?;
        let public = PublicOptions::from_json(&decode(PUBLIC_OPTIONS, public)?)?;
        // Sorted, so that the order of ways does not hang on the order of a hash map.
        let mut names: Vec<_> = annotations
            .keys()
            .filter(|name| name.starts_with(KEYS_PROVIDER))
            .collect();
        names.sort();
        let mut keys = Vec::new();
        for name in names {
            let provider = &name[KEYS_PROVIDER.len()..];
            for annotation in decode_list(name, &annotations[name])? {
                keys.push(Wrapped::Provider {
                    name: provider.to_owned(),
                    annotation,
                });
            }
        }
        if let Some(list) = annotations.get(KEYS_JWE) {
            keys.extend(decode_list(KEYS_JWE, list)?.into_iter().map(Wrapped::Jwe));
        }
        if keys.is_empty() {
            let found = refused(annotations);
            let found = if found.is_empty() {
                "none".to_owned()
            } else {
                found.join("; ")
            };
            return Err(AnnotationError::NoKeys(found));
        }
        Ok(Self { public, keys })
    }

    /// Writes the annotations.
    #[must_use]
    pub fn write(&self) -> Vec<(String, String)> {
        let mut out = vec![(
            PUBLIC_OPTIONS.to_owned(),
            STANDARD.encode(self.public.to_json()),
        )];
        for wrapped in &self.keys {
            let (name, bytes) = match wrapped {
                Wrapped::Provider { name, annotation } => {
                    (format!("{KEYS_PROVIDER}{name}"), annotation)
                }
                Wrapped::Jwe(message) => (KEYS_JWE.to_owned(), message),
            };
            let text = STANDARD.encode(bytes);
            match out.iter_mut().find(|(known, _)| *known == name) {
                Some((_, list)) => {
                    list.push(',');
                    list.push_str(&text);
                }
                None => out.push((name, text)),
            }
        }
        out
    }
}

/// The ways to open a layer that we do not go, in words and with the reason.
#[must_use]
pub fn refused<S: BuildHasher>(annotations: &HashMap<String, String, S>) -> Vec<String> {
    let scheme = |name: &String| {
        let scheme = name.strip_prefix(KEYS)?;
        if scheme == "jwe" || name.starts_with(KEYS_PROVIDER) {
            return None;
        }
        let known = REFUSED.iter().find(|(known, _)| *known == scheme);
        Some(known.map_or_else(
            || format!("{scheme:?}, which is not known"),
            |(_, reason)| (*reason).to_owned(),
        ))
    };
    let mut found: Vec<_> = annotations.keys().filter_map(scheme).collect();
    found.sort();
    found
}

fn decode(name: &str, text: &str) -> Result<Vec<u8>, AnnotationError> {
    if text.len() > ANNOTATION_BYTES_MAX {
        return Err(AnnotationError::TooLong(name.to_owned()));
    }
    STANDARD
        .decode(text)
        .map_err(|_| AnnotationError::Base64(name.to_owned()))
}

fn decode_list(name: &str, list: &str) -> Result<Vec<Vec<u8>>, AnnotationError> {
    if list.len() > ANNOTATION_BYTES_MAX || list.split(',').count() > WAYS_MAX {
        return Err(AnnotationError::TooLong(name.to_owned()));
    }
    list.split(',').map(|item| decode(name, item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrapped_copy_is_found_again() {
        let encryption = Encryption {
            public: PublicOptions::new([5; 32]),
            keys: vec![
                Wrapped::Provider {
                    name: PROVIDER_COCO.to_owned(),
                    annotation: b"one".to_vec(),
                },
                Wrapped::Provider {
                    name: PROVIDER_COCO.to_owned(),
                    annotation: b"two".to_vec(),
                },
                Wrapped::Jwe(b"{}".to_vec()),
            ],
        };
        let annotations: HashMap<_, _> = encryption.write().into_iter().collect();
        assert_eq!(annotations.len(), 3);
        assert_eq!(Encryption::read(&annotations).unwrap(), encryption);
    }

    #[test]
    fn a_layer_without_a_key_for_us_says_what_it_has_and_why_we_refuse_it() {
        for (scheme, words) in [
            ("pkcs7", "PKCS#1 v1.5"),
            ("pgp", "keyring"),
            ("pkcs11", "device"),
            ("quantum", "\"quantum\", which is not known"),
        ] {
            let mut annotations: HashMap<_, _> = Encryption {
                public: PublicOptions::new([5; 32]),
                keys: Vec::new(),
            }
            .write()
            .into_iter()
            .collect();
            annotations.insert(format!("{KEYS}{scheme}"), "AAAA".to_owned());
            let error = Encryption::read(&annotations).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("jwe:"), "{error}");
        }
    }
}
