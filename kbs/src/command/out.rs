//! Standard output: what cannot be written is an error, and whoever has read enough is none.

use std::{
    fmt::Arguments,
    io::{self, Write},
};

use anyhow::Context;

/// Whoever read has closed their end, as `head` does: there is nothing more to do.
#[derive(Debug, thiserror::Error)]
#[error("whoever read it has closed it")]
pub(super) struct Closed;

/// Writes text as it is.
///
/// # Errors
/// [`Closed`], or what the system says, such as that a disk is full.
pub(super) fn bytes(text: &[u8]) -> anyhow::Result<()> {
    told(&mut io::stdout().lock(), |to| to.write_all(text))
}

/// The same for a line.
pub(super) fn line(text: Arguments<'_>) -> anyhow::Result<()> {
    told(&mut io::stdout().lock(), |to| writeln!(to, "{text}"))
}

fn told<W: Write>(to: &mut W, write: impl FnOnce(&mut W) -> io::Result<()>) -> anyhow::Result<()> {
    // What is left in a buffer at the end would be lost without a word.
    match write(to).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("write to standard output"),
    }
}

/// As `println!`, which panics where it cannot write.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::command::out::line(format_args!($($text)*))?
    };
}

pub(super) use say;

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing until it is told to flush, and then fails.
    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_reader_who_has_left_is_told_apart() {
        let write = |kind| told(&mut Failing(kind), |to| to.write_all(b"x")).unwrap_err();
        assert!(!write(io::ErrorKind::StorageFull).is::<Closed>());
        assert!(write(io::ErrorKind::BrokenPipe).is::<Closed>());
    }
}
