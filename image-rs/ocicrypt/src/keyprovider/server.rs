//! The server: answers a question of the protocol with CoCo annotation packets under a KEK.
//!
//! The user's words, `provider:<name>:keypath=/abs/key::keyid=kbs:///a/b/c::algorithm=A256GCM`, arrive as parameters
//! and win over what the provider was started with, so that scripts written for CoCo's provider keep working. A Go
//! client sends all that its user said, for JWE recipients and other providers too: only what is for us is read.

use std::path::Path;

use zeroize::Zeroizing;

use super::wire::{
    Input, KeyUnwrapResults, KeyWrapResults, Operation, Output, Parameters, WireBytes,
};
use super::{DOCUMENT_BYTES_MAX, method_of};
use crate::annotation::PROVIDER_COCO;
use crate::options::{OptionsError, PrivateOptions};
use crate::packet::{Format, Packet, PacketError};
use crate::secret::Key;

/// Why a question is not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Not a question of the protocol; it is not quoted, because it may hold a key.
    #[error("the question is not a key-provider document of at most {DOCUMENT_BYTES_MAX} bytes")]
    Question,
    /// A parameter which we do not know.
    #[error("parameter {0:?} is not supported; known are keyid=, keypath= and algorithm=A256GCM")]
    Parameter(String),
    /// A question on the wrong method.
    #[error("the document asks for {asked}, but was sent to {sent}")]
    Method {
        /// What it asks for.
        asked: &'static str,
        /// Where it came.
        sent: &'static str,
    },
    /// Nobody knows for whom the words are.
    #[error("words for several key providers: {0}; start this one with --name")]
    Several(String),
    /// No key id.
    #[error("no key id: give --key-id, or keyid=kbs:///repository/type/tag in the encryption key")]
    NoKeyId,
    /// No key.
    #[error("no key for {0}: give --key-file, or keypath=/absolute/file in the encryption key")]
    NoKey(String),
    /// The key file cannot be read.
    #[error("key file {path:?} cannot be read: {reason}")]
    KeyFile {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The packet.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The private options.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

/// Reads a key file for a provider; the file system stays with the caller.
pub type KekSource = fn(&Path) -> Result<Key, String>;

/// What ocicrypt keeps among the words for providers, for its own schemes.
const NOT_PROVIDERS: [&str; 13] = [
    "gpg-client",
    "gpg-client-version",
    "gpg-privatekeys",
    "gpg-privatekeys-passwords",
    "gpg-pubkeyringfile",
    "gpg-recipients",
    "pkcs11-config",
    "pkcs11-pubkeys",
    "pkcs11-yamls",
    "privkeys",
    "privkeys-passwords",
    "pubkeys",
    "x509s",
];

/// A provider with the key that it was started with, if any.
#[expect(missing_debug_implementations, reason = "holds a key")]
pub struct Provider {
    /// Its name in the client's file of providers; where absent it is CoCo's, or the only one.
    pub name: Option<String>,
    /// The id of the key.
    pub kid: Option<String>,
    /// The key.
    pub kek: Option<Key>,
    /// Reads the file that `keypath=` names.
    pub read_key: KekSource,
}

impl Provider {
    /// Answers one document with one document; the answer to an unwrap is a secret.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn answer(&self, question: &[u8]) -> Result<Zeroizing<Vec<u8>>, ServeError> {
        self.answer_to(None, question)
    }

    /// The same for a document that came to the method of an operation.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn answer_to(
        &self,
        method: Option<Operation>,
        question: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ServeError> {
        if question.len() > DOCUMENT_BYTES_MAX {
            return Err(ServeError::Question);
        }
        let input: Input = serde_json::from_slice(question).map_err(|_| ServeError::Question)?;
        if let Some(sent) = method.filter(|method| *method != input.op) {
            return Err(ServeError::Method {
                asked: method_of(input.op),
                sent: method_of(sent),
            });
        }
        let output = match input.op {
            Operation::KeyWrap => {
                let parameters = input.wrap.ec.and_then(|ec| ec.parameters);
                let words = self.words(parameters.as_ref())?;
                let options = input.wrap.options.ok_or(ServeError::Question)?;
                // Refused here rather than when the image is pulled.
                PrivateOptions::from_json(options.expose())?;
                Output {
                    wrap: Some(self.wrap(&words, options.expose())?),
                    unwrap: None,
                }
            }
            Operation::KeyUnwrap => {
                let parameters = input.unwrap.dc.and_then(|dc| dc.parameters);
                let words = self.words(parameters.as_ref())?;
                let annotation = input.unwrap.annotation.ok_or(ServeError::Question)?;
                Output {
                    wrap: None,
                    unwrap: Some(self.unwrap(&words, annotation.expose())?),
                }
            }
        };
        Ok(output.to_json())
    }

    /// What was said to this provider, and not to others.
    fn words(&self, parameters: Option<&Parameters>) -> Result<Words, ServeError> {
        let Some(parameters) = parameters else {
            return Ok(Words::default());
        };
        let said = |name: &str| {
            let mut words = Words::default();
            for item in parameters.get(name).into_iter().flatten() {
                words.add(&item.text().ok_or(ServeError::Question)?)?;
            }
            Ok(words)
        };
        if let Some(name) = &self.name {
            return said(name);
        }
        let names: Vec<_> = parameters
            .keys()
            .map(String::as_str)
            .filter(|name| !NOT_PROVIDERS.contains(name))
            .collect();
        match names.as_slice() {
            [] => Ok(Words::default()),
            [name] => said(name),
            several if several.contains(&PROVIDER_COCO) => said(PROVIDER_COCO),
            several => Err(ServeError::Several(several.join(", "))),
        }
    }

    fn wrap(&self, words: &Words, options: &[u8]) -> Result<KeyWrapResults, ServeError> {
        let kid = words
            .kid
            .as_ref()
            .or(self.kid.as_ref())
            .ok_or(ServeError::NoKeyId)?;
        let packet = Packet::seal(Format::V2, kid, &self.kek(words, kid)?, options)?;
        Ok(KeyWrapResults {
            annotation: Some(WireBytes::new(&packet.to_json())),
        })
    }

    fn unwrap(&self, words: &Words, annotation: &[u8]) -> Result<KeyUnwrapResults, ServeError> {
        let packet = Packet::from_json(annotation)?;
        let plain = packet.open(&self.kek(words, packet.kid())?)?;
        Ok(KeyUnwrapResults {
            options: Some(WireBytes::new(&plain)),
        })
    }

    fn kek(&self, words: &Words, kid: &str) -> Result<Key, ServeError> {
        match (&words.key_path, &self.kek) {
            (Some(path), _) => {
                (self.read_key)(Path::new(path)).map_err(|reason| ServeError::KeyFile {
                    path: path.clone(),
                    reason,
                })
            }
            (None, Some(kek)) => Ok(kek.clone()),
            (None, None) => Err(ServeError::NoKey(kid.to_owned())),
        }
    }
}

