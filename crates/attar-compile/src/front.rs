//! Pareto fronts: points that no other point dominates.

use std::cmp::Ordering;

/// The points of `found` that no other dominates, in their order; the first of equals. Less is better; no cost is NaN.
pub(crate) fn front<T, const N: usize>(found: Vec<T>, costs: impl Fn(&T) -> [f64; N]) -> Vec<T> {
    let costs: Vec<[f64; N]> = found.iter().map(costs).collect();
    let mut order: Vec<usize> = (0..found.len()).collect();
    // Stable: of equals the first comes first.
    order.sort_by(|a, b| lexicographic(&costs[*a], &costs[*b]));
    // Whatever beats a point is before it in this order; and if that is beaten itself, so is the point by what beats it.
    let mut kept: Vec<usize> = Vec::new();
    for at in order {
        if !kept.iter().any(|other| no_worse(&costs[*other], &costs[at])) {
            kept.push(at);
        }
    }
    found.into_iter().enumerate().filter(|(at, _)| kept.contains(at)).map(|(_, point)| point).collect()
}

fn lexicographic<const N: usize>(a: &[f64; N], b: &[f64; N]) -> Ordering {
    let each = a.iter().zip(b).map(|(a, b)| a.total_cmp(b));
    each.fold(Ordering::Equal, Ordering::then)
}

fn no_worse<const N: usize>(a: &[f64; N], b: &[f64; N]) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, pair by pair.
    fn by_hand(found: &[[u8; 3]]) -> Vec<usize> {
        let beats = |a: &[u8; 3], b: &[u8; 3]| a != b && a.iter().zip(b).all(|(a, b)| a <= b);
        let all = 0..found.len();
        let first = |at: usize| !found[..at].contains(&found[at]);
        all.filter(|at| first(*at) && !found.iter().any(|other| beats(other, &found[*at]))).collect()
    }

    proptest! {
        /// Few values, so that there are many ties.
        #[test]
        fn it_is_what_nothing_beats(found in prop::collection::vec(prop::array::uniform3(0u8..5), 0..40)) {
            let points: Vec<(usize, [u8; 3])> = found.iter().copied().enumerate().collect();
            let kept = front(points, |(_, costs)| costs.map(f64::from));
            prop_assert_eq!(kept.iter().map(|(at, _)| *at).collect::<Vec<_>>(), by_hand(&found));
        }
    }
}
