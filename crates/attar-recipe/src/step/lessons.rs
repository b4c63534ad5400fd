//! What a teacher says about the texts of `distill`: what enters its last block, its most probable tokens, its hidden states.
//!
//! It is asked in one resumable walk. Most probable tokens are units of the store, batch by batch, so that another run need not ask; hidden
//! states are computed at every step, for they are larger than anything else, and what enters the last block comes along with them.

use std::collections::BTreeMap;

use attar_compress::{
    TrainingWindows,
    learn::{Batch, Distill, Teacher},
    prune::Sublayer,
};
use attar_graph::{BlockId, Cached, Graph, Mode, SourceWeights, ValueId, Values, kernel::Top};
use attar_tensor::Digest;
use candle_core::Tensor;

use super::{codes::refused, kind::StepError, local::Pairs, trainable::weights_key};
use crate::{
    model::Float,
    session::Session,
    walk::{Latest, Side, Walk, block_key, first_key, lane_values, read_lanes, write_parts},
    walker::Walker,
};

pub(super) static WALKER: Walker = Walker {
    name: "distill",
    doing: "run the teacher",
    example: "[[step]]\nkind = \"distill\"\nlabels = 0.5\nbatch = 2\nsteps = 20\n",
};

/// Where the residual streams of student and teacher are held against each other.
pub(super) struct Meeting {
    /// The student's block, and the stream behind it.
    pub(super) student: BlockId,
    value: ValueId,
    /// The teacher's.
    teacher: BlockId,
    wanted: ValueId,
}

impl Meeting {
    /// The shape of a map between them, `[teacher's width, student's width]`.
    pub(super) fn map(&self, student: &Graph, teacher: &Graph) -> [usize; 2] {
        [(teacher, self.wanted), (student, self.value)].map(|(graph, id)| graph.fact(id).width().unwrap_or(0))
    }
}

/// Every block of the student meets one of the teacher's, spread evenly: the last meets the last.
pub(super) fn meetings(student: &Graph, teacher: &Graph) -> Result<Vec<Meeting>, StepError> {
    let behind = |graph: &Graph| -> Result<Vec<(BlockId, ValueId)>, StepError> {
        let mut behind: BTreeMap<BlockId, ValueId> = BTreeMap::new();
        let in_hidden = |e| StepError { key: Some("hidden".into()), ..refused(e) };
        behind.extend(Sublayer::of(graph).map_err(in_hidden)?.iter().map(|sublayer| (sublayer.block, sublayer.stream.after)));
        Ok(behind.into_iter().collect())
    };
    let (own, theirs) = (behind(student)?, behind(teacher)?);
    let meet = |(at, (block, value)): (usize, &(BlockId, ValueId))| {
        let (teacher, wanted) = theirs[((at + 1) * theirs.len()).div_ceil(own.len()) - 1];
        Meeting { student: *block, value: *value, teacher, wanted }
    };
    Ok(own.iter().enumerate().map(meet).collect())
}

/// Where blocks are matched one by one: those of the same number.
pub(super) fn pairs(student: &Graph, teacher: &Graph) -> Result<Pairs, StepError> {
    let met = meetings(student, teacher).map_err(|mistake| StepError { key: Some("local".into()), ..mistake })?;
    Ok(met.into_iter().map(|meeting| (meeting.student, [meeting.value, meeting.wanted])).collect())
}

/// A teacher on its way through a batch, where hidden states count.
pub(super) struct Met {
    /// Its residual stream, by the student's block that it is held against and the value behind that.
    states: BTreeMap<BlockId, (ValueId, Tensor)>,
    /// What enters its last block.
    entering: Values,
}

/// What the windows of the text are held against, batch by batch: first those to train on.
pub(super) struct Lessons {
    pub(super) inputs: Vec<Values>,
    /// What enters the teacher's last block; nothing where it is not asked.
    wanted: Vec<Option<Values>>,
    /// The teacher's most probable tokens, of the batches to train on, where only these count.
    tops: Vec<Top>,
}