/// The parameters that are for a provider like this one.
#[derive(Default)]
struct Words {
    kid: Option<String>,
    key_path: Option<String>,
}

impl Words {
    fn add(&mut self, text: &str) -> Result<(), ServeError> {
        for word in text.split("::") {
            match word.split_once('=') {
                Some(("keyid", kid)) => self.kid = Some(kid.to_owned()),
                Some(("keypath", path)) => self.key_path = Some(path.to_owned()),
                Some(("algorithm", "A256GCM")) => {}
                // skopeo demands some word after the provider's name, even where none is needed.
                None => {}
                _ => return Err(ServeError::Parameter(word.to_owned())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::secret::LayerKey;

    fn no_file(_: &Path) -> Result<Key, String> {
        Err("no such file".to_owned())
    }

    fn options() -> Zeroizing<Vec<u8>> {
        let key = LayerKey::from_slice(&[1; 32]).unwrap();
        PrivateOptions {
            key,
            digest: "sha256:00".to_owned(),
            nonce: None,
        }
        .to_json()
    }

    #[test]
    fn what_was_wrapped_unwraps_again() {
        let provider = Provider {
            name: None,
            kid: Some("kbs:///a/b/c".to_owned()),
            kek: Some(Key::new(vec![4; 32])),
            read_key: no_file,
        };
        let question = format!(
            r#"{{"op":"keywrap","keywrapparams":{{"ec":{{"Parameters":{{"x":["YW55"]}},"DecryptConfig":{{"Parameters":null}}}},
               "optsdata":"{}"}},"keyunwrapparams":{{"dc":null,"annotation":null}}}}"#,
            STANDARD.encode(options())
        );
        let answer: Output =
            serde_json::from_slice(&provider.answer(question.as_bytes()).unwrap()).unwrap();
        let annotation = answer.wrap.unwrap().annotation.unwrap();
        let question = format!(
            r#"{{"op":"keyunwrap","keyunwrapparams":{{"dc":{{"Parameters":{{}}}},"annotation":"{}"}}}}"#,
            STANDARD.encode(annotation.expose())
        );
        let answer: Output =
            serde_json::from_slice(&provider.answer(question.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            answer.unwrap.unwrap().options.unwrap().expose(),
            options().as_slice()
        );
    }

    #[test]
    fn the_users_words_win() {
        fn read(path: &Path) -> Result<Key, String> {
            match path.to_str() {
                Some("/k") => Ok(Key::new(vec![9; 32])),
                _ => Err("no such file".to_owned()),
            }
        }
        let provider = Provider {
            name: None,
            kid: Some("kbs:///a/b/c".to_owned()),
            kek: None,
            read_key: read,
        };
        let ask = |words: &str| {
            let question = format!(
                r#"{{"op":"keywrap","keywrapparams":{{"ec":{{"Parameters":{{"x":["{}"]}}}},"optsdata":"{}"}}}}"#,
                STANDARD.encode(words),
                STANDARD.encode(options())
            );
            provider.answer(question.as_bytes())
        };
        let answer: Output = serde_json::from_slice(
            &ask("keypath=/k::keyid=kbs:///x/y/z::algorithm=A256GCM").unwrap(),
        )
        .unwrap();
        let packet = Packet::from_json(answer.wrap.unwrap().annotation.unwrap().expose()).unwrap();
        assert_eq!(packet.kid(), "kbs:///x/y/z");
        assert!(packet.open(&Key::new(vec![9; 32])).is_ok());
        assert!(matches!(
            ask("keypath=/other"),
            Err(ServeError::KeyFile { .. })
        ));
        assert!(matches!(ask("any"), Err(ServeError::NoKey(_))));
        assert!(matches!(
            ask("algorithm=A256CTR::keypath=/k"),
            Err(ServeError::Parameter(_))
        ));
    }

    #[test]
    fn words_for_others_are_not_read() {
        let mut provider = Provider {
            name: None,
            kid: None,
            kek: Some(Key::new(vec![4; 32])),
            read_key: no_file,
        };
        let ask = |provider: &Provider, said: &[(&str, &str)]| {
            let said: Vec<_> = said
                .iter()
                .map(|(name, words)| format!(r#""{name}":["{}"]"#, STANDARD.encode(words)))
                .collect();
            let question = format!(
                r#"{{"op":"keywrap","keywrapparams":{{"ec":{{"Parameters":{{{}}}}},"optsdata":"{}"}}}}"#,
                said.join(","),
                STANDARD.encode(options())
            );
            provider.answer_to(Some(Operation::KeyWrap), question.as_bytes())
        };
        let ours = ("attestation-agent", "keyid=kbs:///a/b/c");
        let pem = ("pubkeys", "-----BEGIN PUBLIC KEY-----=");
        assert!(ask(&provider, &[ours, pem]).is_ok());
        assert!(ask(&provider, &[("own", "keyid=kbs:///a/b/c"), pem]).is_ok());
        assert!(ask(&provider, &[ours, ("other", "level=9")]).is_ok());
        let (one, other) = (("one", "keyid=kbs:///a/b/c"), ("other", "level=9"));
        assert!(matches!(
            ask(&provider, &[one, other]),
            Err(ServeError::Several(_))
        ));
        provider.name = Some("one".to_owned());
        assert!(ask(&provider, &[one, other]).is_ok());
    }

    #[test]
    fn a_question_on_the_wrong_method_is_refused() {
        let provider = Provider {
            name: None,
            kid: None,
            kek: None,
            read_key: no_file,
        };
        let question = br#"{"op":"keyunwrap","keyunwrapparams":{"annotation":"e30="}}"#;
        let error = provider.answer_to(Some(Operation::KeyWrap), question);
        assert!(matches!(error, Err(ServeError::Method { .. })));
    }
}
