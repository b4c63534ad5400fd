//! An artifact in an engine, as a [`Runner`].

use std::{ops::Range, path::PathBuf, time::Duration};

use super::{
    child::Child,
    find::Installation,
    kind::{Ask, Load, Mode, Opens},
    protocol::{Reply, Request},
};
use crate::{
    Asked, Error, Generation, Prediction, Result, Window,
    generation::Chooser,
    runner::{Output, Progress, Rows, Runner},
};

/// A written artifact in an engine.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The engine, as it is installed here.
    pub installation: Installation,
    /// The folder of the artifact.
    pub folder: PathBuf,
    /// How exactly to compute.
    pub mode: Mode,
    /// One of the engine's devices.
    pub device: String,
    /// An executable that calls [`super::serve()`] for the engine of its second argument when the first is [`super::VERB`].
    pub host: PathBuf,
    /// Threads per operator; the engine decides if not given.
    pub threads: Option<usize>,
    /// Processors that its threads are bound to; the system decides if none is given.
    pub processors: Vec<usize>,
    /// The longest that one answer may take: loading the model, or running one window.
    pub timeout: Duration,
}

impl Artifact {
    /// On the engine's default device with as many threads as it likes, and ten minutes for an answer.
    pub fn new(installation: Installation, folder: impl Into<PathBuf>, mode: Mode, host: impl Into<PathBuf>) -> Artifact {
        let timeout = Duration::from_secs(600);
        let device = installation.engine.devices[0].to_owned();
        Artifact {
            installation,
            folder: folder.into(),
            mode,
            device,
            host: host.into(),
            threads: None,
            processors: Vec::new(),
            timeout,
        }
    }

    /// The same on another of the engine's devices, if one is given.
    ///
    /// # Errors
    ///
    /// When the engine has no device of that name.
    pub fn on(self, device: Option<&str>) -> Result<Artifact> {
        let Some(device) = device else { return Ok(self) };
        Ok(Artifact { device: self.installation.engine.device(device)?.to_owned(), ..self })
    }

    /// What the engine, which is a compiler, predicts.
    pub fn predict(&self, ask: Ask) -> Result<Prediction> {
        let Open { mut child, predicted, .. } = self.open_for(Some(ask))?;
        predicted.ok_or_else(|| child.nonsense("compiling the model", "no prediction".into()))
    }

    /// A process with the artifact loaded, which takes the times of answers.
    pub(crate) fn streaming(&self) -> Result<Streaming> {
        let open = self.open()?;
        let output = Output::Logits.of(&open.outputs)?;
        Ok(Streaming { open, output })
    }

    fn open(&self) -> Result<Open> {
        self.open_for(None)
    }

    fn open_for(&self, ask: Option<Ask>) -> Result<Open> {
        let engine = self.installation.engine;
        let files = engine.opens.iter().map(|Opens { file, .. }| self.folder.join(file));
        let model = files.clone().find(|file| file.is_file());
        let model = model.or_else(|| files.clone().next()).expect("an engine opens something");
        exists(&self.installation.library, "the engine's library")?;
        exists(&model, "the artifact's model")?;
        let mut child = Child::spawn(&self.installation, &self.host, &self.processors, self.timeout)?;
        let load = Load {
            library: self.installation.library.clone(),
            model,
            mode: self.mode,
            device: self.device.clone(),
            threads: self.threads,
            ask,
        };
        let doing = if ask.is_some() { "compiling the model" } else { "loading the model" };
        match child.ask(doing, Request::Open(load), &[])? {
            (Reply::Opened { outputs, rewinds, predicted }, _) => {
                Ok(Open { child, outputs, rewinds, predicted: predicted.map(|boxed| *boxed) })
            }
            (reply, _) => Err(child.nonsense(doing, format!("{reply:?}"))),
        }
    }
}

fn exists(path: &std::path::Path, what: &'static str) -> Result<()> {
    if path.is_file() { Ok(()) } else { Err(Error::NoFile { path: path.into(), what }) }
}

impl Runner for Artifact {
    fn name(&self) -> &str {
        self.installation.engine.name
    }

    fn start<'r>(&'r self, asked: Asked, windows: &'r [Window], progress: Progress<'r>) -> Result<Box<dyn Rows + 'r>> {
        let open = self.open()?;
        Ok(match asked {
            Asked::Output(output) => {
                let output = output.of(&open.outputs)?.to_owned();
                Box::new(Fed { open, output, windows, progress, fed: None })
            }
            Asked::Answers(how) => {
                Output::Logits.of(&open.outputs)?;
                Box::new(Answers { open, windows, how, progress })
            }
        })
    }

    fn generate(&self, prompt: &[u32], how: &Generation, each: &mut dyn FnMut(u32)) -> Result<Vec<u32>> {
        let mut open = self.open()?;
        Output::Logits.of(&open.outputs)?;
        open.continuation(prompt, 0, how, each)
    }
}

