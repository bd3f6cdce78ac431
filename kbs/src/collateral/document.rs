//! The documents that there are: each has a name, and an address at its vendor's service.

use std::{fmt, str::FromStr};

use evidence::{
    Tee,
    snp::{CERTIFICATE_BYTES, Generation, Product, Tcb},
};
use serde::{Deserialize, Serialize};
use verifier::{
    snp::{self, Vek},
    tdx::{self, Ca},
};

use super::config::{Base, Services};

/// Bytes of the longest name.
const NAME_BYTES: usize = 200;
/// Bytes of a chip's identity, by length of its generation's.
const CHIP_BYTES: [usize; 2] = [8, 64];

/// One document, of a vendor or of a development root. Its text is also its name in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Document {
    /// Whether it is about a simulated kind.
    pub(super) simulated: bool,
    pub(super) item: Item,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Item {
    /// The certificate of a chip's key.
    Vcek {
        product: Product,
        chip: Vec<u8>,
        tcb: Levels,
    },
    /// What a product's ARK revoked.
    AmdCrl { product: Product },
    /// What a platform's firmware is worth.
    TcbInfo { fmspc: [u8; 6] },
    /// Which quoting enclaves are genuine.
    QeIdentity,
    /// Revoked certificates of platforms.
    PckCrl { ca: Ca },
    /// What Intel's root revoked.
    RootCrl,
}

/// A TCB's parts in the order of the service's query: FMC where there is one, boot loader, TEE, SNP,
/// microcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Levels {
    fmc: Option<u8>,
    rest: [u8; 4],
}

/// Where a document is.
pub(super) struct Place {
    pub(super) url: String,
    pub(super) host: String,
}

impl Document {
    pub(super) fn vcek(simulated: bool, generation: Generation, chip: &[u8], tcb: Tcb) -> Self {
        let tcb = Levels::of(tcb, generation.has_fmc());
        let chip = chip.iter().copied().take(generation.chip_id_bytes());
        let item = Item::Vcek {
            product: generation.product(),
            chip: chip.collect(),
            tcb,
        };
        Self { simulated, item }
    }

    pub(super) fn amd_crl(simulated: bool, product: Product) -> Self {
        let item = Item::AmdCrl { product };
        Self { simulated, item }
    }

    /// What a platform's collateral is made of: TCB info, QE identity, and both lists.
    pub(super) fn tdx(simulated: bool, needs: &tdx::Needs) -> [Self; 4] {
        let tdx::Needs { fmspc, ca } = *needs;
        let items = [
            Item::TcbInfo { fmspc },
            Item::QeIdentity,
            Item::PckCrl { ca },
            Item::RootCrl,
        ];
        items.map(|item| Self { simulated, item })
    }

    /// The kind of evidence that it is for.
    pub(super) fn kind(&self) -> Tee {
        match (&self.item, self.simulated) {
            (Item::Vcek { .. } | Item::AmdCrl { .. }, false) => Tee::Snp,
            (Item::Vcek { .. } | Item::AmdCrl { .. }, true) => Tee::SimSnp,
            (_, false) => Tee::Tdx,
            (_, true) => Tee::SimTdx,
        }
    }

    /// The most bytes of it.
    pub(super) fn cap(&self) -> usize {
        match self.item {
            Item::Vcek { .. } => CERTIFICATE_BYTES,
            Item::AmdCrl { .. } => snp::CRL_BYTES,
            Item::TcbInfo { .. } | Item::QeIdentity => tdx::DOCUMENT_BYTES,
            Item::PckCrl { .. } | Item::RootCrl => tdx::CRL_BYTES,
        }
    }

