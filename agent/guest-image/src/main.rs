//! `guest-image`: the command line of the library.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use guest_image::{compile, debian, image};

/// Builds the guest's kernel and initramfs, reproducibly.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Where downloads and kernels are kept.
    #[arg(long, global = true, default_value = ".cache/guest-kernel")]
    cache: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Has Debian's newest cloud kernel in the cache, and prints its directory.
    Kernel,
    /// Compiles a kernel of our own from Debian's source, and prints its directory.
    Compile {
        /// Stop when the configuration is made and checked.
        #[arg(long)]
        config_only: bool,
        /// How many compilers run at once; as many as there are processors unless said.
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Builds vmlinux, initramfs.cpio and manifest.json.
    Build {
        /// The static cloister-agent.
        #[arg(long)]
        agent: PathBuf,
        /// The kernel directory. Unless said, our own kernel when it was compiled, else Debian's.
        #[arg(long)]
        kernel: Option<PathBuf>,
        /// The directory of the image.
        #[arg(long)]
        out: PathBuf,
        /// The image's number, greater than that of any image before it; 0 where images are not counted.
        #[arg(long, value_name = "N", default_value = "0")]
        number: u64,
    },
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let cache = options.cache;
    match options.verb {
        Verb::Kernel => println!("{}", debian::kernel(&cache)?.dir().display()),
        Verb::Compile {
            config_only: true, ..
        } => println!("{}", compile::configure_only(&cache)?.display()),
        Verb::Compile { jobs, .. } => {
            println!("{}", compile::kernel(&cache, jobs)?.dir().display());
        }
        Verb::Build {
            agent,
            kernel,
            out,
            number,
        } => {
            let kernel = match kernel {
                Some(dir) => dir,
                None => match compile::cached(&cache) {
                    Some(own) => own.dir().to_owned(),
                    None => debian::kernel(&cache)?.dir().to_owned(),
                },
            };
            let manifest = image::build(&agent, &kernel, &out, number)
                .with_context(|| format!("building {}", out.display()))?;
            println!("{}", manifest.table());
        }
    }
    Ok(())
}
