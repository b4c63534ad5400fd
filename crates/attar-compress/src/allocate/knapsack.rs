//! The multiple-choice knapsack problem, exactly: one option for each item, so that the sum of losses is least among all
//! sums of sizes that stay within a capacity.
//!
//! First the Lagrangian (Sinha & Zoltners 1979): sorted by loss saved a bit, the edges of the items' lower convex hulls
//! give a bound and a good start. What an option loses beyond the bound's multiplier is its reduced cost; a choice whose
//! reduced costs sum to more than the distance between the start and the bound cannot be part of anything better
//! (Dyer et al. 1995). What is left goes through a dynamic program over sums of sizes with dominance (Pisinger 1995).
//! Sizes are compared exactly; of equal choices the first found counts, so the result depends on nothing but the input.
//!
//! ```
//! use attar_compress::allocate::{Cost, solve};
//! let item = [Cost { bits: 3, loss: 9.0 }, Cost { bits: 4, loss: 2.0 }, Cost { bits: 6, loss: 1.0 }];
//! let solution = solve(&[item.to_vec(), item.to_vec()], 8).unwrap();
//! assert_eq!((solution.choices, solution.bits), (vec![1, 1], 8));
//! ```

/// What one option takes and costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Its size.
    pub bits: u64,
    /// What it loses; finite.
    pub loss: f64,
}

/// One option for every item.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// The option of each item.
    pub choices: Vec<usize>,
    /// The sum of their sizes.
    pub bits: u64,
    /// The sum of their losses.
    pub loss: f64,
    /// No choice within the capacity loses less than this.
    pub bound: f64,
    /// Whether no other choice loses less. Only where very many sums of sizes are near the bound it is not known.
    pub optimal: bool,
}

/// Sums of sizes that are followed at a time. The first search gives the second a start to prune by.
const FIRST: usize = 1 << 9;
const STATES: usize = 1 << 15;

/// How far sums of the same losses in another order may be apart, as a share of them.
const ROUNDING: f64 = 1e-12;

/// The smallest sum of sizes there is.
pub fn least_bits(items: &[Vec<Cost>]) -> u64 {
    items.iter().filter_map(|options| options.iter().map(|cost| cost.bits).min()).sum()
}

/// The largest sum of sizes that is of any use.
pub fn most_bits(items: &[Vec<Cost>]) -> u64 {
    items.iter().filter_map(|options| Some(useful(options).last()?.bits)).sum()
}

/// The choice of least loss within `capacity`; nothing if not even the smallest options fit.
///
/// # Panics
/// If an item has no options.
pub fn solve(items: &[Vec<Cost>], capacity: u64) -> Option<Solution> {
    if least_bits(items) > capacity {
        return None;
    }
    let classes: Vec<Vec<Entry>> = items.iter().map(|options| useful(options)).collect();
    let start = Greedy::of(&classes, capacity);
    let (first, _) = Search::new(&classes, capacity, &start, FIRST).run();
    let better = Greedy { choices: first, ..start };
    let (choices, optimal) = Search::new(&classes, capacity, &better, STATES).run();
    let (bits, loss) = totals(&classes, &choices);
    let choices = classes.iter().zip(choices).map(|(class, at)| class[at].option).collect();
    Some(Solution { choices, bits, loss, bound: better.bound.min(loss), optimal })
}

/// An option that no other is both smaller and better than.
#[derive(Clone, Copy)]
struct Entry {
    bits: u64,
    loss: f64,
    option: usize,
}

/// By rising size and falling loss.
fn useful(options: &[Cost]) -> Vec<Entry> {
    let mut entries: Vec<Entry> =
        options.iter().enumerate().map(|(option, cost)| Entry { bits: cost.bits, loss: cost.loss, option }).collect();
    entries.sort_by(|a, b| a.bits.cmp(&b.bits).then(a.loss.total_cmp(&b.loss)).then(a.option.cmp(&b.option)));
    let mut least = f64::INFINITY;
    entries.retain(|entry| {
        let better = entry.loss < least;
        least = least.min(entry.loss);
        better
    });
    entries
}

