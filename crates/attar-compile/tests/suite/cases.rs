//! Random blocks in random room, scheduled and proven: what every seed stands for.

use attar_compile::{
    Error, Memory, Program,
    device::Can,
    plan::Space,
    schedule::{Freedom, Goal, Schedule, Target, schedule},
    simulate::{Rates, Simulation, prove},
};

use crate::support::{Block, Builder, Random, WEIGHTS};

/// A small device with an 8 x 8 array.
pub(crate) fn target(sram: u64, align: u64) -> Target {
    let mut rates = Rates::generic();
    rates.tile.array = [1, 8, 8];
    Target { name: "test".into(), sram, align, dram: 1 << 40, flash: 0, rates, can: Can::default() }
}

fn random_block(random: &mut Random) -> Block {
    let weight = random.pick(&WEIGHTS);
    let per = u64::from(weight.per);
    let head = random.pick(&[4u64, 8, 16]).next_multiple_of(per);
    let key_heads = random.within(1, 3) as u64;
    let group = random.within(1, 3) as u64;
    Block {
        rows: random.within(1, 48) as u64,
        past: random.pick(&[0, 0, 5, 40]),
        width: random.pick(&[16u64, 32, 48, 64, 80]).next_multiple_of(per),
        inner: random.pick(&[16u64, 48, 96, 128]).next_multiple_of(per),
        heads: key_heads * group,
        key_heads,
        head,
        window: random.pick(&[None, None, Some(7), Some(40)]),
        weight,
        normed_heads: Random(random.0 ^ 0x5eed).next().is_multiple_of(2),
    }
}

/// Blocks with their plan in some room.
pub(crate) struct Case {
    pub(crate) block: Block,
    pub(crate) program: Program,
    pub(crate) memory: Memory,
    pub(crate) target: Target,
    pub(crate) schedule: Schedule,
}

impl Case {
    /// Blocks, room, alignment, goal and freedom of a seed: none where not even the smallest tiles fit.
    ///
    /// # Errors
    /// No other failure is right.
    pub(crate) fn of(seed: u64) -> Result<Option<Case>, String> {
        let mut random = Random(seed);
        let mut builder = Builder::new(seed);
        let block = random_block(&mut random);
        // The first cases have int8 alone.
        builder.wide = if seed < 300 { 0 } else { Random(!seed).next() };
        builder.blocks(random.within(1, 2) as usize, &block);
        let (program, memory) = builder.memory();
        let target = target(random.within(2_000, 60_000) as u64, random.pick(&[1, 16, 64]));
        let [join, keep, recompute] = [0; 3].map(|_| random.next().is_multiple_of(2));
        let freedom = Freedom { join, keep, recompute };
        let goal = random.pick(&[Goal::Dram, Goal::Latency, Goal::Energy]);
        match schedule(&program, &target, goal, freedom, "test") {
            Ok(schedule) => Ok(Some(Case { block, program, memory, target, schedule })),
            Err(Error::DoesNotFit { .. }) => Ok(None),
            Err(other) => Err(format!("seed {seed}: {other}")),
        }
    }
}

/// The case of a seed, proven.
///
/// # Errors
/// Whatever is wrong: results and bytes are those foretold, and memory is not exceeded.
pub(crate) fn proven(seed: u64) -> Result<Option<(Schedule, Simulation)>, String> {
    let Some(Case { block, program, memory, target, schedule }) = Case::of(seed)? else { return Ok(None) };
    let simulation = checked(&program, &memory, &target, &schedule).map_err(|why| format!("seed {seed}, {block:?}: {why}"))?;
    Ok(Some((schedule, simulation)))
}

/// Runs the plan of a program.
///
/// # Errors
/// Whatever is wrong: results and bytes are those foretold, and memory is not exceeded.
pub(crate) fn checked(program: &Program, memory: &Memory, target: &Target, schedule: &Schedule) -> Result<Simulation, String> {
    let simulation = prove(program, &schedule.plan, &target.rates, memory)
        .map_err(|error| format!("{error}\n{target:?}\n{}", schedule.plan))?;
    let foretold: Vec<u64> = schedule.choices.iter().map(|choice| choice.dram).collect();
    let moved: Vec<u64> = simulation.calls.iter().map(|call| call.read[0] + call.read[1] + call.written).collect();
    if foretold != moved {
        return Err(format!("bytes {foretold:?} are {moved:?}\n{}", schedule.plan));
    }
    let kept = schedule.plan.tensors.iter().filter(|tensor| tensor.space == Space::Sram);
    let highest = kept.map(|tensor| tensor.address + tensor.bytes()).max().unwrap_or(0);
    if !(highest..=target.sram).contains(&simulation.sram_peak) {
        return Err(format!("{} bytes of {}, {highest} are kept", simulation.sram_peak, target.sram));
    }
    Ok(simulation)
}
