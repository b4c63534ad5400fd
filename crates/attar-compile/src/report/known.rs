//! How well the numbers of a device are known that predictions rest on, and how much each of them counts: what a run would take
//! if the number were twice as bad.

use serde::Serialize;

use super::{Report, words};
use crate::{
    device::{Confidence, Device},
    plan::Plan,
    schedule::Target,
    simulate::{Rates, Simulation, time},
};

/// Behind every figure that rests on an assumed number of the device.
pub const MARK: &str = "*";

/// A change smaller than this is none.
const NOTHING: f64 = 1e-6;

/// A number of the device that predictions of a run rest on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestsOn {
    /// Its key in the device's file: `dram.read`.
    pub key: String,
    /// As the file writes it: `12 GB/s`.
    pub value: String,
    /// `measured`, `read`, `derived` or `assumed`.
    pub confidence: &'static str,
    /// Where it is from.
    pub source: String,
    /// What the run's cycles would grow by if it were twice as bad (a rate half as high, a delay or an energy twice as high): 0.5 is
    /// by half.
    pub cycles: f64,
    /// The same of its seconds.
    pub latency: f64,
    /// The same of its joules.
    pub energy: f64,
}

impl RestsOn {
    /// Whether nobody knows the number.
    pub fn is_assumed(&self) -> bool {
        self.confidence == Confidence::Assumed.name()
    }

    fn most(&self) -> f64 {
        [self.cycles, self.latency, self.energy].into_iter().fold(0.0, |most, change| most.max(change.abs()))
    }
}

/// What figures rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    /// The numbers that decide cycles.
    Cycles,
    /// Those that decide seconds.
    Seconds,
    /// Those that decide joules.
    Joules,
    /// Those that decide when a run begins.
    Dispatch,
}

/// Makes a number of a device twice as bad.
type Worsen = fn(&mut Device);

/// The numbers that predictions can rest on.
const NUMBERS: [(&str, Worsen); 30] = [
    ("dram.read", |device| device.dram.read /= 2.0),
    ("dram.write", |device| device.dram.write /= 2.0),
    ("dram.latency", |device| device.dram.latency *= 2.0),
    ("dram.burst", |device| device.dram.burst *= 2),
    ("dram.energy", |device| device.dram.energy *= 2.0),
    ("flash.read", |device| device.flash.iter_mut().for_each(|flash| flash.read /= 2.0)),
    ("sram.energy", |device| device.sram.energy *= 2.0),
    // The same multiply-accumulates in half as many columns, twice as deep.
    ("engine.cores", |device| device.engine.cores = (device.engine.cores / 2).max(1)),
    ("engine.array", |device| device.engine.array[2] = (device.engine.array[2] / 2).max(1)),
    ("engine.clock", |device| device.engine.clock /= 2.0),
    ("engine.lanes", |device| device.engine.lanes = (device.engine.lanes / 2).max(1)),
    ("engine.fill", |device| device.engine.fill *= 2.0),
    ("engine.energy", |device| device.engine.energy *= 2.0),
    ("engine.w8a8", |device| slower(device, 8, 8)),
    ("engine.w4a8", |device| slower(device, 4, 8)),
    ("engine.w8a16", |device| slower(device, 8, 16)),
    ("engine.w4a16", |device| slower(device, 4, 16)),
    ("engine.w16a16", |device| slower(device, 16, 16)),
    ("dma.setup", |device| device.dma.setup *= 2.0),
    ("dma.outstanding", |device| device.dma.outstanding = (device.dma.outstanding / 2).max(1)),
    ("can.weights", |device| device.can.weights *= 2.0),
    ("elementwise.product", |device| twice(&mut device.elementwise.product)),
    ("elementwise.score", |device| twice(&mut device.elementwise.score)),
    ("elementwise.norm", |device| twice(&mut device.elementwise.norm)),
    ("elementwise.rescale", |device| twice(&mut device.elementwise.rescale)),
    ("elementwise.add", |device| twice(&mut device.elementwise.add)),
    ("elementwise.rotary", |device| twice(&mut device.elementwise.rotary)),
    ("elementwise.gate", |device| twice(&mut device.elementwise.gate)),
    ("overhead.dispatch", |device| device.dispatch *= 2.0),
    ("overhead.power", |device| device.power *= 2.0),
];

fn twice(cycles: &mut Option<f64>) {
    cycles.iter_mut().for_each(|cycles| *cycles *= 2.0);
}

/// Half as many multiply-accumulates of a pair of widths.
fn slower(device: &mut Device, weights: u32, activations: u32) {
    let pairs = device.engine.pairs.iter_mut();
    pairs.filter(|pair| (pair.weights, pair.activations) == (weights, activations)).for_each(|pair| pair.macs /= 2.0);
}

/// A number, and the run if it were twice as bad.
pub(super) struct Influence {
    pub(super) rests_on: RestsOn,
    pub(super) worse: Simulation,
}

