//! How the guest proves what it is. It is configured by name, and nothing stands in for another.

/// The kind of trusted execution environment the guest runs in, as the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tee {
    /// A plain virtual machine.
    #[default]
    None,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// A plain virtual machine that attests with SEV-SNP's real formats, signed by a development root.
    SimSnp,
    /// A plain virtual machine that attests with TDX's real formats, signed by a development root.
    SimTdx,
    /// A plain virtual machine that attests with CoCo's unsigned sample evidence.
    Sample,
}

impl Tee {
    const ALL: [Self; 6] = [
        Self::None,
        Self::Snp,
        Self::Tdx,
        Self::SimSnp,
        Self::SimTdx,
        Self::Sample,
    ];

    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|tee| tee.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(|tee| format!("{:?}", tee.name())).join(", ");
            format!("{name:?} is not one of {names}: nothing falls back to a weaker kind")
        })
    }

    /// The word for the kernel command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::SimSnp => "sim-snp",
            Self::SimTdx => "sim-tdx",
            Self::Sample => "sample",
        }
    }

    /// Whether the host counts as untrusted: it may then share no files with the guest.
    #[must_use]
    pub fn is_confidential(self) -> bool {
        self != Self::None
    }

    /// Whether the launch binds init-data in a field of the guest's report, and not on its command line.
    #[must_use]
    pub fn has_reports(self) -> bool {
        match self {
            Self::Snp | Self::Tdx | Self::SimSnp | Self::SimTdx => true,
            Self::None | Self::Sample => false,
        }
    }

    /// What `cloister dev-tee` stands for the firmware of, where it does.
    #[must_use]
    pub fn simulated(self) -> Option<evidence::Tee> {
        match self {
            Self::SimSnp => Some(evidence::Tee::SimSnp),
            Self::SimTdx => Some(evidence::Tee::SimTdx),
            Self::None | Self::Snp | Self::Tdx | Self::Sample => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_read_back_and_another_is_refused_with_the_known_ones() {
        for tee in Tee::ALL {
            assert_eq!(Tee::parse(tee.name()), Ok(tee));
            assert_eq!(tee.is_confidential(), tee != Tee::None);
        }
        let refused = Tee::parse("sev").unwrap_err();
        assert!(refused.contains("\"sim-snp\""), "{refused}");
    }
}
