//! A figure: what was measured, as a line that a script can read.
//!
//! ```text
//! FIGURE start.own_ms 140 ms -
//! ```
//!
//! Name, value, unit, and the goal that it is held to, or `-`.

use std::fmt;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Option<(&'static str, f64)>,
}

impl Figure {
    /// A figure without a goal.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            goal: None,
        }
    }

    /// The same, held to at most this.
    #[must_use]
    pub fn at_most(self, goal: f64) -> Self {
        let goal = Some(("<=", goal));
        Self { goal, ..self }
    }

    /// The same, held to at least this.
    #[must_use]
    pub fn at_least(self, goal: f64) -> Self {
        let goal = Some((">=", goal));
        Self { goal, ..self }
    }

    /// The same figure of a variant: `start.own_ms` of `microvm` is `start.microvm.own_ms`.
    #[must_use]
    pub fn of(self, variant: &str) -> Self {
        let name = match self.name.split_once('.') {
            Some((group, rest)) => format!("{group}.{variant}.{rest}"),
            None => format!("{variant}.{}", self.name),
        };
        Self { name, ..self }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Three digits that mean something: more are noise, fewer hide a change.
        let decimals = match self.value.abs() {
            small if small < 10.0 => 2,
            medium if medium < 100.0 => 1,
            _ => 0,
        };
        let Self {
            name, value, unit, ..
        } = self;
        write!(f, "FIGURE {name} {value:.decimals$} {unit} ")?;
        match self.goal {
            None => f.write_str("-"),
            Some((bound, goal)) => write!(f, "{bound}{goal}"),
        }
    }
}

/// The middle of a sorted list; of an even number the mean of both. Zero of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (len, half) if len % 2 == 0 => f64::midpoint(sorted[half - 1], sorted[half]),
        (_, half) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_five_words_and_three_digits() {
        let line = |value| Figure::new("a.b", value, "ms").to_string();
        assert_eq!(line(1234.56), "FIGURE a.b 1235 ms -");
        assert_eq!(line(56.78), "FIGURE a.b 56.8 ms -");
        assert_eq!(line(1.234), "FIGURE a.b 1.23 ms -");
    }

    #[test]
    fn a_goal_stands_at_the_end() {
        let figure = Figure::new("a.b", 1.42, "ratio");
        assert_eq!(
            figure.clone().at_most(1.6).to_string(),
            "FIGURE a.b 1.42 ratio <=1.6"
        );
        assert_eq!(
            figure.at_least(5000.0).to_string(),
            "FIGURE a.b 1.42 ratio >=5000"
        );
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[9.0, 1.0, 5.0, 7.0]), 6.0);
        assert_eq!(median(&[]), 0.0);
    }
}