    /// The headers that may bring the chain of its issuer, where one comes with it.
    pub(super) fn chain_headers(&self) -> &'static [&'static str] {
        match self.item {
            Item::Vcek { .. } | Item::AmdCrl { .. } | Item::RootCrl => &[],
            Item::TcbInfo { .. } => &["tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"],
            Item::QeIdentity => &["sgx-enclave-identity-issuer-chain"],
            Item::PckCrl { .. } => &["sgx-pck-crl-issuer-chain"],
        }
    }

    /// That a certificate is of the chip and the firmware in the name.
    pub(super) fn is_of(&self, vek: &Vek) -> Result<(), String> {
        let Item::Vcek { chip, tcb, .. } = &self.item else {
            return Err("it is no certificate of a chip".to_owned());
        };
        if vek.hardware_id() != Some(chip) {
            return Err("it is the certificate of another chip".to_owned());
        }
        let found = Levels::of(vek.tcb(), tcb.fmc.is_some());
        if found != *tcb {
            let (found, asked) = (hex::encode(found.bytes()), hex::encode(tcb.bytes()));
            return Err(format!("it is for the firmware {found}, not for {asked}"));
        }
        Ok(())
    }

    /// The claim that cannot be judged without it.
    pub(super) fn claim(&self) -> &'static str {
        match self.item {
            Item::Vcek { .. } => "vek",
            Item::AmdCrl { .. } => "crl",
            Item::TcbInfo { .. } => "tcb_info",
            Item::QeIdentity => "qe_identity",
            Item::PckCrl { .. } => "pck_crl",
            Item::RootCrl => "root_ca_crl",
        }
    }

    /// Whether it is a list or a statement that its vendor issues again and again.
    pub(super) fn is_reissued(&self) -> bool {
        !matches!(self.item, Item::Vcek { .. })
    }

    /// Whether a guest chooses its name by evidence that nothing has verified yet, so that there is no
    /// end of them.
    pub(super) fn is_named_by_guests(&self) -> bool {
        matches!(self.item, Item::Vcek { .. } | Item::TcbInfo { .. })
    }

    pub(super) fn place(&self, services: &Services) -> Place {
        let Services {
            amd_kds,
            intel_pcs,
            intel_root_crl,
        } = services;
        let at = |base: &Base, path: String| Place {
            url: format!("{}{path}", base.url),
            host: base.host.clone(),
        };
        match &self.item {
            Item::Vcek { product, chip, tcb } => {
                let chip = hex::encode(chip);
                at(
                    amd_kds,
                    format!("/vcek/v1/{product}/{chip}?{}", tcb.query()),
                )
            }
            Item::AmdCrl { product } => at(amd_kds, format!("/vcek/v1/{product}/crl")),
            Item::TcbInfo { fmspc } => {
                let fmspc = hex::encode_upper(fmspc);
                at(
                    intel_pcs,
                    format!("/tdx/certification/v4/tcb?fmspc={fmspc}"),
                )
            }
            Item::QeIdentity => at(intel_pcs, "/tdx/certification/v4/qe/identity".to_owned()),
            Item::PckCrl { ca } => {
                let ca = ca.name();
                let path = format!("/sgx/certification/v4/pckcrl?ca={ca}&encoding=der");
                at(intel_pcs, path)
            }
            Item::RootCrl => at(intel_root_crl, String::new()),
        }
    }
}

impl Levels {
    fn of(tcb: Tcb, with_fmc: bool) -> Self {
        Self {
            fmc: tcb.fmc.filter(|_| with_fmc),
            rest: [tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode],
        }
    }

    fn query(self) -> String {
        let [bootloader, tee, snp, microcode] = self.rest;
        let fmc = self.fmc.map(|fmc| format!("fmcSPL={fmc:02}&"));
        format!(
            "{}blSPL={bootloader:02}&teeSPL={tee:02}&snpSPL={snp:02}&ucodeSPL={microcode:02}",
            fmc.unwrap_or_default()
        )
    }

    fn bytes(self) -> Vec<u8> {
        self.fmc.into_iter().chain(self.rest).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (fmc, rest) = match *bytes {
            [fmc, ref rest @ ..] if rest.len() == 4 => (Some(fmc), rest),
            ref rest => (None, rest),
        };
        let rest = rest.try_into().ok()?;
        Some(Self { fmc, rest })
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match &self.item {
            Item::Vcek { product, chip, tcb } => {
                let (chip, tcb) = (hex::encode(chip), hex::encode(tcb.bytes()));
                write!(f, "{kind}.vcek.{product}.{chip}.{tcb}")
            }
            Item::AmdCrl { product } => write!(f, "{kind}.crl.{product}"),
            Item::TcbInfo { fmspc } => write!(f, "{kind}.tcb-info.{}", hex::encode(fmspc)),
            Item::QeIdentity => write!(f, "{kind}.qe-identity"),
            Item::PckCrl { ca } => write!(f, "{kind}.pck-crl.{}", ca.name()),
            Item::RootCrl => write!(f, "{kind}.root-crl"),
        }
    }
}

impl From<Document> for String {
    fn from(document: Document) -> Self {
        document.to_string()
    }
}

