//! One bar for each layer; nothing at all where stderr is no terminal.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use image_rs::recrypt::{Progress, Report};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{prefix:>9} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}";

/// A report that draws bars.
pub(super) fn bars() -> Report {
    if !std::io::stderr().is_terminal() {
        return Arc::new(|_| {});
    }
    let all = MultiProgress::new();
    let bars = Mutex::new(HashMap::<usize, ProgressBar>::new());
    Arc::new(move |progress| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Start { layer, size } => {
                let style = ProgressStyle::with_template(TEMPLATE)
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(size)
                    .with_style(style)
                    .with_prefix(format!("layer {layer}"));
                bars.insert(layer, all.add(bar));
            }
            Progress::Advance { layer, bytes } => {
                if let Some(bar) = bars.get(&layer) {
                    bar.inc(bytes);
                }
            }
            Progress::Done { layer } => {
                if let Some(bar) = bars.remove(&layer) {
                    bar.finish();
                }
            }
        }
    })
}
