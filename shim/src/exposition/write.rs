//! Samples as a page: each family once, with its help and type, its samples together.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Sample;
use super::known::{self, Kind};

/// Samples that have labels in common, which are written behind their own.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// The labels.
    pub labels: Vec<(&'static str, String)>,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// The page of these samples. Those of a family stay in their order; a name that no family has is a family
/// without type.
#[must_use]
pub fn write(samples: Vec<Sample>) -> String {
    write_groups(&[Group {
        labels: Vec::new(),
        samples,
    }])
}

/// The page of the samples of all groups.
#[must_use]
pub fn write_groups(groups: &[Group]) -> String {
    let mut families = BTreeMap::<&str, (Kind, &str, Vec<(&Group, &Sample)>)>::new();
    let all = groups
        .iter()
        .flat_map(|group| group.samples.iter().map(move |it| (group, it)));
    for (group, sample) in all {
        let (name, kind, help) = match known::of_sample(&sample.name) {
            Some(family) => (family.name, family.kind, family.help),
            None => (sample.name.as_str(), Kind::Untyped, ""),
        };
        let family = families.entry(name).or_insert((kind, help, Vec::new()));
        family.2.push((group, sample));
    }
    let mut page = String::new();
    // A `String` takes everything.
    for (name, (kind, help, samples)) in families {
        if !help.is_empty() {
            let _ = writeln!(page, "# HELP {name} {help}");
        }
        let _ = writeln!(page, "# TYPE {name} {}", kind.name());
        for (group, sample) in samples {
            line(&mut page, group, sample);
        }
    }
    page
}

fn line(page: &mut String, group: &Group, sample: &Sample) {
    page.push_str(&sample.name);
    let own = sample
        .labels
        .iter()
        .map(|(label, value)| (label.as_str(), value));
    let common = group.labels.iter().map(|(label, value)| (*label, value));
    for (index, (label, value)) in own.chain(common).enumerate() {
        page.push(if index == 0 { '{' } else { ',' });
        let _ = write!(page, "{label}=\"");
        for letter in value.chars() {
            match letter {
                '\\' => page.push_str("\\\\"),
                '"' => page.push_str("\\\""),
                '\n' => page.push_str("\\n"),
                other => page.push(other),
            }
        }
        page.push('"');
    }
    if !(sample.labels.is_empty() && group.labels.is_empty()) {
        page.push('}');
    }
    let _ = match sample.value {
        value if value == f64::INFINITY => writeln!(page, " +Inf"),
        value if value == f64::NEG_INFINITY => writeln!(page, " -Inf"),
        value => writeln!(page, " {value}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::{Limits, parse};

    #[test]
    fn samples_of_a_family_stand_together_under_one_head() {
        let of = |id: &str, value| Sample::new("kata_shim_threads", value).with("sandbox_id", id);
        let samples = vec![
            of("a", 1.0),
            Sample::new("zoo", f64::INFINITY),
            of("b", 2.0),
        ];
        let page = write(samples);
        assert_eq!(
            page,
            "# HELP kata_shim_threads Shim process threads\n# TYPE kata_shim_threads gauge\n\
             kata_shim_threads{sandbox_id=\"a\"} 1\nkata_shim_threads{sandbox_id=\"b\"} 2\n\
             # TYPE zoo untyped\nzoo +Inf\n"
        );
    }

    #[test]
    fn what_is_written_reads_back_whatever_a_label_holds() {
        let odd = "a\"b\\c\nd} 1\n# TYPE x counter\u{1f980}";
        let samples = vec![Sample::new("x", -0.5).with("l", odd)];
        assert_eq!(
            parse(&write(samples.clone()), &Limits::SHIM).unwrap(),
            samples
        );
        let empty = vec![samples[0].clone().with("m", "")];
        assert_eq!(parse(&write(empty), &Limits::SHIM).unwrap(), samples);
    }
}
