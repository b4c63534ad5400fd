//! The search against brute force, and against published tables.

use attar_compile::tile::{Buffering, Limits, Objective, Order, Product, Rates, Tiling, pareto, search};
use attar_compile::{Element, Error, lower_bound};
use proptest::prelude::*;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

fn table(name: &str) -> Option<Vec<Vec<String>>> {
    let path = std::env::var_os("ATTAR_SHARED").map(|shared| PathBuf::from(shared).join("data/tiling").join(name));
    let Some(text) = path.and_then(|path| std::fs::read_to_string(path).ok()) else {
        let _ = writeln!(std::io::stderr(), "skipped: ATTAR_SHARED has no data/tiling/{name}");
        return None;
    };
    Some(text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect())
}

fn number(text: &str) -> u64 {
    text.parse().expect("the tables hold whole numbers")
}

fn weights(bits: &str) -> Element {
    if bits == "4" { Element::INT4 } else { Element::INT8 }
}

#[test]
fn prefill_rows_need_no_more_than_the_best_known() {
    let Some(rows) = table("prefill-48.csv") else { return };
    let (mut logs, mut worst, mut ours) = (0.0, 0.0f64, 0.0f64);
    for row in &rows {
        let [m, k, n, sram, best, bound] = [0, 1, 2, 4, 5, 6].map(|column| number(&row[column]));
        let product = Product::new(m, k, n, Element::INT8, weights(&row[3]));
        let start = Instant::now();
        let tiling = search(&product, &Limits::of(sram << 10), &Objective::BYTES).unwrap();
        let took = start.elapsed().as_secs_f64() * 1e3;
        let dram = tiling.dram.total();
        let ratio = dram as f64 / bound as f64;
        println!(
            "{m},{k},{n} w{} {sram} KiB: {dram} best known {best} ({:.3}) bound {ratio:.3}; {took:.2} ms {:?}",
            row[3],
            dram as f64 / best as f64,
            (tiling.order, tiling.tile, tiling.kept)
        );
        assert!(dram <= best && tiling.sram <= sram << 10);
        let rederived = lower_bound(&product, sram << 10);
        assert!(rederived as f64 >= 0.999 * bound as f64 && rederived <= dram, "{rederived} {bound}");
        ours += (dram as f64 / rederived as f64).ln();
        logs += ratio.ln();
        worst = worst.max(ratio);
    }
    let mean = (logs / rows.len() as f64).exp();
    let ours = (ours / rows.len() as f64).exp();
    println!("geomean {mean:.4}, worst {worst:.3}; against our own bound {ours:.4}");
    assert!(mean <= 1.17 && worst <= 1.67, "{mean} {worst}");
}

/// Published rows of ZigZag 3.9.1 on a 32 x 32 array with one shared SRAM; it forces neither double buffers nor alignment.
#[test]
fn never_moves_more_than_zigzag() {
    let Some(rows) = table("zigzag-3.9.1.csv") else { return };
    let (mut logs, mut beyond) = (0.0, 0);
    for row in &rows {
        let [m, k, n, sram, theirs] = [0, 1, 2, 4, 14].map(|column| number(&row[column]));
        let product = Product::new(m, k, n, Element::INT8, weights(&row[3]));
        let ours = search(&product, &Limits::of(sram), &Objective::BYTES).unwrap().dram.total();
        let aligned = Limits { buffering: Buffering::DoubleStreamed, align: 32, ..Limits::of(sram) };
        let strict = search(&product.aligned([1, 32, 32]), &aligned, &Objective::BYTES).unwrap().dram.total();
        let ratio = |ours: u64| theirs as f64 / ours as f64;
        println!(
            "{m},{k},{n} w{} {sram}: {theirs} / {ours} = {:.3}; aligned to 32, double buffers {:.3}",
            row[3],
            ratio(ours),
            ratio(strict)
        );
        assert!(ours <= theirs);
        if ours > product.compulsory().total() {
            logs += ratio(ours).ln();
            beyond += 1;
        }
    }
    let mean = (logs / f64::from(beyond)).exp();
    println!("{beyond} rows beyond compulsory: geomean {mean:.3}");
    assert!(mean >= 1.2, "{mean}");
}

