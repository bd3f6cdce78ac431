//! `bench`: measures, and prints each figure as a line that a script can read.

use anyhow::Result;
use bench::figure::Figure;
use bench::{attest, io, pod, runc, size, start};
use clap::Parser;
use guest_image::Manifest;
use hypervisor::Machine;
use support::product;

/// Measures Cloister on this machine.
#[derive(Parser)]
struct Options {
    /// How often each start is measured.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Starts of the guest only: no containerd, registry and broker.
    #[arg(long)]
    guest_only: bool,
    /// A pod through containerd only.
    #[arg(long)]
    pod_only: bool,
    /// Streams of a guest's process only.
    #[arg(long)]
    io_only: bool,
    /// The guest's half of an attestation only.
    #[arg(long)]
    attest_only: bool,
    /// Containers and further processes against runc only.
    #[arg(long)]
    runc_only: bool,
}

/// A container starts in less than a second, and single ones differ.
const RUNC_ROUNDS: u32 = 15;

fn main() -> Result<()> {
    // What runs in the guest beside runc is this very program.
    if std::env::args().nth(1).as_deref() == Some(runc::timer::WORD) {
        return runc::timer::serve();
    }
    let options = Options::parse();
    if options.attest_only {
        return attest::measure().map(print);
    }
    let image = product::guest_dir();
    let manifest = Manifest::read(&image)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let streams = || runtime.block_on(io::measure(&image, options.rounds));
    if options.io_only {
        return streams().map(print);
    }
    let whole_pods = || pod::measure(options.rounds.min(3));
    if options.pod_only {
        return whole_pods().map(print);
    }
    let against_runc = || runtime.block_on(runc::measure(options.rounds.max(RUNC_ROUNDS)));
    if options.runc_only {
        return against_runc().map(print);
    }
    let mut figures = size::measure(&image, &manifest)?;
    for (machine, name) in [(Machine::Q35, "q35"), (Machine::Microvm, "microvm")] {
        eprintln!("{name}, kernel {}", manifest.kernel.release);
        let subject = start::Subject::new(&image, machine)?;
        let measured = runtime.block_on(subject.measure(options.rounds))?;
        // Q35 is what a pod gets unless its configuration says otherwise.
        let named = |figure: Figure| match machine {
            Machine::Q35 => figure,
            Machine::Microvm => figure.of(name),
        };
        figures.extend(measured.into_iter().map(named));
    }
    // Each as soon as it is there: what fails later takes nothing away.
    print(figures);
    print(streams()?);
    if !options.guest_only {
        print(attest::measure()?);
        print(whole_pods()?);
        print(against_runc()?);
    }
    Ok(())
}

fn print(figures: Vec<Figure>) {
    for figure in figures {
        println!("{figure}");
    }
}
