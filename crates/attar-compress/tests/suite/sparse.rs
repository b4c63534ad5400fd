//! Sparse weights against numpy's; every quantizer with every grid on weights whose zeros stay.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

use attar_compress::{
    Drift, Hessian, Needs, QUANTIZERS, Quantizer, Rate, Result, ScaleSearch, Seen, WeightRows,
    learn::Learned,
    prune::{Score, Sparsity, Wanted, on_support, sparse},
};
use attar_tensor::{BlobWriter, Blobs, GRIDS, Granularity, QuantizedTensor, Scheme, Source, ZeroPoint};
use candle_core::{Device, Tensor};
use serde_json::Value;

const ROWS: usize = 12;
const COLUMNS: usize = 160;
const TOKENS: usize = 256;

/// Rounding of a row to f32, and what conjugate gradients leave.
const CLOSE: f64 = 1e-5;

/// As in `testdata/oracle/sparse.py`.
fn noise(count: usize, mut state: u32) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as f32 - 128.0
    };
    (0..count).map(|_| next()).collect()
}

fn weight() -> Vec<f32> {
    noise(ROWS * COLUMNS, 2).into_iter().map(|w| w / 128.0 + 1.0 / 512.0).collect()
}

/// Sums of their products are exact in f32.
fn inputs() -> Tensor {
    let mut x: Vec<f32> = noise(TOKENS * COLUMNS, 1).into_iter().map(|x| x / 32.0).collect();
    for token in x.chunks_mut(COLUMNS) {
        (1..COLUMNS).step_by(2).for_each(|j| token[j] += token[j - 1]);
        token.iter_mut().step_by(7).for_each(|x| *x *= 4.0);
    }
    Tensor::from_vec(x, (TOKENS, COLUMNS), &Device::Cpu).unwrap()
}

fn moments() -> Hessian {
    let mut moments = Hessian::new(COLUMNS);
    moments.add(&inputs()).unwrap();
    moments
}

fn oracle() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/oracle/sparse.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_masks_of_sparsegpt_and_wanda_are_those_of_the_oracle() {
    let oracle = oracle();
    for (name, score) in [("obs", Score::Sweep), ("wanda", Score::Input)] {
        for sparsity in ["0.5", "2:4"] {
            let wanted = oracle["masks"][format!("{name} {sparsity}")].as_str().unwrap();
            let found = sparse(score, &weight(), &moments(), sparsity.parse().unwrap()).unwrap();
            let digits = found.stays.chunks(4).map(|bits| bits.iter().fold(0, |digit, stays| 2 * digit + u32::from(*stays)));
            let found: String = digits.map(|digit| char::from_digit(digit, 16).unwrap()).collect();
            assert_eq!(found, wanted, "{name} {sparsity}");
        }
    }
}

#[test]
fn the_fitted_row_is_that_of_the_oracle() {
    let (weight, moments) = (weight(), moments());
    let chosen = sparse(Score::Sweep, &weight, &moments, Sparsity::Share(0.5)).unwrap();
    let found = on_support(&weight, &chosen.weight, &chosen.stays, &moments, Wanted::Own).unwrap();
    for (found, wanted) in found.iter().zip(oracle()["fitted"].as_array().unwrap()) {
        let wanted = wanted.as_f64().unwrap();
        assert!((f64::from(*found) - wanted).abs() < CLOSE && (*found == 0.0) == (wanted == 0.0), "{found}, {wanted}");
    }
}

#[test]
fn what_left_stays_away_when_more_leaves() {
    let (weight, moments) = (weight(), moments());
    for score in [Score::Sweep, Score::Input, Score::Size] {
        let first = sparse(score, &weight, &moments, Sparsity::Share(0.5)).unwrap();
        let fitted = on_support(&weight, &first.weight, &first.stays, &moments, Wanted::Own).unwrap();
        for sparsity in ["0.25", "0.7", "1:4"] {
            let again = sparse(score, &fitted, &moments, sparsity.parse().unwrap()).unwrap();
            assert!(first.stays.iter().zip(&again.stays).all(|(first, again)| *first || !again), "{score:?} {sparsity}");
        }
    }
}

/// A weight half of which left, or none, and how coarse it is rounded.
struct Half(Vec<f32>, Option<Rate>);

