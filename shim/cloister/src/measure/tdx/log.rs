//! A log against what was predicted, event by event: first whether the same files were launched in another
//! way, then each difference.

use anyhow::Context;
use evidence::eventlog::{DigestAlgorithm, Event as LogEvent, EventDigest, EventKind, EventLog};
use measure::tdx::{
    Dialect, Difference, Digest, Event, Firmware, KernelForm, Origin, Prediction, SecureBoot,
    explain,
};

use super::recorded::DIALECTS;
use super::{How, Inputs, Tables};

/// Differences that are told.
const DIFFERENCES: usize = 16;
/// The register that the guest extends while it runs, as logs count.
const RUNTIME: u32 = 4;

impl Inputs<'_> {
    /// What of a log is not as predicted.
    pub(super) fn log(
        &self,
        firmware: &Firmware<'_>,
        log: &EventLog<'_>,
        differs: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let (mib, tables, asked) = self.size(firmware, log)?;
        let predict = |how: &How, line: &str| {
            let predicted = self.launch(firmware, mib, tables, how, line)?;
            anyhow::Ok(with_runtime(predicted, log))
        };
        let line = self.artifacts.line();
        let mut predicted = predict(&self.how, line)?;
        let first = explain(&predicted, log, firmware);
        if !asked {
            differs.push(format!(
                "memory {mib} MiB: allow it with --memory, or start the pod with another size; ACPI tables \
                 differ with it"
            ));
        }
        if first.is_none() {
            return Ok(());
        }
        for how in self.others() {
            // A way that this launch could not have taken is no candidate.
            let Ok(other) = predict(&how.1, line) else {
                continue;
            };
            if explain(&other, log, firmware).is_none() {
                differs.push(how.0);
                return Ok(());
            }
        }
        for _ in 0..DIFFERENCES {
            let Some(difference) = explain(&predicted, log, firmware) else {
                return Ok(());
            };
            let mut said = difference.to_string();
            if difference.expected == Some(Origin::CommandLine) {
                let found = log.events().get(difference.at).and_then(digest);
                for line in self.artifacts.other_lines() {
                    let other = predict(&self.how, line)?;
                    let mut events = other.events.iter();
                    let is = |event: &&Event| event.origin == Origin::CommandLine;
                    if found.is_some() && events.find(is).map(|event| event.digest) == found {
                        said = format!("command line `{line}`");
                    }
                }
            }
            differs.push(said);
            pass(&mut predicted, log, &difference);
        }
        if explain(&predicted, log, firmware).is_some() {
            differs.push(format!("and more: {DIFFERENCES} differences are told"));
        }
        Ok(())
    }

    /// The size of memory that a log is of, its tables, and whether it was asked for: the first one where
    /// the log is of none that is known.
    fn size(
        &self,
        firmware: &Firmware<'_>,
        log: &EventLog<'_>,
    ) -> anyhow::Result<(u64, &Tables, bool)> {
        let (first, _) = self.tables.split_first().context("--memory is missing")?;
        let line = self.artifacts.line();
        let difference = |mib: u64, tables: &Tables| {
            let predicted = self.launch(firmware, mib, tables, &self.how, line)?;
            anyhow::Ok(explain(&with_runtime(predicted, log), log, firmware))
        };
        let found = difference(first.0.mib, &first.1)?.and_then(|difference| difference.memory);
        let mib = found.map_or(first.0.mib, |memory| memory.bytes() >> 20);
        // Of the shapes with that memory, the one whose tables are the log's.
        let mut nearest: Option<(u8, &Tables)> = None;
        for (_, tables) in self.tables.iter().filter(|(size, _)| size.mib == mib) {
            let rank = match difference(mib, tables)? {
                None => 0,
                Some(other) if !matches!(other.expected, Some(Origin::Acpi(_))) => 1,
                Some(_) => 2,
            };
            if nearest.is_none_or(|(known, _)| rank < known) {
                nearest = Some((rank, tables));
            }
        }
        Ok(nearest.map_or((mib, &first.1, false), |(_, tables)| (mib, tables, true)))
    }

    /// Other ways to launch the same files, with their names.
    fn others(&self) -> Vec<(String, How)> {
        let mut others = Vec::new();
        for name in DIALECTS {
            let Ok(dialect) = name.parse::<Dialect>() else {
                continue;
            };
            for (form, form_name) in [
                (KernelForm::AsInFile, "as-in-file"),
                (KernelForm::Patched, "patched"),
            ] {
                for (secure_boot, secure_name) in [
                    (SecureBoot::Absent, "absent"),
                    (SecureBoot::Off, "off"),
                    (SecureBoot::On, "on"),
                ] {
                    let how = How {
                        dialect: Dialect {
                            authorities: self.how.dialect.authorities.clone(),
                            ..dialect.clone()
                        },
                        form,
                        secure_boot,
                        order: self.how.order,
                    };
                    let said = [
                        (how.dialect != self.how.dialect, "--dialect", name),
                        (form != self.how.form, "--kernel-form", form_name),
                        (
                            secure_boot != self.how.secure_boot,
                            "--secure-boot",
                            secure_name,
                        ),
                    ];
                    let said = said.iter().filter(|(other, ..)| *other);
                    let said: Vec<_> = said
                        .map(|(_, flag, name)| format!("{flag} {name}"))
                        .collect();
                    if !said.is_empty() {
                        let words = said.join(" ");
                        others.push((format!("launched or measured another way: {words}"), how));
                    }
                }
            }
        }
        others
    }
}

/// A prediction with what the guest recorded while it ran, which is not compared.
fn with_runtime(mut predicted: Prediction, log: &EventLog<'_>) -> Prediction {
    copy(&mut predicted, log, RUNTIME);
    predicted
}

/// Takes a register's events as they were found.
fn copy(predicted: &mut Prediction, log: &EventLog<'_>, index: u32) {
    predicted.events.retain(|event| event.index != index);
    let found = extending(log.events(), index);
    predicted.events.extend(found.filter_map(|event| {
        Some(Event {
            index,
            kind: event.kind,
            digest: digest(event)?,
            origin: Origin::Runtime("found in the log".to_owned()),
        })
    }));
}

/// Goes on behind a difference: by the found digest, where just that is another one, else without the
/// register.
fn pass(predicted: &mut Prediction, log: &EventLog<'_>, difference: &Difference) {
    let index = difference.register + 1;
    let found = log.events().get(difference.at).and_then(digest);
    let before = log.events().get(..difference.at).unwrap_or_default();
    let place = extending(before, index).count();
    let mut events = predicted
        .events
        .iter_mut()
        .filter(|event| event.index == index);
    match (events.nth(place), found) {
        (Some(event), Some(found)) if difference.known_as.is_none() => event.digest = found,
        _ => copy(predicted, log, index),
    }
}

/// The events that extend a register.
fn extending<'e, 'a>(
    events: &'e [LogEvent<'a>],
    index: u32,
) -> impl Iterator<Item = &'e LogEvent<'a>> {
    let extends =
        move |event: &&LogEvent<'_>| event.index == index && event.kind != EventKind::NoAction;
    events.iter().filter(extends)
}

/// What extended a register.
fn digest(event: &LogEvent<'_>) -> Option<Digest> {
    let sha384 = |one: &&EventDigest<'_>| one.algorithm == DigestAlgorithm::Sha384;
    let digest = event.digests.iter().find(sha384)?.digest;
    digest.try_into().ok()
}
