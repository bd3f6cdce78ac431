//! One pod's firmware: the launch on the first line, then a question on each, answered in their order until
//! nobody asks any more.

use std::io::{self, BufRead, Read, Write};
use std::path::Path;

use agent_api::{DialAnswer, ErrorCode, TeeCall, limit};
use anyhow::{Context, bail};
use evidence::Tee;
use shim::dev_tee::{LAUNCH_BYTES, Launch};

use super::directory::Directory;
use super::launch::Booted;
use super::snp::SecurityProcessor;
use super::tdx::Module;

/// Of what is made at a pod's start: all that a date of it may be.
pub(super) const VALIDITY: evidence::sim::Validity = evidence::sim::Validity {
    from: 1_700_000_000,
    until: 2_400_000_000,
};

/// What stands for a TEE's firmware.
pub(super) trait Firm {
    /// The items of an answer.
    fn answer(&mut self, call: TeeCall) -> io::Result<Vec<Vec<u8>>>;
}

/// Serves one pod.
pub(super) fn serve(dir: &Path) -> anyhow::Result<()> {
    let mut asked = io::stdin().lock();
    let mut answers = io::stdout().lock();
    let Some(launch) = line(&mut asked, LAUNCH_BYTES)? else {
        bail!("no launch: this is a part of the shim");
    };
    let launched = serde_json::from_str(&launch)
        .context("the launch")
        .and_then(|launch| launch_of(launch, dir));
    let mut firm = launched.map_err(|error| format!("{error:#}"));
    while let Some(question) = line(&mut asked, limit::MAX_HOST_LINE)? {
        let call: TeeCall = question.parse()?;
        let answered = match &mut firm {
            Ok(firm) => firm.answer(call).map_err(|error| error.to_string()),
            Err(told) => Err(told.clone()),
        };
        match answered {
            Ok(items) => {
                writeln!(answers, "{}", DialAnswer::Ok)?;
                for item in items {
                    answers.write_all(&u32::try_from(item.len())?.to_le_bytes())?;
                    answers.write_all(&item)?;
                }
            }
            Err(told) => {
                let code = ErrorCode::FailedPrecondition;
                writeln!(
                    answers,
                    "{}",
                    DialAnswer::Err(code, format!("dev-tee: {told}"))
                )?;
            }
        }
        answers.flush()?;
    }
    Ok(())
}

fn launch_of(launch: Launch, dir: &Path) -> anyhow::Result<Box<dyn Firm>> {
    let directory = Directory::open(dir)?;
    let settings = directory.settings()?;
    let kind = launch.tee;
    let booted = Booted::read(launch, &directory)?;
    Ok(match kind {
        Tee::SimSnp => Box::new(SecurityProcessor::launch(
            &booted,
            &settings.snp,
            &directory,
        )?),
        Tee::SimTdx => Box::new(Module::launch(&booted, &settings.tdx, &directory)?),
        Tee::Snp | Tee::Tdx | Tee::Sample => bail!("{kind} is not simulated"),
    })
}

/// A line without its end; nothing at the end of all.
fn line(from: &mut impl BufRead, most: usize) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    let cap = u64::try_from(most)?;
    from.take(cap).read_line(&mut text)?;
    if text.is_empty() {
        return Ok(None);
    }
    let whole = text
        .strip_suffix('\n')
        .context("a line is too long, or not whole")?;
    Ok(Some(whole.to_owned()))
}
