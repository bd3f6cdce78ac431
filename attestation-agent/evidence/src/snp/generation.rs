//! Which processor a report comes from: it decides the root of its chain and the layout of its TCB.

use std::fmt;

/// A family of processors by CPUID. Bergamo and Siena share their models and cannot be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Generation {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004.
    Genoa,
    /// EPYC 97x4 and 8004.
    BergamoSiena,
    /// EPYC 9005.
    Turin,
}

/// The product in whose name AMD publishes a root, a chain and certificates of chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Product {
    /// For [`Generation::Milan`].
    Milan,
    /// For [`Generation::Genoa`] and [`Generation::BergamoSiena`].
    Genoa,
    /// For [`Generation::Turin`].
    Turin,
}

impl Product {
    /// Every product.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// The name in the addresses of AMD's key distribution service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Generation {
    /// Every generation.
    pub const ALL: [Self; 4] = [Self::Milan, Self::Genoa, Self::BergamoSiena, Self::Turin];

    /// The generation of CPUID's combined family and combined model, where it is known.
    #[must_use]
    pub const fn of_cpu(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f) => Some(Self::Genoa),
            (0x19, 0xa0..=0xaf) => Some(Self::BergamoSiena),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// CPUID's combined family and the first model of the generation.
    #[must_use]
    pub const fn cpu(self) -> (u8, u8) {
        match self {
            Self::Milan => (0x19, 0x00),
            Self::Genoa => (0x19, 0x10),
            Self::BergamoSiena => (0x19, 0xa0),
            Self::Turin => (0x1a, 0x00),
        }
    }

    /// Whose chain signs the chips.
    #[must_use]
    pub const fn product(self) -> Product {
        match self {
            Self::Milan => Product::Milan,
            Self::Genoa | Self::BergamoSiena => Product::Genoa,
            Self::Turin => Product::Turin,
        }
    }

    /// Whether a TCB has a part for the FMC, which moves the others.
    #[must_use]
    pub const fn has_fmc(self) -> bool {
        matches!(self, Self::Turin)
    }

    /// Bytes of a chip's identity; CHIP_ID is padded with zeros beyond it.
    #[must_use]
    pub const fn chip_id_bytes(self) -> usize {
        match self {
            Self::Milan | Self::Genoa | Self::BergamoSiena => 64,
            Self::Turin => 8,
        }
    }

    /// The name in claims.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "milan",
            Self::Genoa => "genoa",
            Self::BergamoSiena => "bergamo-siena",
            Self::Turin => "turin",
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
