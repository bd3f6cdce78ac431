//! `cloister measure --tee tdx --explain`: which input is another one where a TD's evidence is not as
//! predicted.
//!
//! MRTD and MRCONFIGID are one value each, and are compared as such. The other registers have a log, which
//! is compared event by event after it was found to be the log that the quote's registers have. RTMR3 is the
//! guest's own, and of a TD's attributes only debug has one right value whatever the host gives: what is not
//! compared is told.

use std::fs::File;
use std::io::{Read, Write};

use anyhow::{Context, bail, ensure};
use evidence::eventlog::{EventLog, LOG_BYTES};
use evidence::init_data::InitDataDigest;
use evidence::tdx::{Body, TdxEvidence};
use measure::Binding;
use measure::tdx::{Digest, Firmware, PageOrder, Vmm};

use super::Inputs;

/// Bytes of evidence in JSON: a log and a quote in base64.
const EVIDENCE_BYTES: usize = 2 * LOG_BYTES;
/// Why one register is as it may be.
const RTMR3: &str = "RTMR3: the guest extends it while it runs, and no prediction says with what";
/// What else a quote has of a TD, and no file decides.
const OTHERS: &str =
    "the TD's attributes other than debug: the host gives them, and no file says which";

/// What is said of a launch: a quote, a log, or both.
pub(in super::super) struct Found {
    body: Option<Body>,
    log: Option<Vec<u8>>,
}

impl Found {
    pub(in super::super) fn read(path: &str) -> anyhow::Result<Self> {
        let mut content = Vec::new();
        let most = u64::try_from(EVIDENCE_BYTES).unwrap_or(u64::MAX);
        File::open(path)
            .and_then(|file| file.take(most.saturating_add(1)).read_to_end(&mut content))
            .with_context(|| {
                format!("--explain takes a file with a TD's evidence, quote or log; read {path}")
            })?;
        ensure!(
            content.len() <= EVIDENCE_BYTES,
            "{path} has more than {EVIDENCE_BYTES} bytes"
        );
        if content.trim_ascii_start().starts_with(b"{") {
            let evidence: TdxEvidence = serde_json::from_slice(&content)
                .with_context(|| format!("{path} is no evidence of a TD in JSON"))?;
            return Ok(Self::of(&evidence));
        }
        if EventLog::parse(&content).is_ok() {
            return Ok(Self {
                body: None,
                log: Some(content),
            });
        }
        let evidence = TdxEvidence::new(&content, None)
            .with_context(|| format!("{path} is neither evidence in JSON nor a log nor a quote"))?;
        Ok(Self::of(&evidence))
    }

    fn of(evidence: &TdxEvidence) -> Self {
        Self {
            body: Some(evidence.quote().body.clone()),
            log: evidence.event_log().map(<[u8]>::to_vec),
        }
    }
}

/// What is told.
#[derive(Default)]
struct Told {
    differs: Vec<String>,
    /// What could not be compared.
    open: Vec<&'static str>,
}

