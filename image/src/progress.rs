//! What is being done with an image, for a person who waits for it.

use std::io::{self, IsTerminal, Read};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

/// Shows tasks: as bars on a terminal, as a line each elsewhere, or not at all.
pub struct Progress(Form);

enum Form {
    Bars(MultiProgress),
    Lines(Box<dyn Fn(&str)>),
    Quiet,
}

impl Progress {
    /// On standard error; lines go to `say`.
    #[must_use]
    pub fn to_stderr(say: impl Fn(&str) + 'static) -> Self {
        if io::stderr().is_terminal() {
            Self(Form::Bars(MultiProgress::new()))
        } else {
            Self(Form::Lines(Box::new(say)))
        }
    }

    /// Nowhere.
    #[must_use]
    pub fn quiet() -> Self {
        Self(Form::Quiet)
    }

    /// Starts a task of so many bytes; it has ended when it is dropped.
    pub(crate) fn start(&self, doing: &'static str, what: &str, size: Option<u64>) -> Task {
        match &self.0 {
            Form::Quiet => Task(None),
            Form::Lines(say) => {
                let size = size.map(|size| format!(" ({})", HumanBytes(size)));
                say(&format!("{doing} {what}{}", size.unwrap_or_default()));
                Task(None)
            }
            Form::Bars(bars) => {
                let bar = match size {
                    Some(size) => ProgressBar::new(size)
                        .with_style(style("{msg:24} [{bar:30}] {bytes:>12} of {total_bytes}")),
                    None => ProgressBar::new_spinner().with_style(style("{msg:24} {bytes:>12}")),
                };
                let bar = bars.add(bar);
                bar.set_message(format!("{doing} {what}"));
                Task(Some(bar))
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Something that is being done.
pub(crate) struct Task(Option<ProgressBar>);

impl Task {
    pub(crate) fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// Passes bytes on, and counts them.
    pub(crate) fn reader<'a>(&'a self, inner: impl Read + 'a) -> impl Read + 'a {
        Counted { inner, task: self }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

struct Counted<'a, R> {
    inner: R,
    task: &'a Task,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.task.advance(n as u64);
        Ok(n)
    }
}