/// What the predictions of a plan rest on, those that count most first. `None` if the plan has other rates than the device.
pub(super) fn influences(device: &Device, plan: &Plan) -> Option<Vec<Influence>> {
    let rates = |bits: u32| Target::new(device, bits).is_ok_and(|target| target.rates == plan.rates);
    let bits = [4, 8, 16].into_iter().find(|bits| rates(*bits))?;
    let base = time(plan, &plan.rates).ok()?;
    let given = |key: &str| device.numbers().any(|(known, ..)| known == key);
    let influence = |(key, value, origin): (&str, &str, &crate::device::Origin)| {
        let (_, worsen) = NUMBERS.iter().find(|(name, _)| *name == key)?;
        let mut worse = device.clone();
        worsen(&mut worse);
        // Without a bandwidth of its own, writing is as fast as reading.
        if key == "dram.read" && !given("dram.write") {
            worse.dram.write /= 2.0;
        }
        let rates = Target::new(&worse, bits).ok()?.rates;
        let worse = time(plan, &rates).ok()?;
        let growth = |of: &dyn Fn(&Simulation, &Rates) -> f64| match of(&base, &plan.rates) {
            0.0 => 0.0,
            before => of(&worse, &rates) / before - 1.0,
        };
        let rests_on = RestsOn {
            key: key.into(),
            value: value.into(),
            confidence: origin.confidence.name(),
            source: origin.text.clone(),
            cycles: growth(&|simulation, _| simulation.cycles as f64),
            latency: growth(&Simulation::latency),
            energy: growth(&Simulation::energy),
        };
        (rests_on.most() > NOTHING).then_some(Influence { rests_on, worse })
    };
    let mut found: Vec<Influence> = device.numbers().filter_map(influence).collect();
    found.sort_by(|a, b| b.rests_on.most().total_cmp(&a.rests_on.most()));
    Some(found)
}

/// The same of a plan for a device that comes with attar.
pub(super) fn influences_of(plan: &Plan) -> Option<Vec<Influence>> {
    influences(&Device::named(&plan.device).ok()?, plan)
}

/// What the predictions of a plan rest on, those that count most first. `None` if the plan was not made for a device that comes with
/// attar, or with other rates than that has.
pub fn rests_on(plan: &Plan) -> Option<Vec<RestsOn>> {
    Some(influences_of(plan)?.into_iter().map(|influence| influence.rests_on).collect())
}

impl Report {
    /// Says how well the numbers are known that its predictions rest on: those of `device`, for `plan`.
    pub fn resting_on(self, device: &Device, plan: &Plan) -> Report {
        let found = influences(device, plan).unwrap_or_default();
        Report { predicted_from: found.into_iter().map(|influence| influence.rests_on).collect(), ..self }
    }

    /// A figure, marked if it rests on an assumed number.
    pub(super) fn marked(&self, text: String, on: On) -> String {
        let change = |rests: &RestsOn| match on {
            On::Cycles => rests.cycles,
            On::Seconds => rests.latency,
            On::Joules => rests.energy,
            On::Dispatch if rests.key == "overhead.dispatch" || rests.key == "engine.clock" => rests.cycles,
            On::Dispatch => 0.0,
        };
        let assumed = |rests: &RestsOn| rests.is_assumed() && change(rests).abs() > NOTHING;
        if self.predicted_from.iter().any(assumed) { text + MARK } else { text }
    }

    /// A figure that is one of the device's own, marked if one of these keys is assumed.
    pub(super) fn marked_by(&self, text: String, keys: &[&str]) -> String {
        let assumed = |rests: &RestsOn| rests.is_assumed() && keys.contains(&rests.key.as_str());
        if self.predicted_from.iter().any(assumed) { text + MARK } else { text }
    }
}

/// Whether seconds and joules rest on an assumed number.
pub fn assumed(rests: &[RestsOn]) -> [bool; 2] {
    let any = |change: &dyn Fn(&RestsOn) -> f64| rests.iter().any(|rests| rests.is_assumed() && change(rests).abs() > NOTHING);
    [any(&|rests| rests.latency), any(&|rests| rests.energy)]
}

/// Which assumed numbers count most, in a sentence; none if nothing is assumed, or nothing known.
pub fn most_assumed(rests: &[RestsOn]) -> Option<String> {
    const SHOWN: usize = 3;
    let assumed: Vec<&RestsOn> = rests.iter().filter(|rests| rests.is_assumed()).collect();
    if assumed.is_empty() {
        return None;
    }
    let said = |rests: &&RestsOn| {
        let changes = [("latency", rests.latency), ("energy", rests.energy)];
        let changes = changes.into_iter().filter(|(_, change)| change.abs() > 5e-4);
        let changes: Vec<String> = changes.map(|(what, change)| format!("{what} {}", signed(change))).collect();
        let changes = if changes.is_empty() { "hardly anything".into() } else { changes.join(", ") };
        format!("{} = {} ({changes})", rests.key, rests.value)
    };
    let most: Vec<String> = assumed.iter().take(SHOWN).map(said).collect();
    Some(format!(
        "{} of {} numbers of the device that these predictions rest on are assumed. Those that count most, with what changes if \
         they are twice as bad: {}.",
        assumed.len(),
        rests.len(),
        most.join("; ")
    ))
}

/// `+12.3%`.
pub(super) fn signed(change: f64) -> String {
    format!("{}{}", if change >= 0.0 { "+" } else { "" }, words::percent(change))
}
