//! The layer cipher `AES_256_CTR_HMAC_SHA256`, streaming in both directions.
//!
//! The whole compressed layer is one AES-256-CTR stream with a 128-bit big-endian counter that starts at the 16-byte
//! nonce. HMAC-SHA256 under the same key covers the ciphertext (not the nonce) and is known only at the end: until
//! [`Opener::finish`] has returned `Ok`, the plaintext must stay invisible to everybody.
//!
//! The counter mode is written out here, in batches: the block cipher is three times faster by many blocks than a
//! stream cipher that hands it eight, and a layer passes through nothing slower but its hashes.

use aes::cipher::BlockCipherEncrypt as _;
use aes::{Aes256, Block};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::secret::{LayerKey, NoEntropy, fill};

/// The only cipher of the specification, by its name in the public options.
pub const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
/// Length in bytes of the nonce.
pub const NONCE_BYTES: usize = 16;
/// Length in bytes of the HMAC.
pub const HMAC_BYTES: usize = 32;
/// Key stream that is made at once, in bytes.
const BATCH_BYTES: usize = 2048;

/// Why an encrypted layer is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CipherError {
    /// The ciphertext is not what was encrypted under this key.
    #[error(
        "the layer's HMAC does not match: the blob was altered, or the key is not the one it was encrypted with"
    )]
    Hmac,
    /// More than 2^64 bytes.
    #[error("the layer is longer than can be counted")]
    Exhausted,
}

/// The start value of the counter. Never to be used twice with one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; NONCE_BYTES]);

impl Nonce {
    /// Makes a new random nonce.
    ///
    /// # Errors
    /// [`NoEntropy`] when the operating system has no random source.
    pub fn generate() -> Result<Self, NoEntropy> {
        let mut bytes = [0; NONCE_BYTES];
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

/// Encrypts one layer, chunk by chunk.
#[expect(missing_debug_implementations, reason = "holds key material")]
pub struct Sealer(State);

impl Sealer {
    /// Starts a layer.
    #[must_use]
    pub fn new(key: &LayerKey, nonce: &Nonce) -> Self {
        Self(State::new(key, nonce))
    }

    /// Encrypts the next chunk in place; chunks may have any length.
    ///
    /// # Errors
    /// [`CipherError::Exhausted`] after 2^64 bytes.
    pub fn update(&mut self, chunk: &mut [u8]) -> Result<(), CipherError> {
        self.0.apply(chunk)?;
        self.0.mac.update(chunk);
        Ok(())
    }

    /// Ends the layer and gives the HMAC of its ciphertext.
    #[must_use]
    pub fn finish(self) -> [u8; HMAC_BYTES] {
        self.0.mac.finalize().into_bytes().into()
    }
}

/// Decrypts one layer, chunk by chunk.
#[expect(missing_debug_implementations, reason = "holds key material")]
pub struct Opener(State);

impl Opener {
    /// Starts a layer.
    #[must_use]
    pub fn new(key: &LayerKey, nonce: &Nonce) -> Self {
        Self(State::new(key, nonce))
    }

    /// Decrypts the next chunk in place; chunks may have any length. What comes out is not yet authentic.
    ///
    /// # Errors
    /// [`CipherError::Exhausted`] after 2^64 bytes.
    pub fn update(&mut self, chunk: &mut [u8]) -> Result<(), CipherError> {
        self.0.mac.update(chunk);
        self.0.apply(chunk)
    }

    /// Ends the layer; compares in constant time.
    ///
    /// # Errors
    /// [`CipherError::Hmac`]: nothing that [`Opener::update`] gave out may be used.
    pub fn finish(self, expected: &[u8; HMAC_BYTES]) -> Result<(), CipherError> {
        self.0
            .mac
            .verify_slice(expected)
            .map_err(|_| CipherError::Hmac)
    }
}

struct State {
    stream: KeyStream,
    mac: Hmac<Sha256>,
    bytes: u64,
}

impl State {
    fn new(key: &LayerKey, nonce: &Nonce) -> Self {
        Self {
            stream: KeyStream::new(key, nonce),
            mac: <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose())
                .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length")),
            bytes: 0,
        }
    }

    fn apply(&mut self, chunk: &mut [u8]) -> Result<(), CipherError> {
        let bytes = self.bytes.checked_add(chunk.len() as u64);
        self.bytes = bytes.ok_or(CipherError::Exhausted)?;
        self.stream.apply(chunk);
        Ok(())
    }
}

/// AES-256 over a counter: what a chunk is combined with.
struct KeyStream {
    cipher: Aes256,
    counter: u128,
    batch: Box<Zeroizing<[u8; BATCH_BYTES]>>,
    /// How much of the batch is used up.
    used: usize,
}

impl KeyStream {
    fn new(key: &LayerKey, nonce: &Nonce) -> Self {
        Self {
            cipher: Aes256::new(key.expose().into()),
            counter: u128::from_be_bytes(nonce.0),
            batch: Box::new(Zeroizing::new([0; BATCH_BYTES])),
            used: BATCH_BYTES,
        }
    }