fn totals(classes: &[Vec<Entry>], choices: &[usize]) -> (u64, f64) {
    let chosen = classes.iter().zip(choices).map(|(class, at)| class[*at]);
    chosen.fold((0, 0.0), |(bits, loss), entry| (bits + entry.bits, loss + entry.loss))
}

/// An edge of the lower convex hull of a class.
struct Edge {
    class: usize,
    to: usize,
    bits: u64,
    /// Loss saved a bit.
    slope: f64,
}

fn edges(class: &[Entry], at: usize) -> Vec<Edge> {
    let slope = |a: &Entry, b: &Entry| (a.loss - b.loss) / (b.bits - a.bits) as f64;
    let mut hull: Vec<usize> = Vec::new();
    for next in 0..class.len() {
        while let [.., before, last] = hull[..] {
            if slope(&class[before], &class[last]) > slope(&class[last], &class[next]) {
                break;
            }
            hull.pop();
        }
        hull.push(next);
    }
    let edge = |pair: &[usize]| {
        let (a, b) = (&class[pair[0]], &class[pair[1]]);
        Edge { class: at, to: pair[1], bits: b.bits - a.bits, slope: slope(a, b) }
    };
    hull.windows(2).map(edge).collect()
}

/// What the continuous problem says.
struct Greedy {
    /// A choice that fits.
    choices: Vec<usize>,
    /// Loss a bit at the margin.
    multiplier: f64,
    /// Below every choice that fits.
    bound: f64,
}

impl Greedy {
    fn of(classes: &[Vec<Entry>], capacity: u64) -> Greedy {
        let mut all: Vec<Edge> = classes.iter().enumerate().flat_map(|(at, class)| edges(class, at)).collect();
        all.sort_by(|a, b| b.slope.total_cmp(&a.slope).then((a.class, a.to).cmp(&(b.class, b.to))));
        let mut choices = vec![0; classes.len()];
        let mut left = capacity - classes.iter().map(|class| class[0].bits).sum::<u64>();
        let (mut multiplier, mut stopped) = (0.0, vec![false; classes.len()]);
        for edge in all {
            if edge.bits > left {
                multiplier = f64::max(multiplier, edge.slope);
                stopped[edge.class] = true;
            } else if !stopped[edge.class] {
                left -= edge.bits;
                choices[edge.class] = edge.to;
            }
        }
        let floor: f64 = classes.iter().map(|class| least(class, multiplier)).sum();
        Greedy { choices, multiplier, bound: floor - multiplier * capacity as f64 }
    }
}

/// The least of loss and price together.
fn least(class: &[Entry], multiplier: f64) -> f64 {
    class.iter().map(|entry| price(entry, multiplier)).fold(f64::INFINITY, f64::min)
}

fn price(entry: &Entry, multiplier: f64) -> f64 {
    entry.loss + multiplier * entry.bits as f64
}

/// Choices for the first few classes.
#[derive(Clone, Copy)]
struct State {
    bits: u64,
    loss: f64,
    /// Index among the states of one class less.
    parent: u32,
    choice: u32,
}

struct Search<'a> {
    classes: &'a [Vec<Entry>],
    capacity: u64,
    start: &'a Greedy,
    /// Smallest sizes of all classes from one on.
    sizes: Vec<u64>,
    /// Least prices of all classes from one on.
    prices: Vec<f64>,
    states: usize,
}

