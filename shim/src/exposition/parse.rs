//! A page as samples, strictly: what Prometheus would not read, and what it would read otherwise than it looks,
//! is a fault of the whole page.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::collections::HashSet;

use thiserror::Error;

use super::Sample;
use super::known::{self, NODE_LABELS, Whose};

/// How much a page may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of text.
    pub bytes: usize,
    /// Samples.
    pub samples: usize,
    /// Labels of one sample.
    pub labels: usize,
    /// Bytes of a name.
    pub name: usize,
    /// Bytes of a label's value.
    pub value: usize,
}

impl Limits {
    /// For a guest's: Kata's agent has some 200 samples, and more with processors, disks and interfaces.
    pub const GUEST: Self = Self {
        bytes: 256 * 1024,
        samples: 2000,
        labels: 3,
        name: 64,
        value: 64,
    };
    /// For a shim's, with its guest's in it.
    pub const SHIM: Self = Self {
        bytes: 1024 * 1024,
        samples: 4000,
        labels: 8,
        name: 128,
        value: 256,
    };
}

/// Why a page is not taken. It says where, and nothing that the page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// It has more than it may.
    #[error("more than {0} {1}")]
    TooMuch(usize, &'static str),
    /// A line is none of the format.
    #[error("line {line}: {what}")]
    Line {
        /// Which, from one.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// The samples of any page.
///
/// # Errors
/// The first [`Fault`].
pub fn parse(text: &str, limits: &Limits) -> Result<Vec<Sample>, Fault> {
    if text.len() > limits.bytes {
        return Err(Fault::TooMuch(limits.bytes, "bytes"));
    }
    let mut samples: Vec<Sample> = Vec::new();
    let mut seen = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        let fault = |what| Fault::Line {
            line: index + 1,
            what,
        };
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if samples.len() >= limits.samples {
            return Err(Fault::TooMuch(limits.samples, "samples"));
        }
        let mut sample = Line(line).sample(limits).map_err(fault)?;
        // Prometheus takes a label without a value for none.
        sample.labels.retain(|(_, value)| !value.is_empty());
        let mut labels = sample.labels.clone();
        labels.sort();
        if !seen.insert((sample.name.clone(), labels)) {
            return Err(fault("the same sample again"));
        }
        samples.push(sample);
    }
    Ok(samples)
}

/// The samples of a shim's page. Families that this version does not know are taken: shims of another may run.
///
/// # Errors
/// As [`parse`], and what is the monitor's to tell.
pub fn of_shim(text: &str) -> Result<Vec<Sample>, Fault> {
    let samples = parse(text, &Limits::SHIM)?;
    let is_nodes = |sample: &Sample| {
        let is_taken = match known::of_sample(&sample.name) {
            Some(family) => family.whose == Whose::Node,
            // A name of no sample that is a histogram's would be mixed with it.
            None => known::FAMILIES
                .iter()
                .any(|family| sample.name == family.name),
        };
        let mut labels = sample.labels.iter();
        is_taken || labels.any(|(label, _)| NODE_LABELS.contains(&label.as_str()))
    };
    match samples.iter().position(is_nodes) {
        None => Ok(samples),
        Some(line) => Err(Fault::Line {
            line: line + 1,
            what: "a sample or a label that is the monitor's (comments are not counted)",
        }),
    }
}

/// What is left of a line.
struct Line<'a>(&'a str);

