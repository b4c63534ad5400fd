//! From a program to a plan: which kernels are joined, how each is tiled, which tensors stay on the chip between kernels,
//! and at which address everything is.
//!
//! Kernels run in the order with the least peak of live bytes (`order`). A dynamic program walks over them (`path`); its state
//! is the set of tensors that are kept on the chip, its cost what the goal counts, and each step is the exact search of one
//! kernel's tiles in the room that is left (as in LoopTree, Gilbert et al. 2024, with whole kernels as segments). The result of
//! a norm is kept, stored, or recomputed within the kernel that reads it: whichever costs least. Equal kernels in equal room are
//! searched once, so that a model of equal blocks costs as much to plan as one block. Then everything is placed (`place`).

mod choose;
pub mod chunk;
mod image;
mod order;
mod path;
mod place;
mod rebind;

pub use choose::choose;
pub use image::Image;
use path::Search;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    device::{Can, Device, Products},
    lower::Tiles,
    plan::Plan,
    program::{Kernel, Program},
    rates::Elementwise,
    simulate::Rates,
    tile::{Buffering, Limits, Objective},
};

/// What a schedule needs to know of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Bytes of on-chip memory.
    pub sram: u64,
    /// Alignment of every buffer.
    pub align: u64,
    /// Bytes of DRAM.
    pub dram: u64,
    /// Bytes of flash that weights may be read from.
    pub flash: u64,
    /// Its speeds.
    pub rates: Rates,
    /// What it can do besides multiplying weights.
    pub can: Can,
}

impl Target {
    /// A device, for products of int8 with weights of `weights` bits.
    ///
    /// # Errors
    /// If the device does not multiply them.
    pub fn new(device: &Device, weights: u32) -> Result<Target> {
        let flash = device.flash.as_ref();
        let cycle = 1.0 / device.engine.clock;
        let rates = Rates {
            clock: device.engine.clock,
            lanes: device.engine.lanes,
            flash: flash.map_or(0.0, |flash| flash.read * cycle),
            dispatch: (device.dispatch * device.engine.clock) as u64,
            tile: device.rates(weights, 8)?,
            wide: device.rates(weights, 16).ok().map(|rates| rates.array),
            elementwise: device.elementwise,
        };
        // What the elementwise unit multiplies is of no concern where the array does.
        let product = rates.elementwise.product.filter(|_| device.can.products == Products::Elementwise);
        let rates = Rates { elementwise: Elementwise { product, ..rates.elementwise }, ..rates };
        Ok(Target {
            name: device.name.clone(),
            sram: device.sram.usable,
            align: device.align,
            dram: device.dram.usable,
            flash: flash.map_or(0, |flash| flash.usable),
            rates,
            can: device.can,
        })
    }

    /// What tiles of a product with `k` inputs are multiples of in k and n, for activations of so many bits.
    pub(crate) fn block(&self, bits: u32, k: u64) -> [u64; 2] {
        let [_, depth, columns] = self.rates.of(bits).array;
        [self.can.depth(depth, k), columns]
    }

    /// The limits of a kernel in `sram` bytes of on-chip memory, with this device's buffering.
    pub fn limits(&self, sram: u64) -> Limits {
        Limits { sram, align: self.align, buffering: Buffering::DoubleStreamed, staged: true, stored: None }
    }
}

/// What to minimize.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// DRAM bytes, then cycles.
    #[default]
    Dram,
    /// Cycles, then DRAM bytes.
    Latency,
    /// Energy, then DRAM bytes.
    Energy,
}

impl Goal {
    /// The same goal for a single product.
    pub fn objective(self, rates: crate::tile::Rates) -> Objective {
        match self {
            Goal::Dram => Objective::Dram { overhead: Objective::TRANSFER },
            Goal::Latency => Objective::Latency(rates),
            Goal::Energy => Objective::Energy(rates),
        }
    }
}

/// What a schedule may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freedom {
    /// Kernels may be joined.
    pub join: bool,
    /// Tensors may stay on the chip between kernels.
    pub keep: bool,
    /// A norm may be computed within the kernel that reads it, as often as that reads it.
    pub recompute: bool,
}

impl Freedom {
    /// Everything.
    pub const ALL: Freedom = Freedom { join: true, keep: true, recompute: true };
    /// Every kernel alone, nothing kept on the chip.
    pub const NONE: Freedom = Freedom { join: false, keep: false, recompute: false };

    /// What a device leaves of it: a gated MLP as one kernel sums up over tiles of its inner columns.
    fn on(self, can: &Can) -> Freedom {
        Freedom { join: self.join && can.splits, recompute: self.recompute && can.norm_inside, ..self }
    }
}

/// A plan with the choices that led to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The plan.
    pub plan: Plan,
    /// One per call.
    pub choices: Vec<Choice>,
}

/// The choices for a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The kernel's name; of joined kernels, both.
    pub name: String,
    /// The kernel, as it was run.
    pub kernel: Kernel,
    /// Its tiles.
    pub tiles: Tiles,
    /// Names of the tensors that are on the chip during it.
    pub kept: Vec<String>,
    /// Predicted DRAM bytes.
    pub dram: u64,
    /// How many times each row is normed; 0 if it has no norm.
    pub norms: u64,
}

/// The best plan for a goal.
///
/// # Errors
/// An invalid program, a kernel of which not even the smallest tile fits, or tensors that do not fit in memory.
pub fn schedule(program: &Program, target: &Target, goal: Goal, freedom: Freedom, title: &str) -> Result<Schedule> {
    schedule_on(program, target, goal, freedom, title, &Image::default())
}

/// The best plan for a goal in which weights, constants and states are at the addresses of `image`, as far as it has them.
///
/// # Errors
/// As [`schedule`].
pub fn schedule_on(
    program: &Program,
    target: &Target,
    goal: Goal,
    freedom: Freedom,
    title: &str,
    image: &Image,
) -> Result<Schedule> {
    program.check()?;
    target.can.check(program, &target.name)?;
    let freedom = freedom.on(&target.can);
    let program = &*order::least_live(program)?;
    let all = target.sram / target.align * target.align;
    let mut room = vec![all; program.kernels.len()];
    loop {
        let mut search = Search::new(program, target, goal, freedom, image, &room);
        let steps = match search.run() {
            // Without kept tensors, the buffers of a single call always fit.
            Err(Error::DoesNotFit { .. }) if freedom.keep && room.iter().any(|room| *room < all) => {
                return schedule_on(program, target, goal, Freedom { keep: false, ..freedom }, title, image);
            }
            steps => steps?,
        };
        match search.plan(&steps, title)? {
            Ok(schedule) => return Ok(schedule),
            // The buffers of these calls fit, but cannot be placed together: less room for each.
            Err(crowded) => {
                for kernel in crowded.into_iter().flat_map(|calls| steps[calls.start].kernels[0]..steps[calls.end - 1].kernels[1])
                {
                    room[kernel] = room[kernel] / 16 * 15 / target.align * target.align;
                }
            }
        }
    }
}
