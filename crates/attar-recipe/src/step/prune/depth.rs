//! Which blocks leave: those without which the model is least far from what it was, one after the other.

use attar_compress::prune::{Depth, Prune, Sublayer, without};
use attar_graph::{BlockId, Cached, Graph, SourceWeights, Stream};
use attar_tensor::Digest;

use super::super::kind::StepError;
use crate::{
    Result,
    divergence::{self, Yardstick},
    model::Float,
    session::Session,
    step::codes::refused,
    walk,
};

/// Windows that the choice looks at.
const WINDOWS: usize = 2;

/// After the first, only so many of the cheapest are tried again.
const BEST: usize = 10;

/// What may leave, and how many of them do.
pub(super) struct Candidates {
    /// What leaves together, in running order.
    pub(super) groups: Vec<Vec<Sublayer>>,
    pub(super) leave: usize,
}

/// Something that left.
pub(super) struct Removed {
    pub(super) name: String,
    pub(super) sublayers: Vec<Sublayer>,
    /// KL divergence without it and all before it.
    pub(super) divergence: f64,
}

/// What may leave of `graph`, of which so many blocks `stay`; all, without a number.
pub(super) fn candidates(settings: &Prune, graph: &Graph, stay: Option<usize>) -> Result<Candidates, StepError> {
    let Some(stay) = stay else { return Ok(Candidates { groups: Vec::new(), leave: 0 }) };
    let sublayers = Sublayer::of(graph).map_err(refused)?;
    let mut blocks: Vec<BlockId> = sublayers.iter().map(|sublayer| sublayer.block).collect();
    blocks.dedup();
    let wanted = |sublayer: &&Sublayer| match settings.depth() {
        Depth::Block => true,
        Depth::Attention => sublayer.is_attention,
        Depth::Mlp => !sublayer.is_attention,
    };
    let within = |block: &BlockId| sublayers.iter().filter(|sublayer| sublayer.block == *block).filter(wanted).copied().collect();
    let all: Vec<Vec<Sublayer>> = blocks.iter().map(within).collect();
    let (count, fewest) = (all.len(), fewest(settings, all.len()));
    if stay < fewest || stay > count {
        let wanted = format!(
            "the model has {count} blocks, of which {} at each end stay, by `ends`: {fewest} to {count} can stay",
            settings.ends()
        );
        return Err(refused(attar_compress::Error::Setting { key: "blocks", found: stay, wanted }));
    }
    let free = all.into_iter().skip(settings.ends()).take(count.saturating_sub(2 * settings.ends()));
    Ok(Candidates { groups: free.filter(|group| !group.is_empty()).collect(), leave: count - stay })
}

/// The fewest of `count` blocks that can stay.
pub(super) fn fewest(settings: &Prune, count: usize) -> usize {
    count.min(2 * settings.ends()).max(1)
}

/// The same sublayers in another graph with the same names.
pub(super) fn found_again(sublayers: &[Sublayer], graph: &Graph, other: &Graph) -> Vec<Sublayer> {
    let same = |id| other.find(&graph.get(id).name).expect("a smaller graph keeps its residual stream");
    let mut found = sublayers.to_vec();
    for sublayer in &mut found {
        sublayer.stream.before = same(sublayer.stream.before);
        sublayer.stream.after = same(sublayer.stream.after);
    }
    found
}

