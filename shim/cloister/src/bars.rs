//! How far something is, on standard error: a bar for each layer where that is a terminal; else a line
//! now and then, or nothing, as whoever asks for it says.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use image_rs::recrypt::{Progress as Recrypted, Report};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use shim::creation::{Creation, Step};

const LAYER: &str = "{prefix:>9} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}";
const HEAD: &str = "{spinner} {msg}";
/// The only thing of a report.
const IMAGE: &str = "image";

/// A report of layers that are encrypted or decrypted. Where standard error is no terminal it says
/// nothing: what was made is on standard output.
pub(super) fn report() -> Report {
    if !std::io::stderr().is_terminal() {
        return Arc::new(|_| {});
    }
    let bars = Mutex::new(Bars::default());
    Arc::new(move |progress| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Recrypted::Start { layer, size } => bars.set(IMAGE, layer, 0, size),
            Recrypted::Advance { layer, bytes } => bars.advance(IMAGE, layer, bytes),
            Recrypted::Done { layer } => bars.finish(IMAGE, layer),
        }
    })
}

/// A line for each thing that is shown, and below it a bar for each of its layers.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    groups: BTreeMap<String, Group>,
}

/// The bars of one thing, from its line down.
#[derive(Default)]
struct Group {
    head: Option<ProgressBar>,
    layers: BTreeMap<usize, ProgressBar>,
    last: Option<ProgressBar>,
}

impl Bars {
    /// So many bytes of a layer are there, of so many.
    fn set(&mut self, group: &str, layer: usize, bytes: u64, size: u64) {
        let group = self.groups.entry(group.to_owned()).or_default();
        let bar = group.layers.entry(layer).or_insert_with(|| {
            let bar = ProgressBar::new(size).with_style(style(LAYER));
            let bar = bar.with_prefix(format!("layer {layer}"));
            let bar = match &group.last {
                Some(last) => self.all.insert_after(last, bar),
                None => self.all.add(bar),
            };
            group.last = Some(bar.clone());
            bar
        });
        bar.set_length(size);
        bar.set_position(bytes);
    }

    fn advance(&mut self, group: &str, layer: usize, bytes: u64) {
        let layers = self.groups.get(group).map(|group| &group.layers);
        if let Some(bar) = layers.and_then(|layers| layers.get(&layer)) {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self, group: &str, layer: usize) {
        let layers = self.groups.get(group).map(|group| &group.layers);
        if let Some(bar) = layers.and_then(|layers| layers.get(&layer)) {
            bar.finish();
        }
    }

    /// The line above the bars.
    fn say(&mut self, group: &str, text: String) {
        let group = self.groups.entry(group.to_owned()).or_default();
        let head = group.head.get_or_insert_with(|| {
            let head = ProgressBar::new_spinner().with_style(style(HEAD));
            let head = self.all.add(head);
            group.last = Some(head.clone());
            head
        });
        head.set_message(text);
        head.tick();
    }

    /// Takes a thing off the screen.
    fn forget(&mut self, group: &str) {
        if let Some(group) = self.groups.remove(group) {
            for bar in group.head.iter().chain(group.layers.values()) {
                bar.finish_and_clear();
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Shows how far the creations of containers are, for as long as it is told.
pub(super) struct Show(Kind);

enum Kind {
    /// On a terminal.
    Bars(Bars),
    /// A line for each step, and for each layer that is unpacked: what was said last, of each container.
    Lines(BTreeMap<String, (Step, usize)>),
}

impl Show {
    /// As standard error is.
    pub(super) fn on_stderr() -> Self {
        Self(match std::io::stderr().is_terminal() {
            true => Kind::Bars(Bars::default()),
            false => Kind::Lines(BTreeMap::new()),
        })
    }

    /// Shows all that are being created, and takes away what is not any more.
    pub(super) fn update(&mut self, creations: &[Creation]) {
        let goes_on = |name: &String| creations.iter().any(|it| it.container == *name);
        match &mut self.0 {
            Kind::Bars(bars) => {
                let over = bars.groups.keys().filter(|name| !goes_on(name));
                for name in over.cloned().collect::<Vec<_>>() {
                    bars.forget(&name);
                }
                for creation in creations {
                    let name = &creation.container;
                    bars.say(name, creation.to_string());
                    for (index, layer) in creation.progress.layers.iter().enumerate() {
                        bars.set(name, index, layer.fetched, layer.size);
                    }
                }
            }
            Kind::Lines(said) => {
                said.retain(|name, _| goes_on(name));
                for creation in creations {
                    if let Some(line) = line(said, creation) {
                        eprintln!("{line}");
                    }
                }
            }
        }
    }
}

/// The line for a state, where it says something new.
fn line(said: &mut BTreeMap<String, (Step, usize)>, creation: &Creation) -> Option<String> {
    let progress = &creation.progress;
    let now = (progress.step, progress.unpacked());
    let before = said.insert(creation.container.clone(), now);
    (before != Some(now)).then(|| creation.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shim::creation::{Layer, Progress};

    #[test]
    fn a_line_is_printed_for_each_step_and_each_layer_and_not_for_each_byte() {
        let mut creation = Creation {
            container: "c".into(),
            progress: Progress::default(),
        };
        let mut said = BTreeMap::new();
        assert_eq!(line(&mut said, &creation).unwrap(), "c: preparing");
        assert_eq!(line(&mut said, &creation), None);
        creation.progress.pull("a:1");
        creation.progress.enter(Step::Layers);
        let layer = |fetched, unpacked| Layer {
            size: 2,
            fetched,
            unpacked,
        };
        creation.progress.layers = vec![layer(0, false)];
        assert_eq!(
            line(&mut said, &creation).unwrap(),
            "c: pulling a:1: 0 of 1 layers unpacked, 0 B of 2 B fetched"
        );
        creation.progress.layers = vec![layer(1, false)];
        assert_eq!(line(&mut said, &creation), None);
        creation.progress.layers = vec![layer(2, true)];
        assert!(
            line(&mut said, &creation)
                .unwrap()
                .contains("1 of 1 layers")
        );
    }

    #[test]
    fn bars_follow_what_they_are_told_and_go() {
        let mut bars = Bars::default();
        bars.say("c", "c: pulling".into());
        bars.set("c", 0, 1, 4);
        bars.advance("c", 0, 2);
        assert_eq!(bars.groups["c"].layers[&0].position(), 3);
        bars.finish("c", 0);
        assert!(bars.groups["c"].layers[&0].is_finished());
        bars.forget("c");
        bars.advance("c", 0, 1);
        assert!(bars.groups.is_empty());
    }
}
