//! Digests and ID blocks that others have published, over the ends of OVMF images that they were
//! computed from.

use crate::launch;

use std::{fs, path::PathBuf};

use measure::snp::{Firmware, IdBlock, IdKey, KernelHashes, Launch, LaunchError};
use p384::ecdsa::{Signature, VerifyingKey, signature::Verifier};

/// A vector, or nothing where the vectors are absent.
fn vector(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/vectors/snp")
        .join(name);
    let found = fs::read(&path).ok();
    if found.is_none() {
        eprintln!("skipped: there is no ../shared/vectors/snp/{name}");
    }
    found
}

const OVMF_DIGEST: &str = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74";

#[test]
fn launches_have_the_published_digests() {
    let Some(image) = vector("measure-ovmf_AmdSev_suffix.bin") else {
        return;
    };
    // The image is the end of the firmware that the first two digests are of.
    let part = Firmware::parse(&image).unwrap();
    let whole = part.clone().with_digest(OVMF_DIGEST.parse().unwrap());
    let nothing = KernelHashes::new(b"", Some(b""), "").unwrap();
    let line = KernelHashes::new(b"", Some(b""), "console=ttyS0 loglevel=7").unwrap();
    for (firmware, kernel, features, vcpus, digest) in [
        (
            &whole,
            Some(&nothing),
            0x1,
            1,
            "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5",
        ),
        (
            &whole,
            Some(&nothing),
            0x21,
            1,
            "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198",
        ),
        (
            &part,
            Some(&line),
            0x21,
            1,
            "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
        ),
        (
            &part,
            Some(&line),
            0x1,
            1,
            "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
        ),
        (
            &part,
            None,
            0x21,
            1,
            "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b",
        ),
        (
            &part,
            None,
            0x1,
            1,
            "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d",
        ),
        (
            &part,
            Some(&nothing),
            0x21,
            4,
            "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942",
        ),
        (
            &part,
            Some(&nothing),
            0x1,
            4,
            "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
        ),
    ] {
        let found = launch::digest(firmware, kernel, "EPYC-v4", features, vcpus);
        assert_eq!(found, digest, "{vcpus} vCPUs, features {features:#x}");
    }
    assert_eq!(part.digest().hex(), OVMF_DIGEST);
}

#[test]
fn a_firmware_without_a_page_of_hashes_takes_no_kernel() {
    let Some(image) = vector("measure-ovmf_OvmfX64_suffix.bin") else {
        return;
    };
    let firmware = Firmware::parse(&image).unwrap();
    for (features, digest) in [
        (
            0x21,
            "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385",
        ),
        (
            0x1,
            "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005",
        ),
    ] {
        let found = launch::digest(&firmware, None, "EPYC-v4", features, 1);
        assert_eq!(found, digest);
    }
    let kernel = KernelHashes::new(b"", None, "").unwrap();
    let launch = Launch {
        firmware: &firmware,
        kernel: Some(&kernel),
        cpu: &"EPYC".parse().unwrap(),
        features: measure::snp::GuestFeatures::SNP,
    };
    assert_eq!(launch.digest(1), Err(LaunchError::NoHashes));
}

/// A number in a structure, the greatest byte first.
fn number(field: &[u8]) -> Vec<u8> {
    field[..48].iter().rev().copied().collect()
}

fn verifies(key: &[u8], signature: &[u8], message: &[u8]) -> bool {
    let point = [vec![4], number(&key[4..76]), number(&key[76..148])].concat();
    let fixed = [number(&signature[..72]), number(&signature[72..144])].concat();
    let key = VerifyingKey::from_sec1_bytes(&point).unwrap();
    key.verify(message, &Signature::from_slice(&fixed).unwrap())
        .is_ok()
}

#[test]
fn id_blocks_and_keys_are_the_published_ones_and_signatures_verify() {
    let parts = [
        "test_id_key.pem",
        "test_auth_key.pem",
        "test_auth_block.bin",
        "test_id_sig.bin",
        "test_auth_sig.bin",
    ];
    let parts: Option<Vec<_>> = parts
        .iter()
        .map(|name| vector(&format!("measure-{name}")))
        .collect();
    let Some(parts) = parts else { return };
    let key = |at: usize| IdKey::from_pem(std::str::from_utf8(&parts[at]).unwrap()).unwrap();
    let (id, author) = (key(0), key(1));
    let digest = "a14d638341e5674628fe1e02fbedebe5e5ab4faf1dd72d8966068e615bb99efd13d214b35c231715b38e263dc6059745";
    let block = IdBlock::new(digest.parse().unwrap(), 0x3_0000);
    let rest = "0100000000000000 0000030000000000".replace(' ', "");
    let expected = format!("{digest}{}{rest}", "00".repeat(32));
    assert_eq!(hex::encode(block.to_bytes()), expected);
    for (key, digest) in [
        (
            &id,
            "59fb2c686dfa4fef49f38339aa775c90051c28d57383ddc3baf3b5eb4b1496df3b0dbbdcbae5fe27677a644820773fe2",
        ),
        (
            &author,
            "eed81169fb0cb5e0ec34794f128fd4e0c4a46f67c65a1adfa81fcb24bcc088c272369b7ffc3eb2b6af6a4284a1b36c5f",
        ),
    ] {
        assert_eq!(hex::encode(key.digest().0), digest);
    }
    let auth = block.sign(&id, Some(&author));
    let bytes = auth.as_bytes();
    assert!(verifies(&bytes[0x240..], &bytes[0x40..], &block.to_bytes()));
    assert!(verifies(
        &bytes[0x880..],
        &bytes[0x680..],
        &bytes[0x240..0x644]
    ));
    // Their signatures are of other randomness; all else is the same.
    let mut theirs = bytes.to_vec();
    theirs[0x40..0x240].copy_from_slice(&parts[3]);
    theirs[0x680..0x880].copy_from_slice(&parts[4]);
    assert!(theirs == parts[2], "the author's structure differs");
    let alone = block.sign(&id, None);
    assert_eq!(alone.as_bytes()[..4], [1, 0, 0, 0]);
    assert!(alone.as_bytes()[0x680..].iter().all(|byte| *byte == 0));
}
