//! `cloister check --tee`: what only hardware can prove, tried on this host.
//!
//! Each proof is a statement of docs/hardware.md. It holds, it does not, or it was not tried, and then the
//! report names what lacks. The report is made to be sent: it has versions, digests and the findings of
//! `cloister check`, and of a guest's console nothing but the lines that are asked for.

mod launch;
mod snp;

use std::fmt;
use std::path::Path;

use hypervisor::tee::host::Files;
use hypervisor::tee::{self, Kind};
use hypervisor::{Accel, Vsock};
use serde::Serialize;
use shim::config::{Config, Tee};

use self::launch::Guest;
use super::Report;

/// What the kernel says of itself in a guest that the host cannot read.
const SNP_WORDS: &str = "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP";
const TDX_WORDS: &str = "tdx: Guest detected";
/// Why a guest from an IGVM file is looked at and not started.
const TIED: &str = "hypervisor.qemu.igvm: the file ties command line and ID block, to both of which these \
     statements add: name the firmware in its place";

/// Why a launch that is stopped would prove nothing.
const NO_DIGEST: &str = "snp.digest does not hold: a launch that no ID block of this host starts is stopped by anything";

/// A statement that hardware proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Statement {
    id: &'static str,
    says: &'static str,
}

const START: Statement = Statement {
    id: "guest.start",
    says: "the guest of this configuration starts as a plain VM, and its agent answers",
};
const KVM: Statement = Statement {
    id: "kvm.start",
    says: "it does so under KVM",
};
const VSOCK: Statement = Statement {
    id: "vsock.kernel",
    says: "it is reached through the kernel's vhost-vsock",
};
const SNP: Statement = Statement {
    id: "snp.start",
    says: "it starts as an SEV-SNP guest, and its kernel says so",
};
const SNP_DIGEST: Statement = Statement {
    id: "snp.digest",
    says: "its launch digest is the predicted one: the security processor takes an ID block of it",
};
const SNP_REFUSAL: Statement = Statement {
    id: "snp.refusal",
    says: "an ID block of another digest stops the launch",
};
const TDX: Statement = Statement {
    id: "tdx.start",
    says: "it starts as a TD, and its kernel says so",
};

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Holds,
    Fails,
    Untried,
}

#[derive(Debug, Clone, Serialize)]
struct Proof {
    id: &'static str,
    statement: &'static str,
    outcome: Outcome,
    found: String,
}

/// All proofs, and what they were made with.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TeeReport {
    proofs: Vec<Proof>,
    host: Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
}

impl TeeReport {
    /// Whether nothing that was tried fails.
    pub(super) fn holds(&self) -> bool {
        self.proofs.iter().all(|it| it.outcome != Outcome::Fails)
    }
}

impl Statement {
    fn with(self, outcome: Outcome, found: impl Into<String>) -> Proof {
        Proof {
            id: self.id,
            statement: self.says,
            outcome,
            found: found.into(),
        }
    }

    fn of(self, tried: Result<String, String>) -> Proof {
        match tried {
            Ok(found) => self.with(Outcome::Holds, found),
            Err(found) => self.with(Outcome::Fails, found),
        }
    }
}

/// Tries everything.
pub(super) async fn prove(config: &Config, host: Report) -> TeeReport {
    let mut proofs = plain(config).await;
    proofs.extend(confidential(config).await);
    let files = Files::below(Path::new("/"));
    let cpu = files.family_and_model();
    TeeReport {
        proofs,
        host,
        cpu: cpu.map(|(family, model)| {
            format!("{:?} family {family:#x} model {model:#x}", files.vendor())
        }),
    }
}

/// What needs KVM and a kernel's devices alone.
async fn plain(config: &Config) -> Vec<Proof> {
    let started = Guest::plain(config).start().await;
    let mut proofs = Vec::new();
    let is_kvm = hypervisor::accel::resolve(match config.vm.accel {
        Accel::Tcg => Accel::Tcg,
        Accel::Auto | Accel::Kvm => Accel::Kvm,
    });
    proofs.push(match (&started, is_kvm) {
        (_, Err(unusable)) => KVM.with(Outcome::Untried, unusable.to_string()),
        (_, Ok(hypervisor::accel::Resolved::Tcg)) => {
            KVM.with(Outcome::Untried, "accel is \"tcg\" in the configuration")
        }
        (Ok(up), Ok(_)) => KVM.with(Outcome::Holds, up.to_string()),
        (Err(_), Ok(_)) => KVM.with(Outcome::Fails, "it does not start: see guest.start"),
    });
    proofs.insert(0, START.of(started.map(|up| up.to_string())));
    let device = "/dev/vhost-vsock";
    proofs.push(match std::fs::File::open(device) {
        Err(error) => VSOCK.with(Outcome::Untried, format!("{device}: {error}")),
        Ok(_) => {
            let guest = Guest::plain(config).with(|spec| spec.vsock = Vsock::Kernel);
            VSOCK.of(guest.start().await.map(|up| up.to_string()))
        }
    });
    proofs
}