    fn apply(&mut self, mut chunk: &mut [u8]) {
        while !chunk.is_empty() {
            if self.used == BATCH_BYTES {
                self.refill();
            }
            let ready = &self.batch[self.used..];
            let count = ready.len().min(chunk.len());
            let (now, later) = chunk.split_at_mut(count);
            for (byte, key) in now.iter_mut().zip(ready) {
                *byte ^= key;
            }
            self.used += count;
            chunk = later;
        }
    }

    fn refill(&mut self) {
        let (blocks, _) = Block::slice_as_chunks_mut(self.batch.as_mut_slice());
        for block in blocks.iter_mut() {
            *block = self.counter.to_be_bytes().into();
            self.counter = self.counter.wrapping_add(1);
        }
        self.cipher.encrypt_blocks(blocks);
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(
        key: &LayerKey,
        nonce: &Nonce,
        plain: &[u8],
        chunk: usize,
    ) -> (Vec<u8>, [u8; HMAC_BYTES]) {
        let mut bytes = plain.to_vec();
        let mut sealer = Sealer::new(key, nonce);
        for part in bytes.chunks_mut(chunk) {
            sealer.update(part).unwrap();
        }
        (bytes, sealer.finish())
    }

    fn open(
        key: &LayerKey,
        nonce: &Nonce,
        sealed: &[u8],
        mac: &[u8; 32],
        chunk: usize,
    ) -> Result<Vec<u8>, CipherError> {
        let mut bytes = sealed.to_vec();
        let mut opener = Opener::new(key, nonce);
        for part in bytes.chunks_mut(chunk) {
            opener.update(part)?;
        }
        opener.finish(mac)?;
        Ok(bytes)
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length)
            .map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap())
            .collect()
    }

    /// NIST SP 800-38A, F.5.5: CTR-AES256, with its four blocks as one stream.
    #[test]
    fn the_stream_is_that_of_sp_800_38a() {
        let key = LayerKey::from_slice(
            &hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
                .unwrap(),
        )
        .unwrap();
        let nonce = Nonce(
            hex::decode("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
                .unwrap()
                .try_into()
                .unwrap(),
        );
        let plain = hex::decode(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
        )
        .unwrap();
        let expected = "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5\
                        2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6";
        assert_eq!(hex::encode(seal(&key, &nonce, &plain, 7).0), expected);
    }

    #[test]
    fn chunk_boundaries_change_nothing() {
        let key = LayerKey::generate().unwrap();
        let nonce = Nonce::generate().unwrap();
        for length in [0, 1, 15, 16, 17, 31, 32, 33, 4095, 4096, 4097] {
            let plain = pattern(length);
            let whole = seal(&key, &nonce, &plain, usize::MAX);
            for chunk in [1, 2, 15, 16, 17, 64, 1000, 4096] {
                assert_eq!(
                    seal(&key, &nonce, &plain, chunk),
                    whole,
                    "sealing {length} bytes by {chunk}"
                );
                let opened = open(&key, &nonce, &whole.0, &whole.1, chunk);
                assert_eq!(
                    opened.as_deref(),
                    Ok(plain.as_slice()),
                    "opening {length} bytes by {chunk}"
                );
            }
        }
    }

    #[test]
    fn the_counter_wraps_over_all_128_bits() {
        let key = LayerKey::generate().unwrap();
        let nonce = Nonce([0xff; 16]);
        let plain = pattern(48);
        let (sealed, mac) = seal(&key, &nonce, &plain, 48);
        assert_eq!(open(&key, &nonce, &sealed, &mac, 5).unwrap(), plain);
        let (second, _) = seal(&key, &Nonce([0; 16]), &plain[16..], 32);
        assert_eq!(sealed[16..], second);
    }

    #[test]
    fn any_altered_bit_is_refused() {
        let key = LayerKey::generate().unwrap();
        let nonce = Nonce::generate().unwrap();
        let (sealed, mac) = seal(&key, &nonce, &pattern(40), 40);
        for index in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[index] ^= 1;
            assert_eq!(open(&key, &nonce, &bad, &mac, 16), Err(CipherError::Hmac));
        }
        let mut bad = mac;
        bad[31] ^= 1;
        assert_eq!(
            open(&key, &nonce, &sealed, &bad, 16),
            Err(CipherError::Hmac)
        );
        assert_eq!(
            open(&key, &nonce, &sealed[..39], &mac, 16),
            Err(CipherError::Hmac)
        );
        let other = LayerKey::generate().unwrap();
        assert_eq!(
            open(&other, &nonce, &sealed, &mac, 16),
            Err(CipherError::Hmac)
        );
    }
}
