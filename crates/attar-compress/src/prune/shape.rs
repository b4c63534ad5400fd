//! Uniform shapes: every block has as many channels and heads as the others.

use attar_graph::Graph;
use serde::{Deserialize, Serialize};

use super::{Cut, Quota, UnitSite, reshaped, site::Unit};
use crate::Result;

/// What stays of every block, and how many blocks stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// MLP channels.
    pub mlp: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Blocks.
    pub blocks: usize,
}

impl Shape {
    /// That of `graph`, if all its blocks are alike.
    pub fn of(graph: &Graph) -> Result<Option<Shape>> {
        let sites = UnitSite::of(graph)?;
        let mut blocks: Vec<_> = sites.iter().map(|site| site.block).collect();
        blocks.sort();
        blocks.dedup();
        let mut mlps = sites.iter().filter_map(|site| match site.unit {
            Unit::Channel { channels } => Some(channels),
            Unit::Head { .. } => None,
        });
        let mut attentions = sites.iter().filter_map(|site| match site.unit {
            Unit::Head { heads, key_heads, width } => Some((heads, key_heads, width)),
            Unit::Channel { .. } => None,
        });
        let (Some(mlp), Some(attention)) = (mlps.next(), attentions.next()) else { return Ok(None) };
        let alike = mlps.all(|other| other == mlp) && attentions.all(|other| other == attention);
        let (heads, kv_heads, _) = attention;
        Ok((alike && sites.len() == 2 * blocks.len()).then_some(Shape { mlp, heads, kv_heads, blocks: blocks.len() }))
    }

    /// How much of a site stays.
    pub fn quota(&self, site: &UnitSite) -> Quota {
        match site.unit {
            Unit::Channel { .. } => Quota::Channels(self.mlp),
            Unit::Head { .. } => Quota::Heads { groups: self.kv_heads, each: self.heads / self.kv_heads.max(1) },
        }
    }
}

/// `graph` with so much of every site, the first units of each, and all its blocks: to see what it would cost.
pub fn narrowed(graph: &Graph, quota: &dyn Fn(&UnitSite) -> Quota) -> Result<Graph> {
    let sites = UnitSite::of(graph)?;
    let kept: Vec<Vec<usize>> = sites.iter().map(|site| quota(site).first(site)).collect();
    let cuts = sites.iter().zip(&kept).filter(|(site, _)| !quota(site).is_whole(site));
    let cuts = cuts.map(|(site, units)| Cut { site, units, weight: site.reader.expr(graph).clone() });
    reshaped(graph, &cuts.collect::<Vec<_>>())
}

/// The shapes of at most `most` candidates within a budget, none of which could have more channels; those first that should lose least.
///
/// `cost` is what the model costs in a shape. Costs are taken to be affine in channels and in blocks, and looked up again for every
/// candidate: where they are not, it gets narrower until it is within the budget. `multiple` divides the channels. What `fixed` names stays
/// as it says.
pub fn candidates<E>(
    full: Shape,
    fixed: [Option<usize>; 4],
    fewest_blocks: usize,
    multiple: usize,
    budget: u64,
    most: usize,
    cost: &mut dyn FnMut(Shape) -> Result<u64, E>,
) -> Result<Found, E> {
    let [mlp, heads, kv_heads, blocks] = fixed;
    let group = full.heads / full.kv_heads.max(1);
    let range = |fixed: Option<usize>, from: usize, to: usize| fixed.map_or(from..=to, |n| n..=n);
    let (mut found, mut least) = (Vec::new(), u64::MAX);
    // No fewer than a third of the channels.
    let narrow = mlp.unwrap_or(full.mlp.div_ceil(3).next_multiple_of(multiple).min(full.mlp));
    for kv in range(kv_heads, full.kv_heads.div_ceil(2), full.kv_heads) {
        for each in range(heads.map(|heads| heads / kv.max(1)), group.div_ceil(2), group) {
            if each > group || heads.is_some_and(|heads| heads != kv * each) {
                continue;
            }
            let at = |mlp, blocks| Shape { mlp, heads: kv * each, kv_heads: kv, blocks };
            // What a model costs, and what a block less saves.
            let mut affine = |mlp| -> Result<[u64; 2], E> {
                let all = cost(at(mlp, full.blocks))?;
                let shorter = if fewest_blocks < full.blocks { cost(at(mlp, full.blocks - 1))? } else { all };
                Ok([all, all.saturating_sub(shorter)])
            };
            let [low, high] = [affine(narrow)?, affine(full.mlp)?];
            for stay in range(blocks, fewest_blocks, full.blocks) {
                let of = |[all, one]: [u64; 2]| all.saturating_sub(one * (full.blocks - stay) as u64);
                let (low, high) = (of(low), of(high));
                least = least.min(low);
                let widest = if low > budget {
                    None
                } else if high <= budget {
                    Some(full.mlp)
                } else {
                    let share = (budget - low) as f64 / (high - low) as f64;
                    let widest = narrow + ((full.mlp - narrow) as f64 * share) as usize;
                    Some((widest / multiple * multiple).max(narrow))
                };
                let Some(widest) = mlp.map_or(widest, |mlp| widest.map(|w| w.min(mlp))) else { continue };
                if mlp.is_none_or(|mlp| widest == mlp) {
                    found.push(at(widest, stay));
                }
            }
        }
    }
    found.sort_by(|a, b| predicted(&full, a).total_cmp(&predicted(&full, b)));
    let mut within = Vec::new();
    for mut shape in found {
        let mut costs = cost(shape)?;
        while costs > budget && shape.mlp >= narrow + multiple {
            shape.mlp -= multiple;
            costs = cost(shape)?;
        }
        least = least.min(costs);
        within.extend((costs <= budget).then_some(shape));
        if within.len() == most {
            break;
        }
    }
    Ok(Found { shapes: within, least })
}

/// Shapes within a budget.
pub struct Found {
    /// The candidates, those first that should lose least.
    pub shapes: Vec<Shape>,
    /// The least that any shape costs.
    pub least: u64,
}

/// What a shape should lose, to order candidates by: rates per share removed, as measured on SmolLM2-135M, and more than in proportion.
fn predicted(full: &Shape, shape: &Shape) -> f64 {
    let gone = |from: usize, to: usize| 1.0 - to as f64 / from.max(1) as f64;
    let groups = gone(full.kv_heads, shape.kv_heads);
    let queries = gone(full.heads / full.kv_heads.max(1), shape.heads / shape.kv_heads.max(1));
    let loss = |rate: f64, gone: f64| rate * gone * (1.0 + gone);
    loss(1.2, gone(full.mlp, shape.mlp)) + loss(0.6, queries) + loss(0.8, groups) + loss(3.5, gone(full.blocks, shape.blocks))
}