/// A child with a model open.
struct Open {
    child: Child,
    outputs: Vec<String>,
    rewinds: bool,
    predicted: Option<Prediction>,
}

impl Open {
    fn feed(&mut self, tokens: &[u32], afresh: bool) -> Result<()> {
        self.child.ask("running tokens", Request::Feed { afresh }, tokens).map(|_| ())
    }

    /// Feeds a sequence of which the engine has read the first `common` tokens, and others behind them. Returns how many it has again.
    fn feed_after(&mut self, tokens: &[u32], common: usize) -> Result<usize> {
        if common == 0 || !self.rewinds {
            self.feed(tokens, true)?;
            return Ok(0);
        }
        self.child.ask("forgetting tokens", Request::Rewind { length: common }, &[])?;
        self.feed(&tokens[common..], false)?;
        Ok(common)
    }

    /// The continuation of prompt number `at`.
    fn continuation(&mut self, prompt: &[u32], at: usize, how: &Generation, each: &mut dyn FnMut(u32)) -> Result<Vec<u32>> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut chooser = Chooser::new(how, at);
        let mut written = Vec::new();
        let mut feed = prompt.to_vec();
        while written.len() < how.limit {
            self.feed(&feed, written.is_empty())?;
            let (logits, _) = self.rows(Output::Logits.name(), feed.len() - 1..feed.len())?;
            let next = chooser.choose(&logits, prompt.len() + written.len())?;
            written.push(next);
            each(next);
            if how.ends(next, written.len()) {
                break;
            }
            feed = vec![next];
        }
        Ok(written)
    }

    fn rows(&mut self, output: &str, rows: Range<usize>) -> Result<(Vec<f32>, usize)> {
        let doing = "fetching outputs";
        let asked = rows.len();
        let request = Request::Rows { output: output.into(), start: rows.start, end: rows.end };
        match self.child.ask(doing, request, &[])? {
            (Reply::Rows { width }, values) if values.len() == asked * width => Ok((values, width)),
            (reply, values) => Err(self.child.nonsense(doing, format!("{reply:?} with {} numbers", values.len()))),
        }
    }
}

/// A process that takes the times of answers.
pub(crate) struct Streaming {
    open: Open,
    output: &'static str,
}

impl Streaming {
    /// The engine's process.
    pub(crate) fn process(&self) -> u32 {
        self.open.child.process()
    }

    /// Seconds to the first token of an answer, and from each to the next.
    pub(crate) fn timed(&mut self, prompt: &[u32], answer: usize) -> Result<Vec<f32>> {
        let doing = "answering";
        let request = Request::Time { output: self.output.into(), answer };
        match self.open.child.ask(doing, request, prompt)? {
            (Reply::Timed, times) if times.len() == answer && times.iter().all(|time| *time >= 0.0) => Ok(times),
            (reply, times) => Err(self.open.child.nonsense(doing, format!("{reply:?} with {} numbers", times.len()))),
        }
    }
}

/// Windows that run when their rows are asked for.
struct Fed<'r> {
    open: Open,
    output: String,
    windows: &'r [Window],
    progress: Progress<'r>,
    /// The window that ran last, and how many of its tokens were there before.
    fed: Option<(usize, usize)>,
}

impl Fed<'_> {
    /// The tokens before all that count which a window has in common with the one that ran last.
    fn common(&self, window: usize) -> usize {
        let Some((before, _)) = self.fed else { return 0 };
        let stem = |window: usize| &self.windows[window].tokens[..self.windows[window].scored.start];
        stem(before).iter().zip(stem(window)).take_while(|(a, b)| a == b).count()
    }
}

impl Rows for Fed<'_> {
    fn rows(&mut self, window: usize, positions: Range<usize>, out: &mut Vec<f32>) -> Result<usize> {
        let skipped = match self.fed {
            Some((fed, skipped)) if fed == window => skipped,
            _ => {
                let skipped = self.open.feed_after(&self.windows[window].tokens, self.common(window))?;
                self.fed = Some((window, skipped));
                (self.progress)(window as u64 + 1, self.windows.len() as u64);
                skipped
            }
        };
        let (values, width) = self.open.rows(&self.output, positions.start - skipped..positions.end - skipped)?;
        *out = values;
        Ok(width)
    }
}

/// Prompts that are continued when their answers are asked for.
struct Answers<'r> {
    open: Open,
    windows: &'r [Window],
    how: Generation,
    progress: Progress<'r>,
}

impl Rows for Answers<'_> {
    fn rows(&mut self, window: usize, _: Range<usize>, _: &mut Vec<f32>) -> Result<usize> {
        Err(Error::NoRows { window })
    }

    fn answer(&mut self, window: usize) -> Result<Vec<u32>> {
        let answer = self.open.continuation(&self.windows[window].tokens, window, &self.how, &mut |_| ())?;
        (self.progress)(window as u64 + 1, self.windows.len() as u64);
        Ok(answer)
    }
}
