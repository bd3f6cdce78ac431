//! What the configuration says of confidential guests: Kata's keys, and those of `[cloister]`.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hypervisor::tee::{self, IdBlock, Kind, QuoteService, TDX_ID_BYTES};
use hypervisor::{Accel, Machine};
use measure::snp::{CpuModel, ID_AUTH_BYTES, ID_BLOCK_BYTES};

use super::{Config, Tee};

/// Where Intel's quoting service has its socket unless it listens on vsock.
const QUOTE_SOCKET: &str = "/var/run/tdx-qgs/qgs.socket";
/// The word for the CPU model of the host's own generation.
const OF_HOST: &str = "host-generation";

/// The keys as they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confidential {
    /// Whether Kata's `confidential_guest` asks for one, of a kind that other keys tell.
    pub wanted: bool,
    /// Whether Kata's `sev_snp_guest` says that it is an SEV-SNP one.
    pub snp: bool,
    /// The SNP guest policy.
    pub policy: u64,
    /// The ID block.
    pub id_block: Vec<u8>,
    /// Its signatures and keys.
    pub id_auth: Vec<u8>,
    /// QEMU's CPU model of SNP guests; `None` for the one of the host's generation.
    pub cpu_model: Option<String>,
    /// Whether SNP guests get no report that is signed with the chip's own key.
    pub vcek_disabled: bool,
    /// The port of the quoting service on the host's vsock; 0 where its socket is looked for first.
    pub quote_port: u32,
    /// `MROWNER` of TDs.
    pub mrowner: [u8; TDX_ID_BYTES],
    /// `MROWNERCONFIG` of TDs.
    pub mrownerconfig: [u8; TDX_ID_BYTES],
}

impl Default for Confidential {
    fn default() -> Self {
        Self {
            wanted: false,
            snp: false,
            policy: tee::DEFAULT_POLICY,
            id_block: Vec::new(),
            id_auth: Vec::new(),
            cpu_model: Some(tee::DEFAULT_CPU_MODEL.to_owned()),
            vcek_disabled: false,
            quote_port: 0,
            mrowner: [0; TDX_ID_BYTES],
            mrownerconfig: [0; TDX_ID_BYTES],
        }
    }
}

impl Confidential {
    /// The ID block with what authenticates it, where there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn id(&self) -> Result<Option<IdBlock>, String> {
        match (self.id_block.is_empty(), self.id_auth.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => {
                let id = IdBlock::new(&self.id_block, &self.id_auth);
                let id = id.map_err(|error| error.to_string())?;
                if id.policy() == self.policy {
                    return Ok(Some(id));
                }
                let (signed, set) = (id.policy(), self.policy);
                Err(format!(
                    "the policy that was signed is {signed}, and snp_guest_policy is {set}: the launch would be refused"
                ))
            }
            _ => Err("an ID block is no good without its authentication information".to_owned()),
        }
    }

    /// Where the quoting service listens.
    #[must_use]
    pub fn quotes(&self) -> QuoteService {
        match self.quote_port {
            0 if Path::new(QUOTE_SOCKET).exists() => QuoteService::Unix(QUOTE_SOCKET.into()),
            0 => QuoteService::Vsock {
                port: tee::DEFAULT_QUOTE_PORT,
            },
            port => QuoteService::Vsock { port },
        }
    }
}

impl Tee {
    /// The technology of the host that such a guest needs.
    #[must_use]
    pub fn hardware(self) -> Option<Kind> {
        match self {
            Self::Snp => Some(Kind::Snp),
            Self::Tdx => Some(Kind::Tdx),
            Self::None | Self::Sample | Self::SimSnp | Self::SimTdx => None,
        }
    }
}

/// Which kind Kata's keys ask for, where `tee` does not say it.
///
/// # Errors
/// They do not say it.
pub(super) fn kind(wanted: &Confidential, has_quote_port: bool) -> Result<Tee, &'static str> {
    match (wanted.snp, has_quote_port) {
        (true, _) => Ok(Tee::Snp),
        (false, true) => Ok(Tee::Tdx),
        (false, false) => Err(
            "asks for a confidential guest of no kind, and none is guessed from what the host may have",
        ),
    }
}