/// A teacher with its student, and the texts.
pub(super) struct Teaching<'a> {
    pub(super) settings: &'a Distill,
    pub(super) teacher: &'a Float,
    /// The student's graph.
    pub(super) graph: &'a Graph,
    pub(super) text: &'a TrainingWindows,
    pub(super) title: &'a str,
    pub(super) session: &'a Session<'a>,
}

impl<'a> Teaching<'a> {
    /// A batch, of those to train on and then those that are held out. `met` is what the teacher was asked about it now.
    pub(super) fn batch<'b>(&'b self, lessons: &'b Lessons, at: usize, met: Option<&'b Met>, head: &'b Cached<'_>) -> Batch<'b> {
        let (train, size) = (&self.text.train, self.settings.batch);
        let tokens = match (at * size).checked_sub(train.len()) {
            None => &train[at * size..][..size],
            Some(from) => &self.text.held_out[from..(from + size).min(self.text.held_out.len())],
        };
        let met_now = met.filter(|_| self.settings.kl > 0.0).map(|met| &met.entering);
        let entering = met_now.or(lessons.wanted[at].as_ref());
        let teacher = entering.map(|entering| Teacher { graph: &self.teacher.graph, entering, head });
        let states = met.map_or_else(BTreeMap::new, |met| met.states.clone());
        Batch { inputs: &lessons.inputs[at], tokens, teacher, top: lessons.tops.get(at), states }
    }

    /// Runs the teacher on a batch up to its last block; nothing, where only what it says counts.
    pub(super) fn meet(&self, meetings: &[Meeting], inputs: &Values, teacher: &SourceWeights) -> crate::Result<Option<Met>> {
        if meetings.is_empty() {
            return Ok(None);
        }
        let (graph, mut states) = (&self.teacher.graph, BTreeMap::new());
        let last = graph.blocks().last().unwrap_or(BlockId::FIRST);
        let by_name = |(id, tensor): (&ValueId, &Tensor)| Some((graph.find(&self.graph.get(*id).name)?, tensor.clone()));
        let mut values: Values = inputs.iter().filter_map(by_name).collect();
        for block in graph.blocks().take_while(|block| *block != last) {
            let left = graph.evaluate_block(block, teacher, Mode::Inference, &values)?;
            for meeting in meetings.iter().filter(|meeting| meeting.teacher == block) {
                states.insert(meeting.student, (meeting.value, left[&meeting.wanted].clone()));
            }
            values.extend(left);
            values.retain(|id, _| graph.is_read_after(*id, block));
        }
        Ok(Some(Met { states, entering: values }))
    }

    /// What the teacher says. The blob holds what enters its last block while the student learns.
    pub(super) fn lessons(&self, teacher: &SourceWeights) -> Result<(Lessons, Latest), StepError> {
        let batch = self.settings.batch;
        let all: Vec<Vec<u32>> = self.text.train.iter().chain(&self.text.held_out).cloned().collect();
        let inputs = lane_values(self.graph, &all, batch)?;
        let tops = match self.settings.teacher_top {
            Some(count) => self.tops(count, teacher)?,
            None => Vec::new(),
        };
        // Nobody asks the teacher here about what only the text is held against, what is known of it, or what it is asked at every step.
        let unasked = match self.settings {
            settings if settings.kl == 0.0 || settings.hidden > 0.0 || !tops.is_empty() => self.text.train.len(),
            _ => 0,
        };
        let mut wanted: Vec<Option<Values>> = vec![None; unasked / batch];
        let (asked, entering) = self.arrived(&all[unasked..], teacher)?;
        wanted.extend(asked.into_iter().map(Some));
        Ok((Lessons { inputs, wanted, tops }, entering))
    }

    /// What enters the teacher's last block on some windows, batch by batch.
    fn arrived(&self, windows: &[Vec<u32>], teacher: &SourceWeights) -> Result<(Vec<Values>, Latest), StepError> {
        if windows.is_empty() {
            return Ok((Vec::new(), Latest::default()));
        }
        let (graph, batch) = (&self.teacher.graph, self.settings.batch);
        let block = |before: &Digest, block| block_key(before, graph, block, &*self.teacher.source, []);
        let sides = vec![Side { graph, weights: teacher }];
        let walk = Walk::new(&WALKER, self.title, self.asked(windows), sides, self.session).over(windows).by(batch);
        let last = graph.blocks().last().unwrap_or(BlockId::FIRST);
        let (walked, entering) = walk.arrive(last.index(), &block)?;
        let read = graph.live_into(last);
        let mut lanes = walked.values(0, &lane_values(graph, windows, batch)?);
        lanes.iter_mut().for_each(|lane| lane.retain(|id, _| read.contains(id)));
        Ok((lanes, entering))
    }

    /// The key of what the teacher is asked.
    fn asked(&self, windows: &[Vec<u32>]) -> Digest {
        let size = (self.settings.batch as u64).to_le_bytes();
        Digest::of_parts([b"teacher 2".as_slice(), first_key(&self.teacher.graph, windows).as_bytes(), &size])
    }

    /// The blobs of the teacher's most probable tokens, as far as there are such: another run may want them.
    pub(super) fn kept_tops(&self) -> Result<Vec<Digest>, StepError> {
        let units = self.settings.teacher_top.map_or_else(|| Ok(Vec::new()), |count| self.top_units(count))?;
        let known = units.iter().filter_map(|unit| self.session.done(unit).transpose());
        Ok(known.collect::<crate::Result<_>>()?)
    }

    /// The units of the teacher's most probable tokens, batch by batch.
    fn top_units(&self, count: usize) -> Result<Vec<Digest>, StepError> {
        let graph = &self.teacher.graph;
        let weights = weights_key(graph, &*self.teacher.source, graph.blocks())?;
        let unit = |windows: &[Vec<u32>]| {
            let count = (count as u64).to_le_bytes();
            Digest::of_parts([b"top 1".as_slice(), self.asked(windows).as_bytes(), weights.as_bytes(), &count])
        };
        Ok(self.text.train.chunks(self.settings.batch).map(unit).collect())
    }

    /// The teacher's most probable tokens, a unit for every batch to train on.
    fn tops(&self, count: usize, teacher: &SourceWeights) -> Result<Vec<Top>, StepError> {
        let (graph, train) = (&self.teacher.graph, &self.text.train);
        let units = self.top_units(count)?;
        let done = units.iter().map(|unit| self.session.done(unit)).collect::<crate::Result<Option<Vec<_>>>>()?;
        if let Some(done) = done {
            return Ok(done.iter().map(|blob| self.read_top(blob)).collect::<crate::Result<_>>()?);
        }
        let (entering, reached) = self.arrived(train, teacher)?;
        let head = Cached::new(teacher);
        self.session.observer.stage(&format!("{}: keep what the teacher says", self.title), units.len() as u64);
        let mut tops = Vec::new();
        for (at, (unit, entering)) in units.iter().zip(&entering).enumerate() {
            self.session.check_interrupt()?;
            self.session.observer.advance(at as u64, "");
            let blob = match self.session.done(unit)? {
                Some(blob) => blob,
                None => {
                    let top = Teacher { graph, entering, head: &head }.top(count)?;
                    let tokens: Vec<f32> = top.tokens.iter().map(|token| *token as f32).collect();
                    let parts = [(0, "tokens", &tokens[..]), (0, "logs", &top.logs), (0, "rest", &top.rest)];
                    self.session.unit(*unit, |to| write_parts(&parts, to))?
                }
            };
            tops.push(self.read_top(&blob)?);
        }
        reached.discard(self.session)?;
        Ok(tops)
    }

    fn read_top(&self, blob: &Digest) -> crate::Result<Top> {
        let parts = read_lanes(&self.session.store.open(blob)?, 1)?.remove(0);
        let part = |name: &str| parts.get(name).and_then(|part| part.to_vec1::<f32>().ok()).unwrap_or_default();
        let (tokens, logs, rest) = (part("tokens"), part("logs"), part("rest"));
        // Tokens are whole numbers far below 2^24, so f32 holds them.
        Ok(Top { count: tokens.len() / rest.len().max(1), tokens: tokens.into_iter().map(|t| t as u32).collect(), logs, rest })
    }
}