impl TryFrom<String> for Document {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Document {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(NAME_BYTES).collect();
        let document = read(text).ok_or_else(|| format!("no document has the name {shown:?}"))?;
        // One document, one name: neither other letters nor another kind in front.
        if document.to_string() == text {
            return Ok(document);
        }
        Err(format!(
            "no document has the name {shown:?}: {document} does"
        ))
    }
}

fn read(text: &str) -> Option<Document> {
    if text.len() > NAME_BYTES {
        return None;
    }
    let words: Vec<_> = text.split('.').collect();
    let (kind, words) = words.split_first()?;
    let simulated = !kind.parse::<Tee>().ok()?.is_hardware();
    let product = |name: &str| Product::ALL.into_iter().find(|p| p.name() == name);
    let ca = |name: &str| {
        [Ca::Processor, Ca::Platform]
            .into_iter()
            .find(|ca| ca.name() == name)
    };
    let item = match *words {
        ["vcek", name, chip, tcb] => {
            let (chip, tcb) = (hex::decode(chip).ok()?, hex::decode(tcb).ok()?);
            Item::Vcek {
                product: product(name)?,
                chip: Some(chip).filter(|chip| CHIP_BYTES.contains(&chip.len()))?,
                tcb: Levels::from_bytes(&tcb)?,
            }
        }
        ["crl", name] => Item::AmdCrl {
            product: product(name)?,
        },
        ["tcb-info", fmspc] => Item::TcbInfo {
            fmspc: hex::decode(fmspc).ok()?.try_into().ok()?,
        },
        ["qe-identity"] => Item::QeIdentity,
        ["pck-crl", name] => Item::PckCrl { ca: ca(name)? },
        ["root-crl"] => Item::RootCrl,
        _ => return None,
    };
    Some(Document { simulated, item })
}

#[cfg(test)]
mod tests {
    use super::{super::config::Config, *};

    fn tcb(fmc: Option<u8>) -> Tcb {
        Tcb {
            fmc,
            bootloader: 3,
            tee: 0,
            snp: 8,
            microcode: 115,
        }
    }

    fn url(document: &Document) -> String {
        let [vendors, _] = Config::default().services().unwrap();
        document.place(&vendors.unwrap()).url
    }

    #[test]
    fn addresses_are_the_vendors() {
        let milan = Document::vcek(false, Generation::Milan, &[0xab; 64], tcb(None));
        assert_eq!(
            url(&milan),
            format!(
                "https://kdsintf.amd.com/vcek/v1/Milan/{}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115",
                "ab".repeat(64)
            )
        );
        let turin = Document::vcek(false, Generation::Turin, &[0xab; 64], tcb(Some(1)));
        assert_eq!(
            url(&turin),
            "https://kdsintf.amd.com/vcek/v1/Turin/abababababababab?fmcSPL=01&blSPL=03&teeSPL=00\
             &snpSPL=08&ucodeSPL=115"
        );
        for (name, expected) in [
            ("snp.crl.Genoa", "https://kdsintf.amd.com/vcek/v1/Genoa/crl"),
            (
                "tdx.tcb-info.00a06d080000",
                "https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=00A06D080000",
            ),
            (
                "tdx.qe-identity",
                "https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity",
            ),
            (
                "tdx.pck-crl.platform",
                "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform\
                 &encoding=der",
            ),
            (
                "tdx.root-crl",
                "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
            ),
        ] {
            assert_eq!(url(&name.parse().unwrap()), expected);
        }
    }

    #[test]
    fn a_name_is_read_back_and_no_other_is() {
        for document in [
            Document::vcek(true, Generation::Milan, &[1; 64], tcb(None)),
            Document::vcek(false, Generation::Turin, &[1; 64], tcb(Some(9))),
            Document::amd_crl(true, Product::Turin),
        ] {
            assert_eq!(document.to_string().parse(), Ok(document));
        }
        for wrong in [
            "",
            "snp",
            "tdx.crl.Milan",
            "sample.crl.Milan",
            "snp.crl.milan",
            "snp.crl.Milan.",
            "snp.crl.../../etc",
            "tdx.tcb-info.00A06D080000",
            "tdx.tcb-info.00",
            "snp.vcek.Milan.00.01020304",
        ] {
            assert!(wrong.parse::<Document>().is_err(), "{wrong}");
        }
    }
}