/// Whether a tile may be used: a multiple of the unit or the whole.
fn legal(whole: u64, unit: u64) -> impl Iterator<Item = u64> + Clone {
    (1..=whole).filter(move |t| t % unit == 0 || *t == whole)
}

/// Every tiling of the class that fits, with outputs in whole tiles.
fn every(product: Product, limits: Limits) -> Vec<Tiling> {
    every_of(product, limits, false).into_iter().filter(|tiling| tiling.sram <= limits.sram).collect()
}

/// The same with outputs that are staged in whole tiles and in every kind of strips; with `plain` those that keep all or nothing,
/// with strips of one row.
fn every_strip(product: Product, limits: Limits, plain: bool) -> Vec<Tiling> {
    let strips = |tiling: &Tiling| {
        let (tiling, [tm, ..]) = (*tiling, tiling.tile);
        let strips = limits.staged && product.c.bits > 0;
        let heights = (1..=if plain { 1 } else { tm / 2 }).filter(move |rows| strips && tm % rows == 0).chain([tm]);
        heights.map(move |rows| tiling.in_strips(&product, &limits, rows))
    };
    every_of(product, limits, plain).iter().flat_map(strips).filter(|tiling| tiling.sram <= limits.sram).collect()
}

/// Every tiling of the class, whatever it holds, with outputs in whole tiles.
fn every_of(product: Product, limits: Limits, plain: bool) -> Vec<Tiling> {
    let mut all = Vec::new();
    for order in Order::ALL {
        for tm in legal(product.m, product.unit[0]) {
            for tk in legal(product.k, product.unit[1]) {
                for tn in legal(product.n, product.unit[2]) {
                    if limits.stored.is_some_and(|stored| stored != [tk, tn]) {
                        continue;
                    }
                    let [nm, nk, nn] = [product.m.div_ceil(tm), product.k.div_ceil(tk), product.n.div_ceil(tn)];
                    let [most_a, most_w] = match order {
                        Order::Mnk => [nk, nk * nn],
                        Order::Nmk => [nk * nm, nk],
                        Order::Mkn => [0, nk * nn],
                        Order::Nkm => [nk * nm, 0],
                    };
                    let counts = |most: u64| (0..=most).filter(move |c| !plain || *c == 0 || *c == most);
                    for a in counts(most_a) {
                        for w in counts(most_w) {
                            all.push(Tiling::new(&product, &limits, order, [tm, tk, tn], [a, w]));
                        }
                    }
                }
            }
        }
    }
    all
}

fn problems(most: u64) -> impl Strategy<Value = (Product, Limits)> {
    let dims = (1..=most, 1..=most, 1..=most);
    let elements = proptest::sample::select(vec![Element::INT8, Element::INT4, Element::INT16, Element { bits: 3, per: 1 }]);
    let unit = proptest::sample::select(vec![[1, 1, 1], [1, 2, 2], [2, 1, 3], [1, 4, 1]]);
    let rest = (any::<bool>(), any::<bool>(), any::<[bool; 2]>(), 0u32..3, 0.0..1.1f64);
    let tiles = proptest::option::weighted(0.3, any::<[proptest::sample::Index; 2]>());
    (dims, elements, unit, rest, tiles).prop_map(|((m, k, n), w, unit, (double, staged, [a, c], align, share), tiles)| {
        let mut product = Product::new(m, k, n, Element::INT8, w).aligned(unit);
        // Operands that are on the chip already take no room and do not move.
        product.a.bits *= u32::from(a);
        product.c.bits *= u32::from(c);
        let [depths, columns] = [(k, unit[1]), (n, unit[2])].map(|(whole, unit)| legal(whole, unit).collect::<Vec<u64>>());
        let stored = tiles.map(|[depth, column]| [*depth.get(&depths), *column.get(&columns)]);
        let everything = product.compulsory().total() + 4 * m * n;
        let buffering = if double { Buffering::DoubleStreamed } else { Buffering::Single };
        let limits = Limits { sram: (everything as f64 * share) as u64, align: 1 << align, buffering, staged, stored };
        (product, limits)
    })
}