/// Whether the parts of a configuration go together; else the key, the reason and the remedy.
pub(super) fn consistent(config: &Config) -> Result<(), (&'static str, String, &'static str)> {
    igvm(config)?;
    vcek(config)?;
    let Some(kind) = config.tee.hardware() else {
        return Ok(());
    };
    let name = kind.name();
    if config.vm.firmware.is_none() && config.vm.igvm.is_none() {
        return Err((
            "hypervisor.qemu.firmware",
            format!("{name} guests start with firmware that was built for them, and none is named"),
            "name OVMF for SEV-SNP (OVMF.amdsev.fd) or for TDX without keys of Secure Boot (OVMF.inteltdx.fd)",
        ));
    }
    if config.vm.machine != Machine::Q35 {
        return Err((
            "hypervisor.qemu.machine_type",
            format!("{name} guests have a q35 machine"),
            "set machine_type = \"q35\"",
        ));
    }
    if config.vm.accel == Accel::Tcg {
        return Err((
            "cloister.accel",
            format!("\"tcg\": nothing emulates {name}"),
            "set accel = \"auto\"; tee = \"sim-snp\" or \"sim-tdx\" is for development",
        ));
    }
    config.vm.confidential.id().map(drop).map_err(|reason| {
        let fix = "`cloister measure --id-key` makes both: snp_id_block and snp_id_auth";
        ("hypervisor.qemu.snp_id_block", reason, fix)
    })
}

/// An IGVM file is for an SEV-SNP guest, and brings firmware and ID block along.
fn igvm(config: &Config) -> Result<(), (&'static str, String, &'static str)> {
    const KEY: &str = "hypervisor.qemu.igvm";
    if config.vm.igvm.is_none() {
        return Ok(());
    }
    let keys = &config.vm.confidential;
    match config.tee.hardware() {
        Some(Kind::Tdx) => Err((
            KEY,
            "QEMU loads an IGVM file into SEV-SNP guests, and into no TD".to_owned(),
            "name firmware in its place",
        )),
        None => Err((
            KEY,
            format!(
                "an IGVM file starts SEV-SNP guests, and tee is {:?}",
                config.tee.name()
            ),
            "set tee = \"snp\", or remove the key",
        )),
        Some(Kind::Snp) if config.vm.firmware.is_some() => Err((
            KEY,
            "an IGVM file holds the firmware, and QEMU takes no second one".to_owned(),
            "remove firmware or igvm",
        )),
        Some(Kind::Snp) if !keys.id_block.is_empty() || !keys.id_auth.is_empty() => Err((
            KEY,
            "QEMU takes the ID block from the IGVM file, and drops any other".to_owned(),
            "remove snp_id_block and snp_id_auth, or name firmware in place of igvm",
        )),
        Some(Kind::Snp) => Ok(()),
    }
}

/// Other guests have no key of an AMD chip to leave.
fn vcek(config: &Config) -> Result<(), (&'static str, String, &'static str)> {
    if !config.vm.confidential.vcek_disabled || config.tee == Tee::Snp {
        return Ok(());
    }
    let name = config.tee.name();
    Err((
        "cloister.snp_vcek_disabled",
        format!("it chooses the key that signs reports of SEV-SNP guests, and tee is {name:?}"),
        "set tee = \"snp\", or remove the key",
    ))
}

/// Base64 of a structure; empty for none.
pub(super) fn structure(text: &str, bytes: usize) -> Result<Vec<u8>, String> {
    let refused = || format!("is not base64 of {bytes} bytes");
    // Four letters for each three bytes.
    if text.len() > bytes.div_ceil(3) * 4 {
        return Err(refused());
    }
    let decoded = STANDARD.decode(text).map_err(|_| refused())?;
    match decoded.len() {
        0 => Ok(decoded),
        length if length == bytes => Ok(decoded),
        _ => Err(refused()),
    }
}

pub(super) fn id_block(text: &str) -> Result<Vec<u8>, String> {
    structure(text, ID_BLOCK_BYTES)
}

pub(super) fn id_auth(text: &str) -> Result<Vec<u8>, String> {
    structure(text, ID_AUTH_BYTES)
}

/// A register of a TD's owner in hex; zeros where the text is empty.
pub(super) fn register(text: &str) -> Result<[u8; TDX_ID_BYTES], String> {
    let mut register = [0; TDX_ID_BYTES];
    if !text.is_empty() {
        hex::decode_to_slice(text, &mut register)
            .map_err(|_| format!("is not {} hex digits", 2 * TDX_ID_BYTES))?;
    }
    Ok(register)
}

/// A CPU model of QEMU's whose signature is known, or the one of the host's generation.
pub(super) fn cpu_model(name: &str) -> Result<Option<String>, String> {
    match name {
        OF_HOST => Ok(None),
        name => {
            let model: CpuModel = name
                .parse()
                .map_err(|error| format!("{error}; or \"{OF_HOST}\""))?;
            Ok(Some(model.name().to_owned()))
        }
    }
}

/// The word for the CPU model in a configuration.
pub(super) fn cpu_model_word(config: &Config) -> &str {
    let model = config.vm.confidential.cpu_model.as_deref();
    model.unwrap_or(OF_HOST)
}

pub(super) fn encoded(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A register in hex; empty where it is zeros.
pub(super) fn register_word(register: &[u8; TDX_ID_BYTES]) -> String {
    match register.iter().all(|byte| *byte == 0) {
        true => String::new(),
        false => hex::encode(register),
    }
}