impl Inputs<'_> {
    /// Prints that all is as predicted, or fails with what is not.
    pub(in super::super) fn explain(
        &self,
        found: &Found,
        init_data: Option<&InitDataDigest>,
    ) -> anyhow::Result<()> {
        let firmware = self.firmware()?;
        let mut told = Told::default();
        match &found.body {
            Some(body) => self.body(&firmware, body, init_data, &mut told)?,
            None => told.open.push(
                "a log alone: MRTD and MRCONFIGID are in a quote, and so are attributes with debug, xfam, and \
                 what proves the log",
            ),
        }
        told.open.push(RTMR3);
        match (&found.log, &found.body) {
            (Some(log), body) => {
                let log = EventLog::parse(log).context("the event log")?;
                if let Some(body) = body {
                    replayed(&log, body, &mut told.differs)?;
                }
                self.log(&firmware, &log, &mut told.differs)?;
            }
            (None, Some(body)) => self.registers(&firmware, body, &mut told)?,
            (None, None) => bail!("there is neither a quote nor a log"),
        }
        let open = |line: &str| format!("not compared: {line}\n");
        let open: String = told.open.iter().map(|line| open(line)).collect();
        if !told.differs.is_empty() {
            bail!(
                "the evidence is of another launch:\n  {}\n{open}",
                told.differs.join("\n  ")
            );
        }
        write!(
            std::io::stdout(),
            "the evidence is of a predicted launch\n{open}"
        )?;
        Ok(())
    }

    /// MRTD, MRCONFIGID, features and debug.
    fn body(
        &self,
        firmware: &Firmware<'_>,
        body: &Body,
        init_data: Option<&InitDataDigest>,
        told: &mut Told,
    ) -> anyhow::Result<()> {
        if firmware.mrtd(self.how.order) != body.mr_td {
            told.differs.push(self.mrtd(firmware, &body.mr_td)?);
        }
        let expected = Binding::of(evidence::Tee::Tdx, init_data);
        if init_data.is_none() {
            told.open.push("MRCONFIGID: give --init-data");
        } else if expected.as_bytes() != body.mr_config_id {
            told.differs.push(format!(
                "{} {}: the launch bound other init-data, or none",
                expected.field(),
                hex::encode(body.mr_config_id)
            ));
        }
        match self.xfam {
            None => told.open.push("xfam: give --xfam"),
            Some(xfam) if xfam != body.xfam => told.differs.push(format!(
                "xfam {}: the host gave other features",
                hex::encode(body.xfam)
            )),
            Some(_) => {}
        }
        if body.td_attributes.debug() {
            told.differs.push(
                "attributes: the TD was started with debug on, so that the host may read it and change it"
                    .to_owned(),
            );
        }
        told.open.push(OTHERS);
        Ok(())
    }

    /// What makes this MRTD.
    fn mrtd(&self, firmware: &Firmware<'_>, found: &Digest) -> anyhow::Result<String> {
        let orders = [
            (PageOrder::EachPage, "each-page"),
            (PageOrder::WholeSection, "whole-section"),
        ];
        let order_of = |firmware: &Firmware<'_>| {
            let mut orders = orders.iter();
            orders.find(|(order, _)| firmware.mrtd(*order) == *found)
        };
        if let Some((_, name)) = order_of(firmware) {
            return Ok(format!("MRTD: page order {name}: see --page-order"));
        }
        for other in self.artifacts.other_images() {
            let (path, image) = other?;
            let firmware =
                Firmware::parse(&image, Vmm::Qemu).with_context(|| path.display().to_string())?;
            if let Some((order, name)) = order_of(&firmware) {
                let more = if *order == self.how.order {
                    String::new()
                } else {
                    format!(", page order {name}")
                };
                return Ok(format!("MRTD: firmware {}{more}", path.display()));
            }
        }
        Ok(format!(
            "MRTD {}: the firmware is another one: name candidates with --try-firmware",
            hex::encode(found)
        ))
    }

    /// RTMR0 to RTMR2 of a quote without a log.
    fn registers(
        &self,
        firmware: &Firmware<'_>,
        body: &Body,
        told: &mut Told,
    ) -> anyhow::Result<()> {
        let mut nearest: Option<Vec<usize>> = None;
        for (size, tables) in &self.tables {
            let line = self.artifacts.line();
            let predicted = self.launch(firmware, size.mib, tables, &self.how, line)?;
            let pairs = predicted.rtmrs.iter().zip(&body.rtmr).take(3).enumerate();
            let others: Vec<_> = pairs
                .filter(|(_, (expected, found))| expected != found)
                .map(|(register, _)| register)
                .collect();
            if nearest
                .as_ref()
                .is_none_or(|known| others.len() < known.len())
            {
                nearest = Some(others);
            }
        }
        for register in nearest.unwrap_or_default() {
            told.differs.push(format!(
                "RTMR{register} is another one: give the evidence with its event log (cc_eventlog)"
            ));
        }
        Ok(())
    }
}

/// Whether the log is the one that the quote's registers have.
fn replayed(log: &EventLog<'_>, body: &Body, differs: &mut Vec<String>) -> anyhow::Result<()> {
    let replayed = log.replay().context("the event log")?;
    for (register, (log, quote)) in replayed.iter().zip(&body.rtmr).enumerate() {
        if log.value != *quote {
            differs.push(format!(
                "RTMR{register}: the log does not lead to the quote's value: it is of another boot, cut off or \
                 changed, and proves nothing of this register"
            ));
        }
    }
    Ok(())
}
