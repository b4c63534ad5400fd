//! How far the next-token distributions of a model are from those of another one.

use attar_graph::{BlockId, Cached, Graph, Inputs, Mode, Stream, Values, Weights};
use candle_core::Tensor;

use crate::{Error, Result, session::Session, shape, walk::lanes};

/// Logits that are held at a time.
const ROWS: usize = 256;

/// A model that others are compared with, on some windows.
pub(crate) struct Yardstick<'a> {
    graph: &'a Graph,
    head: Cached<'a>,
    windows: &'a [Vec<u32>],
    /// What enters its last block, window by window.
    entering: Vec<Values>,
}

impl<'a> Yardstick<'a> {
    /// Runs `graph` on `windows` up to its last block.
    pub(crate) fn new(
        graph: &'a Graph,
        weights: &'a dyn Weights,
        windows: &'a [Vec<u32>],
        session: &Session<'_>,
    ) -> Result<Yardstick<'a>> {
        let entering = arrived(graph, weights, windows, session)?;
        Ok(Yardstick { graph, head: Cached::new(weights), windows, entering })
    }

    /// Bytes that comparing takes: two heads, some rows of logits, and what waits between blocks.
    pub(crate) fn memory(graph: &Graph, tokens: u64) -> u64 {
        let logits = 4 * ROWS as u64 * shape::output_width(graph);
        4 * (2 * shape::head_numbers(graph) + logits + shape::largest_block(graph) + 8 * tokens * shape::residual_width(graph))
    }

    /// The KL divergence of another model from this one, in nats per token.
    pub(crate) fn divergence(&self, graph: &Graph, weights: &dyn Weights, session: &Session<'_>) -> Result<f64> {
        let entering = arrived(graph, weights, self.windows, session)?;
        self.between(graph, &Cached::new(weights), &entering)
    }

    /// The same, of a model that is at its last block already.
    pub(crate) fn between(&self, graph: &Graph, head: &dyn Weights, entering: &[Values]) -> Result<f64> {
        let (mut sum, mut tokens) = (0.0, 0);
        for (mine, other) in self.entering.iter().zip(entering) {
            let length = mine.values().filter_map(|t| t.dim(1).ok()).max().unwrap_or(0);
            for from in (0..length).step_by(ROWS) {
                let count = ROWS.min(length - from);
                let wanted = logits(self.graph, &self.head, mine, [from, count])?;
                let found = logits(graph, head, other, [from, count])?;
                let (divergence, _) = attar_graph::kernel::kl_divergence(&wanted, &found).map_err(attar_graph::Error::from)?;
                sum += divergence * count as f64;
                tokens += count;
            }
        }
        match sum.is_finite() {
            true => Ok(sum / tokens.max(1) as f64),
            false => Err(Error::input("the model's logits are not finite on the calibration text")
                .hint("check the checkpoint, or calibrate on other text".to_owned())),
        }
    }
}

/// Logits of some positions `[from, count]`.
fn logits(graph: &Graph, weights: &dyn Weights, entering: &Values, [from, count]: [usize; 2]) -> Result<Tensor> {
    let narrow = |t: &Tensor| t.narrow(1, from, count)?.contiguous();
    let part = entering.iter().map(|(id, t)| Ok((*id, narrow(t).map_err(attar_graph::Error::from)?)));
    let part = part.collect::<Result<Values>>()?;
    let mut left = graph.evaluate_block(last(graph), weights, Mode::Inference, &part)?;
    Ok(left.remove(&graph.outputs()[0]).expect("the last block makes the output"))
}

/// The block that makes the output.
fn last(graph: &Graph) -> BlockId {
    graph.blocks().last().unwrap_or(BlockId::FIRST)
}

/// What enters the last block, window by window.
fn arrived(graph: &Graph, weights: &dyn Weights, windows: &[Vec<u32>], session: &Session<'_>) -> Result<Vec<Values>> {
    through(graph, weights, Stream::new(graph, lanes(windows, 1)?), session)
}

/// The same, from where `stream` is.
pub(crate) fn through(
    graph: &Graph,
    weights: &dyn Weights,
    mut stream: Stream<'_>,
    session: &Session<'_>,
) -> Result<Vec<Values>> {
    while stream.block() < last(graph) {
        session.check_interrupt()?;
        stream.leave(weights)?;
    }
    let by_id = |lane: std::collections::BTreeMap<String, Tensor>| {
        lane.into_iter().filter_map(|(name, t)| Some((graph.find(&name)?, t))).collect::<Values>()
    };
    let read = graph.live_into(last(graph));
    let mut all: Vec<Values> = stream.entering().into_iter().map(by_id).collect();
    all.iter_mut().for_each(|lane| lane.retain(|id, _| read.contains(id)));
    Ok(all)
}

/// A stream of `windows`, each a lane, in front of the first block.
pub(crate) fn stream<'g>(graph: &'g Graph, windows: &[Vec<u32>]) -> Result<Stream<'g>> {
    let lanes: Vec<Inputs> = lanes(windows, 1)?;
    Ok(Stream::new(graph, lanes))
}
