//! `cloister completions` and `cloister man`: what shells and readers of manuals are told of the command line,
//! from the one definition of it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command, ValueEnum};
use clap_complete::{Shell, generate};

/// Which shell.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell, into whose own directory of completions the output goes.
    #[arg(value_enum)]
    shell: Kind,
}

/// The shells that are known.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

/// Where to.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The directory, as /usr/local/share/man/man1; it is made where it is missing.
    directory: PathBuf,
}

impl Completions {
    pub(super) fn run(&self, mut command: Command) -> Result<()> {
        let shell = match self.shell {
            Kind::Bash => Shell::Bash,
            Kind::Elvish => Shell::Elvish,
            Kind::Fish => Shell::Fish,
            Kind::Powershell => Shell::PowerShell,
            Kind::Zsh => Shell::Zsh,
        };
        // Whole first: the generator panics where it cannot write.
        let mut text = Vec::new();
        generate(shell, &mut command, "cloister", &mut text);
        std::io::stdout()
            .write_all(&text)
            .context("write the completions")
    }
}

impl Man {
    pub(super) fn run(&self, command: Command) -> Result<()> {
        std::fs::create_dir_all(&self.directory)
            .and_then(|()| clap_mangen::generate_to(command, &self.directory))
            .with_context(|| format!("write the pages into {}", self.directory.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn each_command_that_is_shown_has_its_page() {
        let directory = tempfile::tempdir().unwrap();
        let man = Man {
            directory: directory.path().join("man1"),
        };
        man.run(crate::Cli::command()).unwrap();
        let has = |name: &str| man.directory.join(name).exists();
        assert!(has("cloister.1") && has("cloister-run.1") && has("cloister-image-encrypt.1"));
        assert!(!has("cloister-keep.1"));
        let run = std::fs::read_to_string(man.directory.join("cloister-run.1")).unwrap();
        assert!(run.contains("detach") && run.contains("127"), "{run}");
    }
}
