//! The closed forms of a tiling against loops written out by hand, and against the steps that a lowering follows.

use attar_compile::Element;
use attar_compile::tile::{Buffering, Limits, Order, Product, Slot, Tiling};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

/// What a walk moved and held, counted tile by tile.
#[derive(Default, Debug, PartialEq)]
struct Count {
    bytes: [u64; 3],
    transfers: [u64; 3],
    streamed: [bool; 2],
}

/// A product's tile sizes by number.
struct Cut {
    product: Product,
    tile: [u64; 3],
    strip: u64,
}

impl Cut {
    fn counts(&self) -> [u64; 3] {
        let p = &self.product;
        [p.m.div_ceil(self.tile[0]), p.k.div_ceil(self.tile[1]), p.n.div_ceil(self.tile[2])]
    }
    fn height(&self, i: u64) -> u64 {
        self.tile[0].min(self.product.m - i * self.tile[0])
    }
    fn depth(&self, l: u64) -> u64 {
        self.tile[1].min(self.product.k - l * self.tile[1])
    }
    fn width(&self, j: u64) -> u64 {
        self.tile[2].min(self.product.n - j * self.tile[2])
    }
    fn a(&self, i: u64, l: u64) -> u64 {
        self.product.a.bytes(self.height(i) * self.depth(l))
    }
    fn w(&self, l: u64, j: u64) -> u64 {
        self.product.w.bytes(self.depth(l) * self.width(j))
    }
    fn c(&self, i: u64, j: u64) -> u64 {
        self.product.c.bytes(self.height(i) * self.width(j))
    }
    fn stores(&self, i: u64) -> u64 {
        if self.product.c.bits > 0 { self.height(i).div_ceil(self.strip) } else { 0 }
    }
}

/// The loops as the documentation of `Order` writes them, with SRAM as sets of tiles.
fn by_hand(cut: &Cut, order: Order, kept: [u64; 2]) -> Count {
    let [nm, nk, nn] = cut.counts();
    let mut visits = Vec::new();
    match order {
        Order::Mnk => (0..nm).for_each(|i| (0..nn).for_each(|j| (0..nk).for_each(|l| visits.push((i, l, j, l, j * nk + l))))),
        Order::Nmk => (0..nn).for_each(|j| (0..nm).for_each(|i| (0..nk).for_each(|l| visits.push((i, l, j, i * nk + l, l))))),
        Order::Mkn => {
            (0..nm).for_each(|i| (0..nk).for_each(|l| (0..nn).for_each(|j| visits.push((i, l, j, u64::MAX, l * nn + j)))));
        }
        Order::Nkm => {
            (0..nn).for_each(|j| (0..nk).for_each(|l| (0..nm).for_each(|i| visits.push((i, l, j, l * nm + i, u64::MAX)))));
        }
    }
    let (mut count, mut resident) = (Count::default(), [HashSet::new(), HashSet::new()]);
    let mut last: [Option<(u64, u64)>; 2] = [None, None];
    for (i, l, j, a_number, w_number) in visits {
        for (which, tile, number, bytes) in [(0, (i, l), a_number, cut.a(i, l)), (1, (l, j), w_number, cut.w(l, j))] {
            let present = if number < kept[which] {
                !resident[which].insert(tile)
            } else {
                count.streamed[which] = true;
                last[which].replace(tile) == Some(tile)
            };
            if !present {
                count.bytes[which] += bytes;
                count.transfers[which] += 1;
            }
        }
        if l + 1 == nk {
            count.bytes[2] += cut.c(i, j);
            count.transfers[2] += cut.stores(i);
        }
    }
    count
}

/// A tiling with what it is of.
type Case = (Product, Tiling, Limits);