/// What needs a TEE: of the kind that the configuration asks for, or that the host has.
async fn confidential(config: &Config) -> Vec<Proof> {
    let mut proofs = Vec::new();
    for (kind, tee, all) in [
        (Kind::Snp, Tee::Snp, &[SNP, SNP_DIGEST, SNP_REFUSAL][..]),
        (Kind::Tdx, Tee::Tdx, &[TDX][..]),
    ] {
        let config = of_kind(config, tee);
        match ready(kind, &config).await {
            Err(lack) => {
                let untried = |it: &Statement| it.with(Outcome::Untried, lack.clone());
                proofs.extend(all.iter().map(untried));
            }
            Ok(guest) if kind == Kind::Snp => {
                proofs.push(SNP.of(started(guest.clone(), SNP_WORDS).await));
                let digest = SNP_DIGEST.of(snp::predicted(&guest).await);
                let refusal = match digest.outcome {
                    Outcome::Holds => SNP_REFUSAL.of(snp::refused(&guest).await),
                    Outcome::Fails | Outcome::Untried => {
                        SNP_REFUSAL.with(Outcome::Untried, NO_DIGEST)
                    }
                };
                proofs.extend([digest, refusal]);
            }
            Ok(guest) => proofs.push(TDX.of(started(guest, TDX_WORDS).await)),
        }
    }
    proofs
}

/// The configuration for guests of a kind. The ones that are started have a word more on their command lines than
/// pods have, so that an ID block for those would stop them.
fn of_kind(config: &Config, tee: Tee) -> Config {
    let mut config = config.clone();
    config.tee = tee;
    config.vm.confidential.id_block.clear();
    config.vm.confidential.id_auth.clear();
    // The image has its kernel in both forms.
    let firmwares = config.vm.kernel.with_file_name("vmlinuz");
    if firmwares.exists() {
        config.vm.kernel = firmwares;
    }
    config
}

/// The guest of a kind, where host, QEMU and configuration have what it needs; else what lacks.
async fn ready(kind: Kind, config: &Config) -> Result<Guest, String> {
    tee::host::look(kind, &Files::below(Path::new("/"))).map_err(|lack| lack.to_string())?;
    let has_igvm = kind == Kind::Snp && config.vm.igvm.is_some();
    if config.vm.firmware.is_none() && !has_igvm {
        return Err(format!(
            "hypervisor.qemu.firmware names no firmware for {}",
            kind.name()
        ));
    }
    let wanted = shim::tee::confidential(config, None).map_err(|error| error.to_string())?;
    let wanted = wanted.ok_or("no confidential guest is configured")?;
    let asked = tee::ready(&wanted, has_igvm, &config.vm.qemu).await;
    asked.map_err(|error| error.to_string())?;
    if has_igvm {
        return Err(TIED.to_owned());
    }
    Ok(Guest::confidential(config, wanted))
}

/// Whether a guest starts whose kernel says these words.
async fn started(guest: Guest, words: &str) -> Result<String, String> {
    let up = guest.start().await?;
    match up.console.lines().find(|line| line.contains(words)) {
        Some(line) => Ok(format!("{up}; the kernel says {:?}", line.trim())),
        None => Err(format!("{up}, but its kernel does not say {words:?}")),
    }
}

impl fmt::Display for TeeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        if let Some(cpu) = &self.cpu {
            writeln!(f, "\nProcessor: {cpu}")?;
        }
        writeln!(f, "\nWhat only hardware proves:")?;
        for proof in &self.proofs {
            let mark = match proof.outcome {
                Outcome::Holds => "holds",
                Outcome::Fails => "FAILS",
                Outcome::Untried => "untried",
            };
            writeln!(f, "{mark:8} {:12} {}", proof.id, proof.statement)?;
            writeln!(f, "{:21} → {}", "", proof.found)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_is_told_in_the_docs() {
        let docs = include_str!("../../../../../docs/hardware.md");
        for statement in [START, KVM, VSOCK, SNP, SNP_DIGEST, SNP_REFUSAL, TDX] {
            let row = format!("| `{}` | {}", statement.id, statement.says);
            assert!(docs.contains(&row), "{row}");
        }
    }

    #[test]
    fn an_id_block_of_pods_does_not_stop_what_is_started_here() {
        let directory = tempfile::tempdir().unwrap();
        let vmlinuz = directory.path().join("vmlinuz");
        std::fs::write(&vmlinuz, b"x").unwrap();
        let mut config = Config::default();
        config.vm.kernel = directory.path().join("vmlinux");
        config.vm.confidential.id_block = vec![1; 96];
        config.vm.confidential.id_auth = vec![1; 4096];
        let config = of_kind(&config, Tee::Snp);
        assert_eq!(config.vm.confidential.id(), Ok(None));
        assert_eq!((config.tee, config.vm.kernel), (Tee::Snp, vmlinuz));
    }

    #[test]
    fn what_fails_is_a_failure_and_what_was_not_tried_is_none() {
        let host = super::super::assemble(
            Vec::new(),
            &super::super::Host {
                root: "/nonexistent".into(),
            },
        );
        let mut report = TeeReport {
            proofs: vec![SNP.with(Outcome::Untried, "SEV-SNP: not an AMD processor")],
            host,
            cpu: None,
        };
        assert!(report.holds());
        let text = report.to_string();
        assert!(text.contains("untried  snp.start"), "{text}");
        assert!(text.contains("→ SEV-SNP: not an AMD processor"), "{text}");
        report.proofs.push(START.of(Err("it ended".to_owned())));
        assert!(!report.holds());
    }
}
