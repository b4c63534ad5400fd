//! Several schedules, timed. The shortest path adds up the costs of single kernels; how the loads of one overlap with the work of
//! another shows only on the timeline. So schedules for other goals, and without joined kernels, are made as well and timed by the
//! simulator, and the best by its clock is chosen.

use super::{Freedom, Goal, Image, Schedule, Target, schedule_on};
use crate::{
    Error, Program, Result,
    simulate::{Simulation, time},
    tile::EQUAL,
};

/// The best schedule by the simulated timeline: what the goal counts first, to 1/128, then the next.
///
/// # Errors
/// As [`schedule_on`].
pub fn choose(
    program: &Program,
    target: &Target,
    goal: Goal,
    freedom: Freedom,
    title: &str,
    image: &Image,
) -> Result<(Schedule, Simulation)> {
    let goals = match goal {
        Goal::Dram => vec![Goal::Dram],
        Goal::Latency => vec![Goal::Latency, Goal::Energy, Goal::Dram],
        Goal::Energy => vec![Goal::Energy, Goal::Latency, Goal::Dram],
    };
    let freedoms = [freedom, Freedom { join: false, ..freedom }];
    let mut found: Vec<(Schedule, Simulation)> = Vec::new();
    let mut failed: Option<Error> = None;
    for (goal, freedom) in goals.iter().flat_map(|goal| freedoms.map(|freedom| (*goal, freedom))) {
        match schedule_on(program, target, goal, freedom, title, image) {
            Ok(schedule) if found.iter().all(|(other, _)| other.plan != schedule.plan) => {
                let simulation = time(&schedule.plan, &target.rates)?;
                found.push((schedule, simulation));
            }
            Ok(_) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    nearest_best(found, goal, target).ok_or_else(|| failed.expect("a schedule that was not made has failed"))
}

/// Of the schedules within 1/128 of the best by what the goal counts first, the best by what it counts next.
fn nearest_best(found: Vec<(Schedule, Simulation)>, goal: Goal, target: &Target) -> Option<(Schedule, Simulation)> {
    let value = |simulation: &Simulation| {
        let (bytes, cycles, joules) = (simulation.dram() as f64, simulation.cycles as f64, simulation.energy(&target.rates));
        match goal {
            Goal::Dram => [bytes, cycles],
            Goal::Latency => [cycles, bytes],
            Goal::Energy => [joules, bytes],
        }
    };
    let least = found.iter().map(|(_, simulation)| value(simulation)[0]).fold(f64::INFINITY, f64::min);
    let near = found.into_iter().filter(|(_, simulation)| value(simulation)[0] <= least * (1.0 + EQUAL));
    near.min_by(|(_, a), (_, b)| {
        let [a, b] = [value(a), value(b)];
        a[1].total_cmp(&b[1]).then(a[0].total_cmp(&b[0]))
    })
}
