//! TDX, and what simulates it: a quote, and the log of all that extended the registers in it.

use std::sync::Arc;

use evidence::{
    Tee,
    eventlog::{self, LOG_END},
    tdx::{Quote, TdxEvidence},
};
use serde_json::Value;

use super::{AttestError, Attester, Platform, padded};
use crate::EventLog;

/// Makes TDX evidence.
pub struct TdxAttester {
    kind: Tee,
    platform: Arc<dyn Platform>,
    log: Arc<EventLog>,
}

impl TdxAttester {
    /// An attester of this kind, [`Tee::Tdx`] or [`Tee::SimTdx`], on a platform that has its quotes. The log
    /// is the one whose events extend the platform's registers.
    #[must_use]
    pub fn new(kind: Tee, platform: Arc<dyn Platform>, log: Arc<EventLog>) -> Self {
        Self {
            kind,
            platform,
            log,
        }
    }

    fn failed(&self, cause: &dyn std::fmt::Display) -> AttestError {
        AttestError::Report {
            tee: self.kind,
            cause: cause.to_string(),
        }
    }

    fn quote(&self, report_data: &[u8]) -> Result<Vec<u8>, AttestError> {
        let asked = padded(report_data)?;
        let report = self.platform.report(&asked);
        let quote = report.map_err(|error| self.failed(&error))?.outblob;
        let parsed = Quote::parse(&quote).map_err(|error| self.failed(&error))?;
        match parsed.body.report_data == asked {
            true => Ok(quote),
            false => Err(self.failed(&"the quote is over other data")),
        }
    }

    /// Firmware's log without its padding, and our entries behind it.
    fn whole_log(&self, entries: &[u8]) -> Result<Option<Vec<u8>>, AttestError> {
        let boot = self
            .platform
            .boot_log()
            .map_err(|error| self.failed(&error))?;
        let mut log = match boot {
            Some(mut log) => {
                let read = eventlog::EventLog::parse(&log);
                let length = read.map_err(|error| self.failed(&error))?.bytes();
                log.truncate(length);
                log
            }
            None if entries.is_empty() => return Ok(None),
            None => eventlog::header(),
        };
        log.extend(entries);
        log.extend(LOG_END);
        Ok(Some(log))
    }
}

impl Attester for TdxAttester {
    fn kind(&self) -> Tee {
        self.kind
    }

    fn report(&self, report_data: &[u8]) -> Result<Value, AttestError> {
        // No event may come between quote and log.
        let evidence = self.log.held(|entries| {
            let log = self.whole_log(entries)?;
            let evidence = TdxEvidence::new(&self.quote(report_data)?, log);
            evidence.map_err(|error| self.failed(&error))
        });
        let evidence = evidence.map_err(|error| self.failed(&error))??;
        serde_json::to_value(evidence).map_err(|error| AttestError::Evidence {
            tee: self.kind,
            cause: error.to_string(),
        })
    }

    fn launch_bound(&self) -> Result<Vec<u8>, AttestError> {
        let quote = Quote::parse(&self.quote(&[])?).map_err(|error| self.failed(&error))?;
        Ok(quote.body.mr_config_id.to_vec())
    }
}

impl std::fmt::Debug for TdxAttester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TdxAttester({})", self.kind)
    }
}