impl WeightRows for Half {
    fn dims(&self) -> [usize; 2] {
        [ROWS, COLUMNS]
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.0[rows.start * COLUMNS..rows.end * COLUMNS]);
        Ok(())
    }

    fn name(&self) -> &str {
        "half"
    }

    fn keeps_zeros(&self) -> bool {
        true
    }

    fn rate(&self) -> Option<Rate> {
        self.1
    }
}

fn half() -> Half {
    let stays = sparse(Score::Size, &weight(), &moments(), Sparsity::Share(0.5)).unwrap();
    Half(stays.weight, None)
}

/// Every scheme of a grid with a zero that divides the rows.
fn schemes() -> impl Iterator<Item = Scheme> {
    let with_zero = GRIDS.iter().copied().filter(|grid| grid.has_zero());
    with_zero.flat_map(|grid| {
        let usual = Scheme::of(grid);
        let others = [Granularity::Group(32), Granularity::Row, Granularity::Tensor].into_iter().flat_map(move |granularity| {
            [ZeroPoint::Symmetric, ZeroPoint::Asymmetric].map(|zero| Scheme { granularity, zero, ..usual })
        });
        others.chain([usual]).filter(|scheme| scheme.check().is_ok() && scheme.fit(COLUMNS).is_ok())
    })
}

/// The weights as they are read back, and in codes.
fn quantized(quantizer: &dyn Quantizer, scheme: Scheme, search: ScaleSearch) -> (Vec<f32>, QuantizedTensor) {
    quantized_of(&half(), quantizer, scheme, search)
}

