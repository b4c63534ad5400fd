//! Tiling of every distinct product of a model for a device, each on its own. Only shapes are needed, no numbers.
//!
//! Products are those of the kernels that [`crate::Compile`] makes of the model, and what a kernel holds in SRAM in addition to
//! its product (rescalings, a residual, rotary tables) is accounted for. Tensors kept on the chip between kernels, norms within
//! kernels, and the single weight image of all plans are not considered here: see [`crate::schedule`].

use std::{collections::HashMap, mem::discriminant, num::NonZeroU64};

use attar_graph::Graph;
use attar_tensor::Source;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Compile, Element, Error, Program, Result,
    compile::{fused, target},
    convert::{ALL_BLOCKS, Bind, Ranges, convert, is_encoder},
    lower::LinearTiles,
    lower_bound,
    program::{Epilogue, Kernel, Linear},
    report::{ProductReport, TilingReport, pattern},
    schedule::{Goal, Target},
    tile::{Limits, Objective, pareto_by},
};

/// Tile every distinct matrix product of the model for a device's SRAM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tile {
    /// Name of a bundled device, or path of a device file.
    pub device: String,
    /// Device parameters to override: `sram=256KiB`, `dram.bandwidth=12GB/s`.
    pub set: Vec<String>,
    /// What to minimize.
    pub goal: Goal,
    /// Tokens per run: a whole prompt, or a chunk of one.
    pub seq: NonZeroU64,
    /// Also tile the products of a single token (decode).
    pub decode: bool,
    /// List the Pareto front over DRAM bytes, SRAM and cycles.
    pub pareto: bool,
}

impl Default for Tile {
    fn default() -> Tile {
        let Compile { device, set, goal, decode, .. } = Compile::default();
        Tile { device, set, goal, seq: const { NonZeroU64::new(128).expect("128 is not 0") }, decode, pareto: false }
    }
}

/// The products of a model for a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tiled {
    /// Its name.
    pub device: String,
    /// Bytes of its SRAM.
    pub sram: u64,
    /// In running order, those of many tokens first.
    pub products: Vec<ProductReport>,
}

/// Everything about a kernel that decides its tiling.
#[derive(PartialEq, Eq, Hash)]
struct Shape {
    product: [u64; 3],
    elements: [Element; 3],
    epilogue: std::mem::Discriminant<Epilogue>,
    /// Columns of a head, and numbers of a row of the table.
    rotary: Option<[u64; 2]>,
}

impl Tile {
    /// Tiles the products of a model.
    ///
    /// # Errors
    /// A node that no kernel computes, or a product that does not fit.
    pub fn run(&self, graph: &Graph, source: &dyn Source) -> Result<Tiled> {
        let device = Compile { device: self.device.clone(), set: self.set.clone(), ..Compile::default() }.device()?;
        let (fused, mut products) = (fused(graph)?, Vec::new());
        for (rows, past) in self.runs(is_encoder(&fused)) {
            let capacity = self.seq.get() + u64::from(self.decode);
            let bind = Bind { batch: 1, rows, past, capacity, blocks: ALL_BLOCKS, head: true, every_row: false, numbers: false };
            let program = convert(&fused, source, &Ranges::default(), bind, &device.numerics.weights)?.program;
            products.extend(self.products(&program, &target(&device, &program)?)?);
        }
        Ok(Tiled { device: device.name, sram: device.sram.usable, products })
    }

    /// Tokens per run, and tokens in the cache before it.
    fn runs(&self, encoder: bool) -> Vec<(u64, u64)> {
        let seq = self.seq.get();
        let decode = (self.decode && seq > 1 && !encoder).then_some((1, seq));
        std::iter::once((seq, 0)).chain(decode).collect()
    }

    fn products(&self, program: &Program, target: &Target) -> Result<Vec<ProductReport>> {
        let mut found: Vec<ProductReport> = Vec::new();
        let mut known: HashMap<Shape, usize> = HashMap::new();
        for (name, kernel) in &program.kernels {
            let Kernel::Linear(linear) = kernel else { continue };
            match known.get(&shape(program, linear)) {
                Some(at) => found[*at].kernels += 1,
                None => {
                    known.insert(shape(program, linear), found.len());
                    let wrong = |source| Error::DoesNotFit { kernel: name.clone(), source: Box::new(source) };
                    found.push(self.product(program, target, name, linear).map_err(wrong)?);
                }
            }
        }
        Ok(found)
    }

    fn product(&self, program: &Program, target: &Target, name: &str, linear: &Linear) -> Result<ProductReport> {
        let rates = &target.rates.tile;
        let limits = target.limits(target.sram / target.align * target.align);
        let find = |limits: &Limits, objective: &Objective| {
            let block = target.block(8, program.product(linear)[1]);
            LinearTiles::search(program, linear, None, [false; 3], limits, block, objective)
        };
        let LinearTiles { tiling, product, .. } = find(&limits, &self.goal.objective(*rates))?;
        let bound = lower_bound(&product, limits.sram);
        let front = match self.pareto {
            true => pareto_by(&product, &limits, rates, &|limits, objective| Ok(find(limits, objective)?.tiling))?,
            false => Vec::new(),
        };
        Ok(ProductReport {
            name: pattern(name),
            kernels: 1,
            product: [product.m, product.k, product.n],
            weight_bits: crate::data::code_bits(product.w),
            lower_bound: bound,
            best: TilingReport::new(&tiling, &product, &limits, rates, bound),
            front: front.iter().map(|(tiling, _)| TilingReport::new(tiling, &product, &limits, rates, bound)).collect(),
        })
    }
}

fn shape(program: &Program, linear: &Linear) -> Shape {
    let rotary = match &linear.epilogue {
        Epilogue::Rotary { head, table, .. } => Some([*head, table.map_or(0, |table| program.get(table).columns)]),
        _ => None,
    };
    let tensors = [linear.x, linear.weight, linear.out[0].tensor];
    Shape {
        product: program.product(linear),
        elements: tensors.map(|id| program.get(id).element),
        epilogue: discriminant(&linear.epilogue),
        rotary,
    }
}