fn tilings() -> impl Strategy<Value = Case> {
    let element = prop_oneof![
        Just(Element::INT8),
        Just(Element::INT4),
        Just(Element::INT16),
        Just(Element { bits: 3, per: 1 }),
        Just(Element { bits: 136, per: 32 })
    ];
    let dims = (1u64..14, 1u64..14, 1u64..14);
    let fractions = (0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64);
    let order = proptest::sample::select(&Order::ALL[..]);
    (dims, fractions, element.clone(), element, order, 0u32..3, any::<bool>(), any::<bool>()).prop_map(
        |((m, k, n), f, a, w, order, align, double, stored)| {
            let mut product = Product::new(m, k, n, a, w);
            product.c.bits *= u32::from(stored);
            let pick = |d: u64, f: f64| 1 + (f * d as f64) as u64;
            let tile = [pick(m, f.0), pick(k, f.1), pick(n, f.2)].map(|t| t.min(14));
            let [nm, nk, nn] = [m.div_ceil(tile[0]), k.div_ceil(tile[1]), n.div_ceil(tile[2])];
            let most = match order {
                Order::Mnk => [nk, nk * nn],
                Order::Nmk => [nk * nm, nk],
                Order::Mkn => [0, nk * nn],
                Order::Nkm => [nk * nm, 0],
            };
            let kept = [(f.3 * (most[0] + 1) as f64) as u64, (f.4 * (most[1] + 1) as f64) as u64];
            let buffering = if double { Buffering::DoubleStreamed } else { Buffering::Single };
            let limits = Limits { sram: 1 << 20, align: 1 << align, buffering, staged: stored, stored: None };
            let heights: Vec<u64> = (1..=tile[0]).filter(|rows| tile[0] % rows == 0).collect();
            let strip = heights[(f.5 * heights.len() as f64) as usize];
            (product, Tiling::new(&product, &limits, order, tile, kept).in_strips(&product, &limits, strip), limits)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn closed_forms_count_what_the_loops_move((product, tiling, _) in tilings()) {
        let Tiling { order, tile, kept, strip, .. } = tiling;
        let expected = by_hand(&Cut { product, tile, strip }, order, kept);
        prop_assert_eq!([tiling.dram.a, tiling.dram.w, tiling.dram.c], expected.bytes);
        prop_assert_eq!(tiling.transfers, expected.transfers);
        prop_assert_eq!(tiling.slots.map(|s| s > 0), expected.streamed);
    }

    #[test]
    fn steps_move_what_the_closed_forms_count((product, tiling, limits) in tilings()) {
        let Tiling { tile, strip, .. } = tiling;
        let cut = Cut { product, tile, strip };
        let (mut bytes, mut transfers, mut macs) = ([0; 3], [0; 3], 0);
        let mut standing: [HashMap<Slot, (u64, u64)>; 2] = Default::default();
        let mut held: [HashMap<Slot, u64>; 2] = Default::default();
        let mut sums: HashMap<u64, (u64, u64, u64)> = HashMap::new();
        let mut accumulators: HashMap<u64, u64> = HashMap::new();
        for step in tiling.steps(&product) {
            let (i, l, j) = (step.i, step.l, step.j);
            for (which, place, at, size) in [(0, step.a, (i, l), cut.a(i, l)), (1, step.w, (l, j), cut.w(l, j))] {
                if place.load {
                    standing[which].insert(place.slot, at);
                    bytes[which] += size;
                    transfers[which] += 1;
                }
                prop_assert_eq!(standing[which].get(&place.slot), Some(&at), "the tile stands where the step looks");
                let most = held[which].entry(place.slot).or_default();
                *most = size.max(*most);
            }
            if step.first {
                sums.insert(step.accumulator, (i, j, 0));
            }
            let sum = sums.get_mut(&step.accumulator).unwrap();
            prop_assert_eq!(*sum, (i, j, l), "sums are taken up where they were left");
            sum.2 += 1;
            macs += cut.height(i) * cut.depth(l) * cut.width(j);
            let size = product.partial.bytes(cut.height(i) * cut.width(j));
            let most = accumulators.entry(step.accumulator).or_default();
            *most = size.max(*most);
            if step.last {
                prop_assert_eq!(l + 1, cut.counts()[1]);
                bytes[2] += cut.c(i, j);
                transfers[2] += cut.stores(i);
            }
        }
        prop_assert_eq!(macs, product.macs());
        prop_assert_eq!(bytes, [tiling.dram.a, tiling.dram.w, tiling.dram.c]);
        prop_assert_eq!(transfers, tiling.transfers);
        // Every slot is as large as what stood in it, and no buffer is larger than its slots rounded up.
        let buffers = tiling.buffers(&product, &limits);
        let kept_bytes = |which: usize| held[which].iter().filter(|(s, _)| matches!(s, Slot::Kept(_)))
            .map(|(_, b)| b.next_multiple_of(limits.align)).sum::<u64>();
        prop_assert_eq!([buffers.a_kept, buffers.w_kept], [kept_bytes(0), kept_bytes(1)]);
        for (operand, slots) in held.iter().enumerate() {
            for (slot, bytes) in slots {
                let Slot::Kept(number) = slot else { continue };
                let [start, end] = [*number, number + 1].map(|x| tiling.kept_offset(&product, &limits, operand, x));
                prop_assert_eq!(end - start, bytes.next_multiple_of(limits.align));
            }
        }
        let streamed = |which: usize| held[which].iter().filter(|(s, _)| matches!(s, Slot::Streamed(_))).map(|(_, b)| *b).max();
        let full = [product.a.bytes(tile[0] * tile[1]), product.w.bytes(tile[1] * tile[2])];
        for which in 0..2 {
            prop_assert!(streamed(which).is_none_or(|most| most <= full[which]));
            prop_assert!(held[which].keys().filter(|s| matches!(s, Slot::Streamed(_))).count() as u64 <= tiling.slots[which]);
        }
        // One tile of outputs, or two strips of one.
        let [slots, rows] = if strip == tile[0] { [1, tile[0]] } else { [2, strip] };
        let stage = slots * product.c.bytes(rows * tile[2]).next_multiple_of(limits.align);
        prop_assert_eq!(buffers.stage, if limits.staged { stage } else { 0 });
        let sums: u64 = accumulators.values().map(|b| b.next_multiple_of(limits.align)).sum();
        prop_assert_eq!(buffers.accumulators, sums);
        prop_assert_eq!(buffers.total(), tiling.sram);
    }
}