impl<'a> Search<'a> {
    fn new(classes: &'a [Vec<Entry>], capacity: u64, start: &'a Greedy, states: usize) -> Search<'a> {
        let (mut sizes, mut prices) = (vec![0; classes.len() + 1], vec![0.0; classes.len() + 1]);
        for (at, class) in classes.iter().enumerate().rev() {
            sizes[at] = sizes[at + 1] + class[0].bits;
            prices[at] = prices[at + 1] + least(class, start.multiplier);
        }
        Search { classes, capacity, start, sizes, prices, states }
    }

    /// A choice no worse than the start, and whether there is no better one.
    fn run(&self) -> (Vec<usize>, bool) {
        let (_, incumbent) = totals(self.classes, &self.start.choices);
        let mut layers = vec![vec![State { bits: 0, loss: 0.0, parent: 0, choice: 0 }]];
        let mut optimal = true;
        for (at, class) in self.classes.iter().enumerate() {
            let before = layers.last().expect("it starts with one");
            let mut next: Vec<State> =
                before.iter().enumerate().flat_map(|(parent, state)| self.follow(at, class, parent, state, incumbent)).collect();
            undominated(&mut next);
            optimal &= next.len() <= self.states;
            thin(&mut next, self.states);
            layers.push(next);
        }
        let best = layers.last().and_then(|last| (0..last.len()).min_by(|a, b| last[*a].loss.total_cmp(&last[*b].loss)));
        match best {
            Some(at) if layers[self.classes.len()][at].loss < incumbent => (trace(&layers, at), optimal),
            _ => (self.start.choices.clone(), optimal),
        }
    }

    /// What can come of a state: what still fits, and could still be better than the incumbent.
    fn follow<'s>(
        &'s self,
        at: usize,
        class: &'s [Entry],
        parent: usize,
        state: &'s State,
        incumbent: f64,
    ) -> impl Iterator<Item = State> + 's {
        let within = self.capacity - self.sizes[at + 1];
        class.iter().enumerate().filter_map(move |(choice, entry)| {
            let next = State {
                bits: state.bits + entry.bits,
                loss: state.loss + entry.loss,
                parent: parent as u32,
                choice: choice as u32,
            };
            let left = self.capacity.checked_sub(next.bits).filter(|_| next.bits <= within)?;
            let bound = next.loss + self.prices[at + 1] - self.start.multiplier * left as f64;
            (bound <= incumbent + ROUNDING * (incumbent.abs() + self.prices[0].abs())).then_some(next)
        })
    }
}

/// Leaves, by rising size, the states that no other is both no larger and no worse than.
fn undominated(states: &mut Vec<State>) {
    states.sort_by(|a, b| {
        a.bits.cmp(&b.bits).then(a.loss.total_cmp(&b.loss)).then((a.parent, a.choice).cmp(&(b.parent, b.choice)))
    });
    let mut least = f64::INFINITY;
    states.retain(|state| {
        let better = state.loss < least;
        least = least.min(state.loss);
        better
    });
}

/// Leaves so many states at most, even in size.
fn thin(states: &mut Vec<State>, limit: usize) {
    if states.len() > limit {
        let (count, mut at) = (states.len(), 0);
        states.retain(|_| {
            at += 1;
            // The last of each of `limit` runs: of those in a run the one of least loss.
            at * limit / count > (at - 1) * limit / count
        });
    }
}

