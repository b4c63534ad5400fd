//! From a program to a plan: which kernels are joined, how each is tiled, which tensors stay on the chip between kernels,
//! and where everything lies.
//!
//! Kernels are taken in an order in which the least lives at once (`order`). A dynamic program walks over them (`path`); its state
//! is the set of tensors that are kept on the chip, its cost what the goal counts, and each step is the exact search of one
//! kernel's tiles in the room that is left (as in LoopTree, Gilbert et al. 2024, with whole kernels as segments). What a norm
//! makes is kept, stored, or computed again within the kernel that reads it, as often as that reads it: whichever costs least.
//! Equal kernels in equal room are searched once, so that a model of equal blocks costs as much to plan as one block. Then
//! everything gets its place (`place`).

mod choose;
pub mod chunk;
mod image;
mod order;
mod path;
mod place;

pub use choose::choose;
pub use image::Image;
use path::Search;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    device::Device,
    lower::Tiles,
    plan::Plan,
    program::{Kernel, Program},
    simulate::Rates,
    tile::{Buffering, Limits, Objective},
};

/// A device as a schedule sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Bytes of on-chip memory.
    pub sram: u64,
    /// Of every buffer.
    pub align: u64,
    /// Bytes of DRAM.
    pub dram: u64,
    /// Bytes of flash that weights may be read from.
    pub flash: u64,
    /// Its speeds.
    pub rates: Rates,
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
        };
        Ok(Target {
            name: device.name.clone(),
            sram: device.sram.usable,
            align: device.align,
            dram: device.dram.usable,
            flash: flash.map_or(0, |flash| flash.usable),
            rates,
        })
    }

    /// What a kernel may use in so many bytes of on-chip memory: its rule of buffering.
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
    /// What it means for one product.
    pub fn objective(self, rates: crate::tile::Rates) -> Objective {
        match self {
            Goal::Dram => Objective::Dram { overhead: Objective::TRANSFER },
            Goal::Latency => Objective::Latency(rates),
            Goal::Energy => Objective::Energy(rates),
        }
    }
}

/// What a plan may do.
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
    /// All of it.
    pub const ALL: Freedom = Freedom { join: true, keep: true, recompute: true };
    /// Every kernel for itself.
    pub const NONE: Freedom = Freedom { join: false, keep: false, recompute: false };
}

/// A plan with what was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// To be run.
    pub plan: Plan,
    /// One for each call.
    pub choices: Vec<Choice>,
}

/// What was chosen for a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The kernel's name; of joined kernels, both.
    pub name: String,
    /// The kernel, as it was run.
    pub kernel: Kernel,
    /// Its tiles.
    pub tiles: Tiles,
    /// Names of the tensors that lie on the chip during it.
    pub kept: Vec<String>,
    /// DRAM bytes that are foretold.
    pub dram: u64,
    /// How many times each row is normed in it: 0 where nothing is.
    pub norms: u64,
}

/// The best plan for a goal.
///
/// # Errors
/// A program that means nothing, a kernel of which not even the smallest tile fits, tensors that do not fit in memory.
pub fn schedule(program: &Program, target: &Target, goal: Goal, freedom: Freedom, title: &str) -> Result<Schedule> {
    schedule_on(program, target, goal, freedom, title, &Image::default())
}

/// The best plan for a goal that finds weights, constants and states where `image` has them, as far as it has them.
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
    let program = &*order::least_live(program)?;
    let all = target.sram / target.align * target.align;
    let mut room = vec![all; program.kernels.len()];
    loop {
        let mut search = Search::new(program, target, goal, freedom, image, &room);
        let steps = match search.run() {
            // Where nothing stays, the pieces of a call are all there is, and fit.
            Err(Error::DoesNotFit { .. }) if freedom.keep && room.iter().any(|room| *room < all) => {
                return schedule_on(program, target, goal, Freedom { keep: false, ..freedom }, title, image);
            }
            steps => steps?,
        };
        match search.plan(&steps, title)? {
            Ok(schedule) => return Ok(schedule),
            // The pieces of these fit, but not side by side: less room for each.
            Err(crowded) => {
                for kernel in crowded.into_iter().flat_map(|calls| steps[calls.start].kernels[0]..steps[calls.end - 1].kernels[1])
                {
                    room[kernel] = room[kernel] / 16 * 15 / target.align * target.align;
                }
            }
        }
    }
}
