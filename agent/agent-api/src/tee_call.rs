//! What a guest with a simulated TEE asks of what stands for its firmware, which is behind the host port as a
//! security processor or a quoting enclave is behind the hardware's interface.
//!
//! ```text
//! TEE <key> REPORT <128 hex digits>    ->  OK, then a report and what the host gives beside it
//! TEE <key> READ <0..3>                ->  OK, then 48 bytes
//! TEE <key> EXTEND <0..3> <96 digits>  ->  OK
//! TEE <key> LOG                        ->  OK, then the log of the start; empty where there is none
//! ```
//!
//! Each item behind `OK` has its length before it, in four bytes, the lowest first, and at most
//! [`limit::MAX_TEE_ITEM`](crate::limit::MAX_TEE_ITEM) bytes.

use std::fmt;
use std::str::FromStr;

use crate::LineError;

/// Bytes of a report's data.
const REPORT_DATA_BYTES: usize = 64;
/// Bytes of a register.
const REGISTER_BYTES: usize = 48;
/// Registers that a guest reads and extends.
const REGISTERS: usize = 4;

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TeeCall {
    /// A report over this data.
    Report([u8; REPORT_DATA_BYTES]),
    /// The value of a register.
    Read(usize),
    /// To extend a register.
    Extend(usize, [u8; REGISTER_BYTES]),
    /// The log of the start.
    Log,
}

impl TeeCall {
    /// How many items the answer has behind `OK`.
    #[must_use]
    pub const fn items(&self) -> usize {
        match self {
            Self::Report(_) => 2,
            Self::Read(_) | Self::Log => 1,
            Self::Extend(..) => 0,
        }
    }
}

impl fmt::Display for TeeCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        match self {
            Self::Report(data) => {
                f.write_str("REPORT ")?;
                hex(f, data)
            }
            Self::Read(register) => write!(f, "READ {register}"),
            Self::Extend(register, digest) => {
                write!(f, "EXTEND {register} ")?;
                hex(f, digest)
            }
            Self::Log => f.write_str("LOG"),
        }
    }
}

impl FromStr for TeeCall {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        let call = match verb {
            "REPORT" => bytes(rest).map(Self::Report),
            "READ" => register(rest).map(Self::Read),
            "EXTEND" => rest
                .split_once(' ')
                .and_then(|(number, digest)| Some(Self::Extend(register(number)?, bytes(digest)?))),
            "LOG" if rest.is_empty() => Some(Self::Log),
            _ => None,
        };
        call.ok_or(LineError::TeeCall)
    }
}

fn register(text: &str) -> Option<usize> {
    let number = text.parse().ok().filter(|number| *number < REGISTERS);
    number.filter(|_| text.len() == 1)
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_is_read_back_and_another_form_is_none() {
        let calls = [
            TeeCall::Report([0xa7; 64]),
            TeeCall::Read(0),
            TeeCall::Extend(3, [1; 48]),
            TeeCall::Log,
        ];
        for call in calls {
            assert_eq!(call.to_string().parse(), Ok(call));
        }
        let short = format!("REPORT {}", "0".repeat(126));
        for text in [
            "",
            "LOG x",
            "READ 4",
            "READ 03",
            "READ +1",
            "READ",
            "EXTEND 3 00",
            "REPORT zz",
            &short,
        ] {
            assert_eq!(text.parse::<TeeCall>(), Err(LineError::TeeCall), "{text}");
        }
    }
}
