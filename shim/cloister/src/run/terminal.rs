//! Our own terminal, where a program in a guest is to have it: raw while it runs, as it was afterwards.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use nix::sys::termios::{self, SetArg, Termios};

/// The keys that leave a program to itself, where nothing else is said: as docker has them.
pub(crate) const DETACH_KEYS: &str = "ctrl-p,ctrl-q";
/// The most keys of a sequence.
const MAX_KEYS: usize = 8;

/// A terminal in raw mode. Dropping it makes it as it was.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

/// Whether standard input is a terminal, where one is needed.
pub(crate) fn check(needed: bool) -> Result<()> {
    if needed && !io::stdin().is_terminal() {
        bail!("the input is not a terminal: leave --tty away");
    }
    Ok(())
}

impl Raw {
    /// Makes standard input raw.
    pub(crate) fn enter() -> Result<Self> {
        check(true)?;
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin).context("the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("make the terminal raw")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// Columns and rows of the terminal that we have, if we have one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let of = |file: &dyn AsFd| rustix::termios::tcgetwinsize(file.as_fd()).ok();
    let size = of(&io::stdin()).or_else(|| of(&io::stdout()))?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Looks for the keys that detach in what is typed.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    sequence: Vec<u8>,
    /// How many of them were typed in a row.
    seen: usize,
}

/// What is to be done with what was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the program.
    pub(crate) bytes: Vec<u8>,
    /// Whether the keys came.
    pub(crate) detach: bool,
}

impl Keys {
    /// From a list such as `ctrl-p,ctrl-q` or `ctrl-x,d`; an empty one never detaches.
    pub(crate) fn parse(list: &str) -> Result<Self> {
        let words = list.split(',').filter(|_| !list.is_empty());
        let sequence = words.map(key).collect::<Result<Vec<_>>>()?;
        if sequence.len() > MAX_KEYS {
            bail!("{list:?} has more than {MAX_KEYS} keys");
        }
        Ok(Self { sequence, seen: 0 })
    }

    /// Takes what was typed. Keys of a sequence that is not ended are held back until it is known what they
    /// are.
    pub(crate) fn take(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.sequence.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.sequence.len() {
                    self.seen = 0;
                    return Typed {
                        bytes,
                        detach: true,
                    };
                }
                continue;
            }
            bytes.extend(self.sequence.iter().take(self.seen));
            self.seen = usize::from(self.sequence.first() == Some(byte));
            if self.seen == 0 {
                bytes.push(*byte);
            }
        }
        Typed {
            bytes,
            detach: false,
        }
    }
}

/// The byte of one key.
fn key(word: &str) -> Result<u8> {
    let control = word.strip_prefix("ctrl-").map(str::as_bytes);
    match (control, word.as_bytes()) {
        (Some(&[letter]), _) if letter.is_ascii_alphabetic() => {
            Ok(letter.to_ascii_lowercase() - b'a' + 1)
        }
        (Some(&[sign]), _) if (b'@'..=b'_').contains(&sign) => Ok(sign - b'@'),
        (None, &[byte]) if byte.is_ascii_graphic() => Ok(byte),
        _ => bail!(
            "{word:?} is not a key: use a character, or ctrl- with a letter or one of @ [ \\ ] ^ _"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_detach_and_everything_else_reaches_the_program() {
        let mut keys = Keys::parse(DETACH_KEYS).unwrap();
        let typed = |keys: &mut Keys, bytes: &[u8]| {
            let typed = keys.take(bytes);
            (typed.bytes, typed.detach)
        };
        assert_eq!(typed(&mut keys, b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(typed(&mut keys, b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(typed(&mut keys, b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(typed(&mut keys, b"\x11rest"), (Vec::new(), true));
        let mut none = Keys::parse("").unwrap();
        assert_eq!(typed(&mut none, b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }

    #[test]
    fn keys_are_spelled_as_docker_spells_them() {
        assert_eq!(
            Keys::parse("ctrl-@,ctrl-A,q").unwrap().sequence,
            [0, 1, b'q']
        );
        for bad in ["ctrl-", "ctrl-1", "ab", "a,", "ü"] {
            assert!(Keys::parse(bad).is_err(), "{bad}");
        }
    }
}
