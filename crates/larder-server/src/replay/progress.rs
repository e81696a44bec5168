//! The progress bar on stderr: compressed bytes while reading, accesses or whatever is counted after that. It is
//! silent when stderr is not a terminal.

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::Read;
use std::time::Duration;

/// Accesses between two updates: rare enough to cost nothing, often enough to look alive.
pub(super) const ACCESSES_PER_TICK: usize = 1 << 16;

/// The same where an access may wait for a disk.
pub(super) const ACCESSES_PER_TICK_SLOW: usize = 1 << 8;

const READ_SIZED: &str = "{prefix:>9} [{bar:32}] {bytes}/{total_bytes}, {bytes_per_sec}, {left} left";
const READ_UNSIZED: &str = "{prefix:>9} {spinner} {bytes}, {bytes_per_sec}";
const COUNTED: &str = "{prefix:>9} [{bar:32}] {human_pos}/{human_len} {unit}, {rate}, {left} left, {msg}";

/// One bar, for one trace.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn reading() -> Self {
        let bar = ProgressBar::no_length().with_style(style(READ_UNSIZED, "")).with_prefix("reading");
        Self(bar)
    }

    /// No bar at all, for tests.
    #[cfg(test)]
    pub(super) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Sets the length of the input as it lies on the disk.
    pub(super) fn input_bytes(&self, bytes: u64) {
        self.0.set_style(style(READ_SIZED, ""));
        self.0.set_length(bytes);
    }

    /// Counts what is read through the returned reader.
    pub(super) fn count<R: Read>(&self, reader: R) -> impl Read + use<R> {
        self.0.wrap_read(reader)
    }

    /// Begins anew with `accesses` of all passes together. What is done for them differs in speed, so that
    /// the time left is only right when each kind has a bar of its own.
    pub(super) fn begin(&self, what: &'static str, accesses: u64) {
        self.begin_counting(what, "accesses", accesses);
    }

    /// The same, of something else than accesses.
    pub(crate) fn begin_counting(&self, what: &'static str, unit: &'static str, count: u64) {
        // Back to zero first, so that no drawing shows bytes as accesses.
        self.0.reset();
        self.0.set_length(count);
        self.0.set_style(style(COUNTED, unit));
        self.0.set_prefix(what);
        self.0.set_message("");
    }

    /// Says which pass runs.
    pub(crate) fn pass(&self, pass: impl Into<String>) {
        self.0.set_message(pass.into());
    }

    /// Prints something else to stderr without tearing the bar.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }

    /// Counts accesses, or what else was begun.
    pub(crate) fn advance(&self, count: usize) {
        self.0.inc(count as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str, unit: &'static str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates of this file are valid")
        .progress_chars("=> ")
        // From the mean since the pass began: indicatif's own estimate needs many seconds to settle.
        .with_key("unit", move |_: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(unit);
        })
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            // A bar that can't be written is nobody's failure.
            let _ = write!(out, "{}/s", HumanCount(mean_rate(state) as u64));
        })
        .with_key("left", |state: &ProgressState, out: &mut dyn Write| {
            let todo = state.len().unwrap_or(0).saturating_sub(state.pos());
            let seconds = Duration::try_from_secs_f64(todo as f64 / mean_rate(state)).unwrap_or_default();
            let _ = write!(out, "{:#}", HumanDuration(seconds));
        })
}

fn mean_rate(state: &ProgressState) -> f64 {
    state.pos().max(1) as f64 / state.elapsed().as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [READ_SIZED, READ_UNSIZED, COUNTED] {
            style(template, "accesses");
        }
    }
}
