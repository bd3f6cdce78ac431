//! What is wrong with a configuration, and what is only worth knowing: each with its place, its
//! key, the reason and the remedy, so that a person can mend all of it at once.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

/// Where in which file something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<PathBuf>,
    /// The line, from 1 on; the file as a whole where it is 0.
    pub line: usize,
}

impl Place {
    /// A file as a whole.
    #[must_use]
    pub fn file(path: PathBuf) -> Self {
        Self {
            path: Arc::new(path),
            line: 0,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.path.display()),
            line => write!(f, "{}:{line}", self.path.display()),
        }
    }
}

/// Something for which a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands; an annotation stands in no file.
    pub place: Option<Place>,
    /// The key with its table, or the annotation; empty for a file that cannot be read.
    pub key: String,
    /// Why it is refused.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.as_ref().map(ToString::to_string);
        let parts = [place.as_deref(), Some(&self.key), Some(&self.reason)];
        let said: Vec<&str> = parts
            .into_iter()
            .flatten()
            .filter(|s| !s.is_empty())
            .collect();
        write!(f, "{}", said.join(": "))?;
        match self.fix.is_empty() {
            true => Ok(()),
            false => write!(f, ": {}", self.fix),
        }
    }
}

/// Something that is accepted and is not as its words may lead to think.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where it stands.
    pub place: Option<Place>,
    /// The key with its table, or the annotation.
    pub key: String,
    /// What there is to know.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// Why a configuration cannot be used: at least one problem.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigError {
    /// All of them, in the order of the files.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    /// The first, and how many more there are: it is one line of a pod's events.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.problems.first() else {
            return write!(f, "the configuration is refused");
        };
        write!(f, "{first}")?;
        match self.problems.len() {
            1 => Ok(()),
            count => write!(
                f,
                " (and {} more: `cloister config check` has all)",
                count - 1
            ),
        }
    }
}
