//! Writes a CoRIM of reference values that appraisal policies know by a name alone, such as
//! `snp_launch_measurement`: what `cloister measure` gives to a broker.
//!
//! Trustee's rule makes a name out of vendor, model and key, and puts what the value is behind it. Such a
//! name is none that a policy asks for, so that here the class is an id of ours, and the key is the name.

use std::time::{SystemTime, UNIX_EPOCH};

use ciborium::Value;

use super::{
    Algorithm, COMID, CORIM_BYTES, COSE_SIGN1, CorimError, RAW_BYTES, TIME, UNSIGNED, UUID,
    signed::{ALGORITHM, CONTENT_TYPE, CORIM_META, KEY_ID, RIM, message},
};

/// The class of measurements whose key is the whole name of a reference value.
pub(super) const NAMED: [u8; 16] = [
    0x3a, 0x88, 0x98, 0x11, 0xc6, 0x1a, 0x46, 0x90, 0x94, 0xdb, 0x07, 0x51, 0x97, 0xa8, 0x34, 0x51,
];
/// SHA-384 among IANA's named hash algorithms.
const SHA_384: u64 = 7;

/// A CoRIM that is not written yet.
#[derive(Debug, Clone)]
pub struct Draft {
    id: String,
    measurements: Vec<Value>,
    not_before: Option<SystemTime>,
    not_after: Option<SystemTime>,
}

impl Draft {
    /// A document with an id, which names it among others of the same author.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            measurements: Vec::new(),
            not_before: None,
            not_after: None,
        }
    }

    /// From when until when it holds; always where a side is absent. Seconds are not divided.
    #[must_use]
    pub fn within(mut self, not_before: Option<SystemTime>, not_after: Option<SystemTime>) -> Self {
        self.not_before = not_before;
        self.not_after = not_after;
        self
    }

    /// Adds digests, each of which is good under this name.
    #[must_use]
    pub fn digests<'a>(
        mut self,
        name: &str,
        digests: impl IntoIterator<Item = &'a [u8; 48]>,
    ) -> Self {
        let digest =
            |digest: &[u8; 48]| Value::Array(vec![SHA_384.into(), Value::Bytes(digest.to_vec())]);
        let digests = Value::Array(digests.into_iter().map(digest).collect());
        self.measurements.push(map([
            (0, Value::Text(name.to_owned())),
            (1, map([(2, digests)])),
        ]));
        self
    }

    /// Adds bytes that are no digest, and are good under this name.
    #[must_use]
    pub fn raw(mut self, name: &str, value: &[u8]) -> Self {
        let value = tag(RAW_BYTES, Value::Bytes(value.to_vec()));
        self.measurements.push(map([
            (0, Value::Text(name.to_owned())),
            (1, map([(4, value)])),
        ]));
        self
    }

    /// The document, which nobody signed.
    ///
    /// # Errors
    /// When it is too large.
    pub fn unsigned(&self) -> Result<Vec<u8>, CorimError> {
        bytes(&self.manifest()?)
    }

    /// The document in a COSE_Sign1, whose message `sign` signs. `key_id` tells the reader the key, and
    /// `signer` who has it.
    ///
    /// # Errors
    /// When it is too large, and the errors of `sign`.
    pub fn signed<E: From<CorimError>>(
        &self,
        algorithm: Algorithm,
        key_id: &[u8],
        signer: &str,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let meta = map([(0, map([(0, Value::Text(signer.to_owned()))]))]);
        let protected = bytes(&map([
            (ALGORITHM, algorithm.number().into()),
            (CONTENT_TYPE, Value::Text(RIM.to_owned())),
            (KEY_ID, Value::Bytes(key_id.to_vec())),
            (CORIM_META, Value::Bytes(bytes(&meta)?)),
        ]))?;
        let payload = self.unsigned()?;
        let signature = sign(&message(protected.clone(), payload.clone())?)?;
        let whole = Value::Array(vec![
            Value::Bytes(protected),
            Value::Map(Vec::new()),
            Value::Bytes(payload),
            Value::Bytes(signature),
        ]);
        Ok(bytes(&tag(COSE_SIGN1, whole))?)
    }

    fn manifest(&self) -> Result<Value, CorimError> {
        let class = map([(0, tag(UUID, Value::Bytes(NAMED.to_vec())))]);
        let triple = Value::Array(vec![
            map([(0, class)]),
            Value::Array(self.measurements.clone()),
        ]);
        let comid = map([
            (1, map([(0, Value::Text(self.id.clone()))])),
            (4, map([(0, Value::Array(vec![triple]))])),
        ]);
        let comid = tag(COMID, Value::Bytes(bytes(&comid)?));
        let mut members = vec![
            (0, Value::Text(self.id.clone())),
            (1, Value::Array(vec![comid])),
        ];
        let mut validity = Vec::new();
        for (key, moment) in [(0, self.not_before), (1, self.not_after)] {
            validity.extend(moment.map(|moment| (key, time(moment))));
        }
        if !validity.is_empty() {
            members.push((4, map(validity)));
        }
        Ok(tag(UNSIGNED, map(members)))
    }
}

fn time(moment: SystemTime) -> Value {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    tag(TIME, since.as_secs().into())
}

fn map(members: impl IntoIterator<Item = (i128, Value)>) -> Value {
    let number = |key: i128| Value::Integer(i64::try_from(key).unwrap_or(i64::MAX).into());
    let members = members.into_iter().map(|(key, value)| (number(key), value));
    Value::Map(members.collect())
}

fn tag(tag: u64, value: Value) -> Value {
    Value::Tag(tag, Box::new(value))
}

fn bytes(value: &Value) -> Result<Vec<u8>, CorimError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|_| CorimError::Cbor)?;
    if bytes.len() > CORIM_BYTES {
        return Err(CorimError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}
