//! AES-256-XTS as `cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 --sector-size 4096` has it
//! (IEEE 1619): what an owner prepares a disk with, and reads it back with, without a kernel that does it.

use aes::cipher::{BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use aes::{Aes256, Block};

/// Bytes that are encrypted as one; their number counts in sectors of 512 bytes.
const UNIT: usize = 4096;
const BLOCK: usize = 16;

/// Encrypts all of a disk in place.
pub fn encrypt(key: &[u8; 64], disk: &mut [u8]) {
    each_block(key, disk, |cipher, block| cipher.encrypt_block(block));
}

/// Decrypts all of a disk in place.
pub fn decrypt(key: &[u8; 64], disk: &mut [u8]) {
    each_block(key, disk, |cipher, block| cipher.decrypt_block(block));
}

fn each_block(key: &[u8; 64], disk: &mut [u8], turn: impl Fn(&Aes256, &mut Block)) {
    let cipher = |half: &[u8]| Aes256::new_from_slice(half).ok();
    let (data, tweak) = key.split_at(32);
    let (Some(data), Some(tweak)) = (cipher(data), cipher(tweak)) else {
        return;
    };
    for (number, unit) in disk.chunks_exact_mut(UNIT).enumerate() {
        let mut mask = Block::default();
        let sector = (number * UNIT / 512) as u64;
        mask[..8].copy_from_slice(&sector.to_le_bytes());
        tweak.encrypt_block(&mut mask);
        for part in unit.chunks_exact_mut(BLOCK) {
            let mut block = Block::default();
            block.copy_from_slice(part);
            mix(&mut block, &mask);
            turn(&data, &mut block);
            mix(&mut block, &mask);
            part.copy_from_slice(&block);
            mask = double(&mask);
        }
    }
}

fn mix(block: &mut Block, mask: &Block) {
    block
        .iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
}

/// Times the primitive element of GF(2^128), as little-endian.
fn double(mask: &Block) -> Block {
    let mut next = Block::default();
    let mut carry = 0;
    for (to, from) in next.iter_mut().zip(mask) {
        *to = (from << 1) | carry;
        carry = from >> 7;
    }
    next[0] ^= 0x87 * carry;
    next
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    /// Vector 10 of IEEE 1619-2007, annex B: key and the first block of data unit 0xff.
    #[test]
    fn it_is_the_standards_cipher() {
        let mut key = [0; 64];
        let first = "2718281828459045235360287471352662497757247093699959574966967627";
        let second = "3141592653589793238462643383279502884197169399375105820974944592";
        key[..32].copy_from_slice(&hex::decode(first).unwrap());
        key[32..].copy_from_slice(&hex::decode(second).unwrap());
        // Its data unit has the number 0xff and 512 bytes; ours of that number would be no multiple of 8.
        let cipher = |half: &[u8]| Aes256::new_from_slice(half).unwrap();
        let mut mask = Block::default();
        mask[0] = 0xff;
        cipher(&key[32..]).encrypt_block(&mut mask);
        let mut block = Block::default();
        let plain: Vec<u8> = (0..16).collect();
        block.copy_from_slice(&plain);
        mix(&mut block, &mask);
        cipher(&key[..32]).encrypt_block(&mut block);
        mix(&mut block, &mask);
        assert_eq!(hex::encode(block), "1c3b3a102f770386e4836c99e370cf9b");
    }

    #[test]
    fn what_is_encrypted_comes_back_and_equal_units_differ() {
        let mut key = [0; 64];
        key.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
        let mut disk = vec![7; 2 * UNIT];
        encrypt(&key, &mut disk);
        assert_ne!(disk[..UNIT], disk[UNIT..]);
        decrypt(&key, &mut disk);
        assert!(disk.iter().all(|byte| *byte == 7));
    }
}