/// What leaves so that so many blocks `stay`, in the order of the choice.
pub(super) fn chosen(
    settings: &Prune,
    stay: Option<usize>,
    model: &Float,
    title: &str,
    windows: &[Vec<u32>],
    session: &Session<'_>,
    used: &mut Vec<Digest>,
) -> Result<Vec<Removed>, StepError> {
    let Candidates { groups, leave } = candidates(settings, &model.graph, stay)?;
    if leave == 0 {
        return Ok(Vec::new());
    }
    let windows = &windows[..windows.len().min(WINDOWS)];
    let weights = SourceWeights(model.source.clone());
    let head = Cached::new(&weights);
    let mut parts = vec![walk::first_key(&model.graph, windows)];
    for (_, _, expr) in model.graph.weights() {
        parts.push(expr.digest(&*model.source)?);
    }
    let key = Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice()));
    let yardstick = Yardstick::new(&model.graph, &weights, windows, session)?;
    let (mut open, mut gone): (Vec<usize>, Vec<Removed>) = ((0..groups.len()).collect(), Vec::new());
    let rounds = groups.len() + (leave - 1) * BEST.min(groups.len());
    session.observer.stage(&format!("{title}: try without blocks"), rounds as u64);
    let mut done = 0;
    for _ in 0..leave {
        let before: Vec<Sublayer> = gone.iter().flat_map(|removed| removed.sublayers.clone()).collect();
        let mut round =
            Round { model, weights: &weights, head: &head, yardstick: &yardstick, windows, before, at: None, session };
        let mut costs = Vec::new();
        for at in open.iter().copied() {
            session.check_interrupt()?;
            let group = &groups[at];
            session.observer.advance(done, &name(settings, &model.graph, group));
            let mut parts = vec![*key.as_bytes()];
            parts.extend(
                round
                    .before
                    .iter()
                    .chain(group)
                    .map(|one| *Digest::of(model.graph.get(one.stream.after).name.as_bytes()).as_bytes()),
            );
            let unit = Digest::of_parts(std::iter::once(b"absence 1".as_slice()).chain(parts.iter().map(|part| part.as_slice())));
            let (found, blob) = session.number(unit, || round.without(group))?;
            used.push(blob);
            costs.push((found, at));
            done += 1;
        }
        costs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (divergence, best) = costs[0];
        gone.push(Removed { name: name(settings, &model.graph, &groups[best]), sublayers: groups[best].clone(), divergence });
        open = costs.into_iter().skip(1).take(BEST).map(|(_, at)| at).collect();
        open.sort_unstable();
    }
    Ok(gone)
}

fn name(settings: &Prune, graph: &Graph, group: &[Sublayer]) -> String {
    let block = group.first().map_or("", |one| graph.block_name(one.block));
    match settings.depth() {
        Depth::Block => block.into(),
        Depth::Attention => format!("{block}.attention"),
        Depth::Mlp => format!("{block}.mlp"),
    }
}

/// The model without what left so far, and its windows in front of some block.
struct Round<'a> {
    model: &'a Float,
    weights: &'a SourceWeights,
    head: &'a Cached<'a>,
    yardstick: &'a Yardstick<'a>,
    windows: &'a [Vec<u32>],
    before: Vec<Sublayer>,
    /// A block, and what enters it.
    at: Option<(BlockId, Vec<std::collections::BTreeMap<String, candle_core::Tensor>>)>,
    session: &'a Session<'a>,
}

impl Round<'_> {
    /// The divergence without `group`, too. Groups are asked for in running order.
    fn without(&mut self, group: &[Sublayer]) -> Result<f64> {
        let block = group[0].block;
        let so_far = without(&self.model.graph, &self.before)?;
        let mut stream = self.stream_at(&so_far)?;
        while stream.block() < block {
            stream.leave(self.weights)?;
        }
        let entering = stream.entering();
        self.at = Some((block, entering.clone()));
        let all: Vec<Sublayer> = self.before.iter().chain(group).copied().collect();
        let graph = without(&self.model.graph, &all)?;
        let mut stream = divergence::stream(&graph, self.windows)?;
        stream.restore(block, entering);
        let arrived = divergence::through(&graph, self.weights, stream, self.session)?;
        self.yardstick.between(&graph, self.head, &arrived)
    }

    /// In front of the block of the last question.
    fn stream_at<'g>(&self, graph: &'g Graph) -> Result<Stream<'g>> {
        let mut stream = divergence::stream(graph, self.windows)?;
        if let Some((block, entering)) = &self.at {
            stream.restore(*block, entering.clone());
        }
        Ok(stream)
    }
}