fn rates() -> Rates {
    Rates {
        array: [1, 4, 4],
        fill: 3.0,
        read: 4.0,
        write: 2.0,
        setup: 5.0,
        outstanding: 1,
        coded: 1.0,
        burst: 4,
        mac_pj: 0.2,
        sram_pj: 1.0,
        dram_pj: 60.0,
        cycle_pj: 2.0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn bytes_equal_brute_force_over_the_whole_class((product, limits) in problems(9)) {
        // Strips have to move fewer bytes.
        let key = |t: &Tiling| (t.dram.total(), t.has_strips(), t.transfers.iter().sum::<u64>(), t.sram);
        let best = every_strip(product, limits, false).iter().map(key).min();
        match search(&product, &limits, &Objective::BYTES) {
            Ok(tiling) => prop_assert_eq!(Some(key(&tiling)), best, "{:?}", tiling),
            Err(Error::SramTooSmall { needed, sram, .. }) => {
                prop_assert_eq!(best, None);
                prop_assert!(needed > sram);
                let enough = Limits { sram: needed, ..limits };
                prop_assert!(search(&product, &enough, &Objective::BYTES).is_ok());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    #[test]
    fn large_dimensions_are_no_worse_than_any_plain_tiling((product, limits) in problems(1), (m, k, n) in (1u64..70, 50u64..70, 40u64..60)) {
        let product = Product { m, k, n, w: Element::INT8, ..product };
        let limits = Limits { sram: limits.sram * m * k * n / 64 + 300, ..limits };
        let best = every_strip(product, limits, true).iter().map(|t| t.dram.total()).min();
        let found = search(&product, &limits, &Objective::BYTES).ok().map(|t| t.dram.total());
        prop_assert_eq!(found.is_some(), best.is_some());
        prop_assert!(found <= best, "{:?} {:?}", found, best);
    }

    #[test]
    fn time_and_energy_equal_brute_force_within_a_32nd((product, limits) in problems(7)) {
        let all = every(product, limits);
        for (objective, value) in [
            (Objective::Latency(rates()), (|t: &Tiling, p: &Product, l: &Limits| t.cost(p, l, &rates()).cycles) as fn(&Tiling, &Product, &Limits) -> f64),
            (Objective::Energy(rates()), |t, p, l| t.cost(p, l, &rates()).energy),
        ] {
            let Ok(found) = search(&product, &limits, &objective) else { prop_assert!(all.is_empty()); continue };
            let best = all.iter().map(|t| value(t, &product, &limits)).fold(f64::MAX, f64::min);
            let found = value(&found, &product, &limits);
            prop_assert!(found <= best * (1.0 + 1.0 / 32.0) && found >= best * (1.0 - 1e-12), "{} {}", found, best);
        }
    }

    #[test]
    fn a_front_has_no_dominated_member((product, limits) in problems(12)) {
        let Ok(front) = pareto(&product, &limits, &rates()) else { return Ok(()) };
        prop_assert!(!front.is_empty());
        for (x, (s, a)) in front.iter().enumerate() {
            prop_assert!(s.sram <= limits.sram);
            for (y, (t, b)) in front.iter().enumerate() {
                let no_worse = t.sram <= s.sram && t.dram.total() <= s.dram.total() && b <= a;
                prop_assert!(x == y || !no_worse, "{:?} {:?}", s, t);
            }
        }
    }
}

/// Where k is large, the tile of sums fills SRAM, and a tile of outputs beside it costs DRAM traffic.
#[test]
fn strips_move_fewer_bytes_where_sums_fill_the_room() {
    let (mut chosen, mut most) = (0, 0.0f64);
    for (m, k, n) in [(64, 4096, 512), (127, 8192, 1024), (512, 2048, 2048), (1024, 8192, 1024)] {
        for sram in [64 << 10, 128 << 10, 256 << 10] {
            let product = Product::new(m, k, n, Element::INT8, Element::INT8).aligned([1, 32, 32]);
            let limits = Limits { align: 64, buffering: Buffering::DoubleStreamed, staged: true, ..Limits::of(sram) };
            let rates = rates();
            for objective in
                [Objective::Dram { overhead: Objective::TRANSFER }, Objective::Latency(rates), Objective::Energy(rates)]
            {
                let found = search(&product, &limits, &objective).unwrap();
                // An output that is not staged at all takes no room: no strips are smaller.
                let unstaged = search(&product, &Limits { staged: false, ..limits }, &objective).unwrap();
                let in_strips = found.has_strips();
                if !matches!(objective, Objective::Dram { .. }) {
                    assert!(!in_strips, "{m}x{k}x{n} in {sram}: the array waits for strips");
                    continue;
                }
                assert!(found.dram.total() >= unstaged.dram.total(), "{m}x{k}x{n} in {sram}: {found:?} {unstaged:?}");
                chosen += u32::from(in_strips);
                most = most.max(found.dram.total() as f64 / unstaged.dram.total() as f64);
            }
        }
    }
    println!("{chosen} of 12 in strips, at most {most:.4} of the bytes of outputs that are not staged");
    assert!(chosen >= 8 && most < 1.03, "{chosen} {most}");
}

/// Orders that write partial sums to DRAM and read them back: weights stationary (n,k,m and k,n,m) and activations
/// stationary (m,k,n and k,m,n).
fn least_spilling(product: &Product, sram: u64) -> Option<u64> {
    let Product { m, k, n, a, w, .. } = *product;
    let least = |d: u64| (1..=d).filter(move |t| (1..*t).all(|s| d.div_ceil(s) != d.div_ceil(*t)));
    let mut best = None;
    for tm in least(m) {
        for tk in least(k).filter(|tk| *tk < k) {
            for tn in least(n).filter(|tn| a.bytes(tm * tk) + w.bytes(tk * tn) + 4 * tm * tn <= sram) {
                let [nm, nk, nn] = [m.div_ceil(tm), k.div_ceil(tk), n.div_ceil(tn)];
                let spilled = 2 * (nk - 1) * 4 * m * n + m * n;
                let [a, w] = [a.bytes(m * k), w.bytes(k * n)];
                let (weights, activations) = (if nm == 1 { a } else { nn * a } + w, a + if nn == 1 { w } else { nm * w });
                best = best.into_iter().chain([weights.min(activations) + spilled]).min();
            }
        }
    }
    best
}

/// Why `Order` has no order that spills.
#[test]
fn spilling_partial_sums_is_never_best() {
    let dims = [1, 2, 3, 4, 6, 8, 13, 16, 32, 48];
    let (mut compared, mut closest) = (0, f64::MAX);
    for m in dims {
        for k in dims {
            for n in dims {
                let product = Product::new(m, k, n, Element::INT8, Element::INT8);
                let whole = product.compulsory().total() + 3 * m * n;
                for share in [0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7] {
                    let sram = ((whole as f64 * share) as u64).max(6);
                    let Some(spilling) = least_spilling(&product, sram) else { continue };
                    let ours = search(&product, &Limits::of(sram), &Objective::BYTES).unwrap().dram.total();
                    assert!(ours <= spilling, "{m}x{k}x{n} in {sram}: {ours} {spilling}");
                    closest = closest.min(spilling as f64 / ours as f64);
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} problems, spilling moves at least {closest:.3} times as much");
}