impl<'a> Line<'a> {
    fn sample(mut self, limits: &Limits) -> Result<Sample, &'static str> {
        let name = self.name(limits, true)?.to_owned();
        let mut labels: Vec<(String, String)> = Vec::new();
        if self.eat('{') {
            while !self.eat('}') {
                if labels.len() >= limits.labels {
                    return Err("too many labels");
                }
                let label = self.name(limits, false)?.to_owned();
                if labels.iter().any(|(other, _)| *other == label) {
                    return Err("the same label again");
                }
                if !(self.eat('=') && self.eat('"')) {
                    return Err("a label without a value in quotes");
                }
                let value = self.quoted(limits)?;
                labels.push((label, value));
                if !self.eat(',') && !self.0.starts_with('}') {
                    return Err("no comma between labels");
                }
            }
        }
        if !self.0.starts_with([' ', '\t']) {
            return Err("no blank before the value");
        }
        let mut words = self.0.split_ascii_whitespace();
        let value = words.next().ok_or("no value")?;
        if words.next().is_some() {
            // A time would make a page's samples old, or of tomorrow.
            return Err("more than a value");
        }
        Ok(Sample {
            name,
            labels,
            value: float(value).ok_or("the value is no number")?,
        })
    }

    fn name(&mut self, limits: &Limits, of_metric: bool) -> Result<&'a str, &'static str> {
        let of_name = |letter: char| {
            letter.is_ascii_alphanumeric() || letter == '_' || (of_metric && letter == ':')
        };
        let end = self
            .0
            .find(|letter| !of_name(letter))
            .unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err("no name");
        }
        if name.len() > limits.name {
            return Err("a name is too long");
        }
        self.0 = rest;
        Ok(name)
    }

    /// What is in quotes, of which the first is eaten.
    fn quoted(&mut self, limits: &Limits) -> Result<String, &'static str> {
        let mut value = String::new();
        let mut letters = self.0.char_indices();
        while let Some((at, letter)) = letters.next() {
            if value.len() > limits.value {
                return Err("a label's value is too long");
            }
            match letter {
                '"' => {
                    self.0 = self.0.get(at + 1..).unwrap_or_default();
                    return Ok(value);
                }
                '\\' => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                    _ => return Err("an unknown escape"),
                },
                other => value.push(other),
            }
        }
        Err("a label's value has no end")
    }

    fn eat(&mut self, letter: char) -> bool {
        match self.0.strip_prefix(letter) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }
}

fn float(text: &str) -> Option<f64> {
    match text {
        "+Inf" | "Inf" => return Some(f64::INFINITY),
        "-Inf" => return Some(f64::NEG_INFINITY),
        "NaN" => return Some(f64::NAN),
        _ => {}
    }
    let of_number = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    let is_number = text.bytes().all(of_number);
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_prometheus_reads() {
        let page =
            "# HELP a b\n# TYPE a counter\n\na 1\na{x=\"1\"} 2.5e3\nb_bucket{le=\"+Inf\",} +Inf\n";
        let samples = parse(page, &Limits::SHIM).unwrap();
        assert_eq!(samples.len(), 3);
        assert_eq!(samples[1], Sample::new("a", 2500.0).with("x", "1"));
        assert_eq!(samples[2].label("le"), Some("+Inf"));
    }

    #[test]
    fn a_hostile_page_is_a_fault_and_no_panic() {
        let long = format!("a{{x=\"{}\"}} 1", "y".repeat(1000));
        let name = format!("{} 1", "n".repeat(1000));
        for page in [
            "a",
            "a ",
            "a x",
            "a 1 2",
            "a 0x10",
            "a infinity",
            "1a 1",
            "{} 1",
            "a{ 1",
            "a{x} 1",
            "a{x=} 1",
            "a{x=\"} 1",
            "a{x=\"\\x\"} 1",
            "a{x=\"1\"y=\"2\"} 1",
            "a{x=\"1\"}1",
            "a{x=\"1\",x=\"2\"} 1",
            "a 1\na 1",
            "a 1\na{x=\"\"} 2",
            "a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1",
            "ä 1",
            "a\u{0} 1",
            "a{x=\"1\"",
            long.as_str(),
            name.as_str(),
        ] {
            assert!(parse(page, &Limits::SHIM).is_err(), "{page:?}");
        }
        let many: String = (0..5000).map(|n| format!("a{n} 1\n")).collect();
        assert_eq!(
            parse(&many, &Limits::SHIM),
            Err(Fault::TooMuch(Limits::SHIM.samples, "samples"))
        );
        assert!(parse(&"#".repeat(2 << 20), &Limits::SHIM).is_err());
    }

    #[test]
    fn cuts_and_noise_never_panic() {
        let page = "kata_guest_load{item=\"load1\",cpu=\"\\\\\\\"\\n\"} 0.5\n";
        for end in 0..page.len() {
            let _ = parse(&page[..end], &Limits::GUEST);
            let mut noisy = page.as_bytes().to_vec();
            noisy[end] ^= 0x2f;
            let _ = of_shim(&String::from_utf8_lossy(&noisy));
        }
    }

    #[test]
    fn a_shim_does_not_speak_for_the_node() {
        assert!(of_shim("cloister_of_a_later_version 1\n").is_ok());
        for page in [
            "cloister_node_starts_total 1",
            "kata_monitor_scrape_count 1",
            "kata_shim_threads{sandbox_id=\"x\"} 1",
            "kata_shim_rpc_durations_histogram_milliseconds 1",
        ] {
            assert!(of_shim(page).is_err(), "{page}");
        }
    }
}