fn quantized_of(weight: &Half, quantizer: &dyn Quantizer, scheme: Scheme, search: ScaleSearch) -> (Vec<f32>, QuantizedTensor) {
    let (hessian, mut drift) = (moments(), Drift::new(COLUMNS));
    drift.add(&(inputs() * 1.05).unwrap(), &inputs()).unwrap();
    let seen = Seen {
        hessian: (quantizer.needs() != Needs::Nothing).then_some(&hessian),
        drift: (quantizer.needs() == Needs::Drift).then_some(&drift),
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let mut file = fs::File::create(&path).unwrap();
    let writer = BlobWriter::new(&mut file, scheme, [ROWS, COLUMNS]).unwrap();
    quantizer.quantize(weight, seen, scheme, search, writer, &|_| {}).unwrap();
    let mut blobs = Blobs::default();
    blobs.insert_file("half", path, scheme, [ROWS, COLUMNS]);
    let mut values = vec![1.0; ROWS * COLUMNS];
    blobs.read("half", 0..ROWS, &mut values).unwrap();
    (values, blobs.read_quantized("half", 0..ROWS).unwrap())
}

/// Every algorithm and search leaves scales positive where a runtime takes no others, and loses about a code of the range by it.
#[test]
fn positive_scales_are_positive_under_every_quantizer() {
    let original = half().0;
    let error = |found: &[f32]| original.iter().zip(found).map(|(w, q)| f64::from(w - q).powi(2)).sum::<f64>();
    for quantizer in QUANTIZERS {
        for form in ["int4/g32", "int3/g32/f32", "int8/row", "int4/tensor", "int4/g32/int6"] {
            for search in [ScaleSearch::Absmax, ScaleSearch::Mse] {
                let signed = quantized(*quantizer, form.parse().unwrap(), search).0;
                let (found, codes) = quantized(*quantizer, format!("{form}/positive").parse().unwrap(), search);
                assert!(codes.scales.iter().all(|scale| *scale > 0.0), "{} {form} {search:?}", quantizer.name());
                let ratio = error(&found) / error(&signed);
                assert!(ratio < 2.0, "{} {form} {search:?}: {ratio}", quantizer.name());
            }
        }
    }
}

#[test]
fn every_quantizer_keeps_zeros_in_every_grid_that_has_one() {
    let original = half().0;
    let mut tried = 0;
    for quantizer in QUANTIZERS {
        for (scheme, search) in
            schemes().flat_map(|scheme| [ScaleSearch::Absmax, ScaleSearch::Mse].map(|search| (scheme, search)))
        {
            let (found, _) = quantized(*quantizer, scheme, search);
            let kept = original.iter().zip(&found).all(|(original, found)| *original != 0.0 || *found == 0.0);
            assert!(kept, "{} {scheme} {search:?}", quantizer.name());
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried} combinations");
}

/// The entropy of codes, in bits per weight, and what they lose of a layer's outputs.
fn entropy_and_loss(weight: &Half, quantizer: &dyn Quantizer, scheme: &str) -> (f64, f64) {
    let (found, codes) = quantized_of(weight, quantizer, scheme.parse().unwrap(), ScaleSearch::Absmax);
    let packing = codes.scheme.grid.packing();
    let (mut counts, mut row) = (BTreeMap::<u8, u32>::new(), vec![0; COLUMNS]);
    for packed in codes.codes.chunks(packing.row_bytes(COLUMNS)) {
        packing.unpack(packed, &mut row);
        row.iter().for_each(|code| *counts.entry(*code).or_default() += 1);
    }
    let shares = counts.values().map(|count| f64::from(*count) / (ROWS * COLUMNS) as f64);
    let error: Vec<f64> = weight.0.iter().zip(&found).map(|(w, q)| f64::from(w - q)).collect();
    let moments = moments();
    let pairs = (0..COLUMNS).flat_map(|i| (0..COLUMNS).map(move |j| (i, j)));
    let of_row = |error: &[f64]| pairs.clone().map(|(i, j)| error[i] * error[j] * moments.mean(i.max(j), i.min(j))).sum::<f64>();
    (shares.map(|share| -share * share.log2()).sum(), error.chunks(COLUMNS).map(of_row).sum())
}

/// Weights that are close to Gaussian.
fn bell() -> Vec<f32> {
    let parts: Vec<Vec<f32>> = (3..11).map(|seed| noise(ROWS * COLUMNS, seed)).collect();
    (0..ROWS * COLUMNS).map(|at| parts.iter().map(|part| part[at]).sum::<f32>() / 512.0 + 1.0 / 1024.0).collect()
}

/// At no more entropy than a grid of few levels has, int8 with a coarse step loses less; bits that have a price are fewer, and zeros stay.
#[test]
fn priced_bits_lose_less_than_a_grid_of_as_many() {
    for quantizer in QUANTIZERS.iter().filter(|quantizer| quantizer.weighs_bits()) {
        for (grid, part) in [("int3/row", 0.9), ("int4/row", 1.0)] {
            let (bits, of_grid) = entropy_and_loss(&Half(bell(), None), *quantizer, grid);
            let rates = (0..40).map(|at| Rate { step: 2f32.powf(at as f32 / 8.0 - 3.5), price: 1.0 });
            let coarse = rates.map(|rate| entropy_and_loss(&Half(bell(), Some(rate)), *quantizer, "int8/row"));
            let best = coarse.filter(|(entropy, _)| *entropy <= bits).map(|(_, loss)| loss).fold(f64::INFINITY, f64::min);
            assert!(best < part * of_grid, "{} {grid}: {best} of {of_grid}", quantizer.name());
        }
        let entropy = |price| entropy_and_loss(&Half(bell(), Some(Rate { step: 0.5, price })), *quantizer, "int8/row").0;
        assert!(entropy(1.0) < entropy(0.0) - 0.05, "{}", quantizer.name());
        let sparse = Half(half().0, Some(Rate { step: 0.25, price: 1.0 }));
        let (found, _) = quantized_of(&sparse, *quantizer, "int8/row".parse().unwrap(), ScaleSearch::Absmax);
        assert!(sparse.0.iter().zip(&found).all(|(original, found)| *original != 0.0 || *found == 0.0), "{}", quantizer.name());
    }
}

#[test]
fn what_learns_keeps_zeros() {
    let original = half().0;
    for scheme in [
        Scheme::of(GRIDS[3]),
        Scheme { zero: ZeroPoint::Asymmetric, granularity: Granularity::Group(32), ..Scheme::of(GRIDS[3]) },
    ] {
        let scheme = Scheme { granularity: Granularity::Group(32), ..scheme };
        for adapts in [false, true] {
            let (_, picked) = quantized(QUANTIZERS[0], scheme, ScaleSearch::Absmax);
            let mut learned = Learned::new(picked, &original);
            learned.keep_zeros(&original);
            if adapts {
                learned.adapt(4, 0);
            }
            let before = learned.values().unwrap();
            for step in 0..20 {
                let values = learned.values().unwrap();
                let rate = attar_compress::learn::Rate::new(0.2, step);
                learned.step(&noise(ROWS * COLUMNS, 9), &values, rate, rate).unwrap();
            }
            let after = learned.values().unwrap();
            assert_ne!(before, after, "it learned");
            assert!(original.iter().zip(&after).all(|(original, after)| *original != 0.0 || *after == 0.0), "{scheme} {adapts}");
        }
    }
}