fn trace(layers: &[Vec<State>], at: usize) -> Vec<usize> {
    let mut at = at;
    let mut choices: Vec<usize> = layers[1..]
        .iter()
        .rev()
        .map(|layer| {
            let state = layer[at];
            at = state.parent as usize;
            state.choice as usize
        })
        .collect();
    choices.reverse();
    choices
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngSeed};

    use super::*;

    fn config() -> ProptestConfig {
        ProptestConfig { cases: 3000, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Default::default() }
    }

    fn item() -> impl Strategy<Value = Vec<Cost>> {
        // Few sizes and few losses, so that there are ties.
        let cost = (1u64..12, prop_oneof![(0..9u32).prop_map(f64::from), 0.0..9.0]);
        prop::collection::vec(cost.prop_map(|(bits, loss)| Cost { bits, loss }), 1..5)
    }

    fn brute_force(items: &[Vec<Cost>], capacity: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        let fits = first.iter().filter(|cost| cost.bits <= capacity);
        let losses = fits.filter_map(|cost| Some(brute_force(rest, capacity - cost.bits)? + cost.loss));
        losses.min_by(f64::total_cmp)
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn small_problems_are_solved_as_by_trying_everything(items in prop::collection::vec(item(), 0..7), capacity in 0u64..70) {
            let (found, wanted) = (solve(&items, capacity), brute_force(&items, capacity));
            prop_assert_eq!(found.is_some(), wanted.is_some());
            if let (Some(found), Some(wanted)) = (found, wanted) {
                prop_assert!((found.loss - wanted).abs() < 1e-9, "{} and not {}", found.loss, wanted);
                prop_assert!(found.bits <= capacity && found.optimal && found.bound <= wanted + 1e-9);
                let chosen: Vec<Cost> = items.iter().zip(&found.choices).map(|(item, at)| item[*at]).collect();
                prop_assert_eq!(found.bits, chosen.iter().map(|cost| cost.bits).sum::<u64>());
                prop_assert!((found.loss - chosen.iter().map(|cost| cost.loss).sum::<f64>()).abs() < 1e-9);
            }
        }

        #[test]
        fn more_room_never_loses_more(items in prop::collection::vec(item(), 1..7), capacity in 0u64..70) {
            if let (Some(less), Some(more)) = (solve(&items, capacity), solve(&items, capacity + 1)) {
                prop_assert!(more.loss <= less.loss + 1e-9);
            }
        }
    }

    /// The matrices of a model of `blocks` blocks, with losses that fall fourfold a bit, times some noise.
    fn model(blocks: usize, shapes: &[[u64; 2]], vocabulary: u64) -> Vec<Vec<Cost>> {
        let mut state = 7u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            0.5 + (state >> 40) as f64 / (1 << 24) as f64
        };
        let shapes = std::iter::once([vocabulary, shapes[0][1]]).chain((0..blocks).flat_map(|_| shapes.iter().copied()));
        let rates: [(u64, u64, u64); 7] = [(2, 32, 6), (3, 64, 6), (3, 32, 6), (4, 64, 6), (4, 32, 6), (5, 32, 6), (6, 32, 6)];
        let mut item = |[rows, columns]: [u64; 2]| -> Vec<Cost> {
            let sensitivity = 0.01 * noise() * noise() * noise();
            let cost = |(width, group, scale): (u64, u64, u64)| {
                let bits = rows * columns * width + rows * (columns / group) * scale + 16 * rows;
                Cost { bits, loss: sensitivity * noise() * 4f64.powf(-(bits as f64) / (rows * columns) as f64) }
            };
            rates.map(cost).to_vec()
        };
        shapes.map(&mut item).collect()
    }

    #[test]
    fn real_shapes_land_within_a_hundredth_under_their_budget() {
        let smollm2 = [[576, 576], [192, 576], [192, 576], [576, 576], [1536, 576], [1536, 576], [576, 1536]];
        let llama = [[4096, 4096], [1024, 4096], [1024, 4096], [4096, 4096], [14336, 4096], [14336, 4096], [4096, 14336]];
        let tiny = [[128, 128], [64, 128], [64, 128], [128, 128], [384, 128], [384, 128], [128, 384]];
        for items in [model(30, &smollm2, 49152), model(32, &llama, 128_256), model(6, &tiny, 1024)] {
            let (least, most) = (least_bits(&items), most_bits(&items));
            // Beyond, where all but the largest tensor have their best, what is left over is no use to the others.
            for step in 1..36 {
                let capacity = least + (most - least) / 40 * step;
                let solution = solve(&items, capacity).expect("there is room");
                assert!(
                    solution.bits <= capacity && solution.bits as f64 >= 0.99 * capacity as f64,
                    "{} of {capacity}",
                    solution.bits
                );
                assert!(solution.optimal, "{capacity}");
                // The largest tensor cannot be cut as the bound cuts it.
                assert!(solution.loss <= 1.05 * solution.bound, "{} over {}", solution.loss, solution.bound);
            }
        }
    }

    #[test]
    fn a_budget_below_the_least_is_refused_and_one_above_the_most_takes_the_best() {
        let items = model(2, &[[64, 64]], 128);
        assert_eq!(solve(&items, least_bits(&items) - 1), None);
        assert_eq!(solve(&items, u64::MAX / 4).map(|solution| solution.bits), Some(most_bits(&items)));
    }
}
