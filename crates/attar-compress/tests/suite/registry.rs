//! Runs over every quantizer x grid x granularity x zero point x scale search, unasked.
//!
//! `tests/golden/quantizers.txt` holds a digest of what every version of every algorithm wrote. When bytes move,
//! `version()` must too; then `BLESS=1` adds the line of the new version and never touches an old one.
//!
//! The last bits of matrix products depend on the processor's vectors, and so do the bytes of calibrated algorithms: they have
//! a line per instruction set. The libraries that multiply (gemm, faer) ask the processor and cannot be told otherwise, so the
//! lines of another one are made on it, or in an emulator: `BLESS=1 qemu-x86_64 -cpu Haswell-v4 target/release/deps/suite-…
//! --exact registry::bytes_move_only_with_the_version`, which takes more than a quarter of an hour.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::Write,
    ops::Range,
    path::Path,
    sync::{Arc, LazyLock, Mutex, OnceLock},
};

use attar_compress::{Hessian, Needs, QUANTIZERS, Quantizer, Result, ScaleSearch, Seen, WeightRows};
use attar_tensor::{
    BlobWriter, Blobs, Damage, Digest, FolderStore, GRIDS, Granularity, Levels, ScaleFormat, Scheme, Source, Store, Tail,
    ZeroPoint,
};
use candle_core::{Device, Tensor};

/// Sums of squares in f32 lanes against one in f64.
const SUM: f64 = 1e-5;

/// More than one piece of memory and several parallel parts; groups of 16 and 64 both leave a tail.
const LARGE: [usize; 2] = [6200, 172];

/// Groups of 16 and 64 divide a row.
const SMALL: [usize; 2] = [37, 192];

/// Weights in memory.
struct Weights {
    dims: [usize; 2],
    values: Vec<f32>,
}

impl Weights {
    /// About normal, with a few outliers, a row of zeros and a row of one sign. Sums of whole numbers, so that they are
    /// the same everywhere.
    fn new(dims: [usize; 2]) -> Weights {
        let [rows, columns] = dims;
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as i32 - 32_768
        };
        let mut values: Vec<f32> =
            (0..rows * columns).map(|_| (next() + next() + next() + next()) as f32 / 2_097_152.0).collect();
        values.iter_mut().step_by(997).for_each(|value| *value *= 8.0);
        values[columns..2 * columns].fill(0.0);
        values[2 * columns..3 * columns].iter_mut().for_each(|value| *value = value.abs());
        Weights { dims, values }
    }
}

impl WeightRows for Weights {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.values[rows.start * self.dims[1]..rows.end * self.dims[1]]);
        Ok(())
    }

    fn name(&self) -> &str {
        "w"
    }
}

/// What is known of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Statistics {
    /// Every input as large as the others, and on its own.
    Identity,
    /// Neighbours go together, and some are larger.
    Correlated,
}

impl Statistics {
    /// Whole numbers, so that sums are exact.
    fn hessian(self, inputs: usize) -> Hessian {
        let mut hessian = Hessian::new(inputs);
        let x = match self {
            Statistics::Identity => Tensor::eye(inputs, candle_core::DType::F32, &Device::Cpu).unwrap(),
            Statistics::Correlated => {
                let value = |at: usize| ((at / inputs * 7 + at % inputs / 3 * 5) % 11) as f32 - 5.0 + (at * at % 3) as f32;
                Tensor::from_iter((0..4 * inputs * inputs).map(value), &Device::Cpu).unwrap()
            }
        };
        hessian.add(&x.reshape(((), inputs)).unwrap()).unwrap();
        hessian
    }
}

/// Every combination for tensors of `dims` that is one; formats of scales go with the groups and grids in the middle.
fn schemes(dims: [usize; 2]) -> Vec<Scheme> {
    let tail = if dims == LARGE { Tail::Short } else { Tail::Error };
    let mut all: Vec<Scheme> = Vec::new();
    for (grid, scale) in GRIDS.iter().flat_map(|grid| ScaleFormat::ALL.iter().map(move |scale| (*grid, *scale))) {
        let asked = grid.requires().group.map(Granularity::Group);
        let all_sizes = [Granularity::Tensor, Granularity::Row, Granularity::Group(16), Granularity::Group(64)];
        for granularity in all_sizes.into_iter().chain(asked.filter(|asked| !all_sizes.contains(asked))) {
            for zero in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
                let usual = scale == Scheme::of(grid).scale;
                let coded = scale.plain().is_none() && matches!(granularity, Granularity::Group(16 | 32));
                let looked_at = coded && matches!(grid.bits(), 3 | 4);
                let scheme = Scheme { granularity, zero, scale, tail, ..Scheme::of(grid) };
                // What is large adds pieces and tails, and those are the same for all schemes of a family.
                let enough = dims == LARGE
                    && !family(&scheme).is_empty()
                    && all.iter().filter(|s| family(s) == family(&scheme)).count() > 1;
                all.extend(Some(scheme).filter(|scheme| !enough && (usual || looked_at) && scheme.check().is_ok()));
            }
        }
    }
    all
}

/// What a digest is kept for: the name is empty for evenly spaced grids with scales in f16.
fn family(scheme: &Scheme) -> String {
    match (scheme.grid.levels(), scheme.scale) {
        (Levels::Even, ScaleFormat::F16) => String::new(),
        (Levels::Even, scale) => format!("{scale} "),
        _ => format!("{} ", scheme.grid.name()),
    }
}

const SEARCHES: [ScaleSearch; 2] = [ScaleSearch::Absmax, ScaleSearch::Mse];

/// Bytes and damage, under statistics that say nothing.
fn quantize(quantizer: &dyn Quantizer, weights: &Weights, scheme: Scheme, search: ScaleSearch) -> Result<(Vec<u8>, Damage)> {
    quantize_seen(Statistics::Identity, quantizer, weights, scheme, search, &|_| {})
}

fn quantize_seen(
    statistics: Statistics,
    quantizer: &dyn Quantizer,
    weights: &Weights,
    scheme: Scheme,
    search: ScaleSearch,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(Vec<u8>, Damage)> {
    let hessian = statistics.hessian(weights.dims[1]);
    let mut bytes = Vec::new();
    let writer = BlobWriter::new(&mut bytes, scheme, weights.dims).unwrap();
    let damage = quantizer.quantize(weights, Seen { hessian: Some(&hessian), drift: None }, scheme, search, writer, progress)?;
    Ok((bytes, damage))
}

/// A quantizer x grid x granularity x zero point x scale search.
#[derive(Clone, Copy)]
struct Combination {
    quantizer: &'static dyn Quantizer,
    dims: [usize; 2],
    scheme: Scheme,
    search: ScaleSearch,
}

impl std::fmt::Display for Combination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {:?} {:?}", self.quantizer.name(), self.scheme, self.search, self.dims)
    }
}

/// What came of a combination.
struct Written {
    bytes: Vec<u8>,
    damage: Damage,
    /// Rows done, as they were reported.
    progress: Vec<usize>,
}

impl Combination {
    fn run(&self, statistics: Statistics) -> Written {
        let progress = Mutex::new(Vec::new());
        let report = |rows| progress.lock().unwrap().push(rows);
        let weights = Weights::new(self.dims);
        let (bytes, damage) = quantize_seen(statistics, self.quantizer, &weights, self.scheme, self.search, &report).unwrap();
        Written { bytes, damage, progress: progress.into_inner().unwrap() }
    }

    /// `run`, once for all tests: these runs are what the suite spends its time on.
    fn written(&self, statistics: Statistics) -> Arc<Written> {
        type Runs = HashMap<(String, Statistics), Arc<OnceLock<Arc<Written>>>>;
        static RUNS: LazyLock<Mutex<Runs>> = LazyLock::new(Mutex::default);
        let run = RUNS.lock().unwrap().entry((self.to_string(), statistics)).or_default().clone();
        run.get_or_init(|| Arc::new(self.run(statistics))).clone()
    }
}

fn combinations(dims: [usize; 2]) -> impl Iterator<Item = Combination> {
    // Every width is tried on small tensors. Large ones add pieces and tails: three widths, one that is no part of a byte.
    let wanted = move |scheme: &Scheme| dims != LARGE || !family(scheme).is_empty() || [3, 4, 8].contains(&scheme.grid.bits());
    let schemes = schemes(dims).into_iter().filter(wanted).flat_map(|scheme| SEARCHES.map(|search| (scheme, search)));
    schemes.flat_map(move |(scheme, search)| {
        QUANTIZERS.iter().map(move |quantizer| Combination { quantizer: *quantizer, dims, scheme, search })
    })
}

fn all_combinations() -> impl Iterator<Item = Combination> {
    [SMALL, LARGE].into_iter().flat_map(combinations)
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn the_same_weights_give_the_same_bytes_on_any_number_of_threads() {
    for combination in all_combinations() {
        let (one, some) =
            (on_threads(1, || combination.run(Statistics::Correlated)), combination.written(Statistics::Correlated));
        assert!(one.bytes == some.bytes, "{combination}: the bytes differ");
        assert_eq!(one.damage, some.damage, "{combination}");
    }
}

#[test]
fn a_blob_reads_back_as_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let store: &dyn Store = &FolderStore::open(folder.path()).unwrap();
    for what in all_combinations() {
        let (Combination { dims, scheme, .. }, written) = (what, what.written(Statistics::Correlated));
        let blob = store.put(|to| to.write_all(&written.bytes).map_err(attar_tensor::Error::from)).unwrap();
        let mut blobs = Blobs::default();
        blobs.insert("w", store, &blob, scheme, dims).unwrap();
        check_codes(&what.to_string(), &blobs, scheme, dims);
        let mut decoded = vec![0.0; dims[0] * dims[1]];
        blobs.read("w", 0..dims[0], &mut decoded).unwrap();
        let weights = Weights::new(dims).values;
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let error = squares(&mut weights.iter().zip(&decoded).map(|(w, d)| f64::from(*w) - f64::from(*d)));
        let energy = squares(&mut weights.iter().map(|w| f64::from(*w)));
        let (damage, kept) = (&written.damage, blobs.damage("w").unwrap());
        for (found, wanted) in [(damage.squared_error, error), (damage.energy, energy)] {
            assert!((found - wanted).abs() <= SUM * wanted, "{what}: {found} was measured, {wanted} is so");
        }
        assert_eq!(
            (kept.squared_error as f32, kept.energy as f32),
            (damage.squared_error as f32, damage.energy as f32),
            "{what}"
        );
        store.release(&blob).unwrap();
    }
}

/// Codes and zeros lie in the grid, scales are finite and as many as there should be.
fn check_codes(what: &str, blobs: &Blobs, scheme: Scheme, dims: [usize; 2]) {
    let tensor = blobs.read_quantized("w", 0..dims[0]).unwrap();
    let top = match scheme.grid.levels() {
        Levels::Table(values) => (values.len() - 1) as u8,
        Levels::Even | Levels::Learned => ((1u32 << scheme.grid.bits()) - 1) as u8,
    };
    let mut codes = vec![0; dims[1]];
    for row in 0..dims[0] {
        tensor.codes_of(row, &mut codes);
        assert!(codes.iter().all(|code| *code <= top), "{what}: row {row}");
    }
    assert_eq!(tensor.scales.len(), scheme.scale_count(dims), "{what}");
    assert_eq!(tensor.supers.len(), scheme.scale.super_count(dims[0]), "{what}");
    assert!(tensor.scales.iter().all(|scale| scale.is_finite()), "{what}");
    assert_eq!(tensor.zeros.len(), if scheme.is_symmetric() { 0 } else { scheme.scale_count(dims) }, "{what}");
    assert!(tensor.zeros.iter().all(|zero| *zero <= top), "{what}");
}

#[test]
fn a_search_never_does_more_damage_than_absmax() {
    for what in all_combinations() {
        let error = |search| Combination { search, ..what }.written(Statistics::Identity).damage.squared_error;
        let (found, absmax) = (error(what.search), error(ScaleSearch::Absmax));
        assert!(found <= absmax * (1.0 + SUM), "{what}: {found}, and absmax {absmax}");
    }
}

#[test]
fn no_algorithm_is_worse_than_rounding_to_nearest_under_identity_statistics() {
    for what in all_combinations() {
        let error = |quantizer| Combination { quantizer, ..what }.written(Statistics::Identity).damage.squared_error;
        let (found, nearest) = (error(what.quantizer), error(QUANTIZERS[0]));
        assert!(found <= nearest * (1.0 + SUM), "{what}: {found}, and {nearest} by rounding to nearest");
    }
}

#[test]
fn more_bits_and_smaller_groups_do_less_damage() {
    let weights = Weights::new(SMALL);
    for quantizer in QUANTIZERS {
        let snr = |text: &str| quantize(*quantizer, &weights, text.parse().unwrap(), ScaleSearch::Mse).unwrap().1.snr_db();
        for finer in [["int3/g64", "int4/g64", "int8/g64"], ["int4/tensor", "int4/row", "int4/g16"]] {
            assert!(finer.map(&snr).is_sorted(), "{}: {finer:?} have {:?} dB", quantizer.name(), finer.map(&snr));
        }
    }
}

#[test]
fn progress_ends_at_the_last_row_and_never_goes_back() {
    for what in combinations(LARGE) {
        let told = &what.written(Statistics::Identity).progress;
        assert!(told.is_sorted() && told.last() == Some(&LARGE[0]), "{what}: {told:?}");
    }
}

#[test]
fn bytes_move_only_with_the_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quantizers.txt");
    let mut golden = fs::read_to_string(&path).unwrap_or_default();
    let families: BTreeSet<String> = schemes(SMALL).iter().map(family).collect();
    for (quantizer, family) in QUANTIZERS.iter().flat_map(|q| families.iter().map(move |family| (*q, family))) {
        // Matrix products differ in their last bits by instruction set, and what is calibrated hangs on them. For those of
        // x86-64 a digest must be there: `cargo xtask as haswell -p attar-compress` shows a machine with AVX-512 the other.
        let machine = if quantizer.needs() == Needs::Nothing { "any" } else { attar_graph::kernel::instruction_set() };
        let version = format!("{} {} {family}", quantizer.name(), quantizer.version());
        let name = format!("{version}{machine} ");
        let digest = digest(quantizer, family).to_string();
        match golden.lines().find_map(|line| line.strip_prefix(&name)) {
            Some(known) => assert_eq!(digest, known, "`{version}` writes other bytes: raise its version(), then `BLESS=1`"),
            None if std::env::var_os("BLESS").is_some() => golden += &format!("{name}{digest}\n"),
            None if machine != "any" && !machine.starts_with("x86-64-avx") => {
                skip(&format!("no digest of `{version}` is known for {machine}"));
            }
            None => panic!("no digest of `{version}` is known for {machine}; `BLESS=1` adds it"),
        }
    }
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, golden).unwrap();
    }
}

/// Leaves something out. Not captured by the harness, so that a run can count it.
fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Of all bytes for all combinations of a family.
fn digest(quantizer: &'static dyn Quantizer, of: &str) -> Digest {
    let mut all = Vec::new();
    for dims in [SMALL, [400, 172], LARGE] {
        let schemes = schemes(if dims == SMALL { SMALL } else { LARGE }).into_iter().filter(|scheme| family(scheme) == of);
        // The largest adds pieces, and those are the same for every scheme.
        for scheme in schemes.take(if dims == LARGE { 4 } else { usize::MAX }) {
            for search in SEARCHES {
                let written = Combination { quantizer, dims, scheme, search }.written(Statistics::Identity);
                all.push(Digest::of(&written.bytes));
            }
        }
    }
    if quantizer.needs() != Needs::Nothing {
        let scheme =
            schemes(SMALL).into_iter().find(|s| family(s) == of && matches!(s.granularity, Granularity::Group(_))).unwrap();
        let scheme = if of.is_empty() { "int4/g64".parse().unwrap() } else { scheme };
        let seen = Combination { quantizer, dims: SMALL, scheme, search: ScaleSearch::Mse }.written(Statistics::Correlated);
        all.push(Digest::of(&seen.bytes));
    }
    Digest::of_parts(all.iter().map(|digest| digest.as_bytes().as_slice()))
}

#[test]
fn a_scale_that_f16_cannot_hold_is_an_error_that_says_what_to_do() {
    for_scales(ScaleFormat::F16, |what, result| {
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot scale {what}, of `w`"));
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("does not fit in f16"), "{what}: {cause}");
        assert!(error.hint().is_some_and(|hint| hint.contains(r#"scale_dtype = "f32""#)), "{what}: {:?}", error.hint());
    });
    for format in [ScaleFormat::Bf16, ScaleFormat::F32] {
        for_scales(format, |what, result| assert!(result.is_ok(), "{what} {format}"));
    }
}

/// Quantizes weights of which the one in row 10, column 70 is huge; `each` gets where an error has to point.
fn for_scales(scale: ScaleFormat, mut each: impl FnMut(&str, Result<(Vec<u8>, Damage)>)) {
    let mut weights = Weights::new(SMALL);
    weights.values[10 * SMALL[1] + 70] = 1e8;
    let places = [
        (Granularity::Tensor, "rows 0..37, columns 0..192"),
        (Granularity::Row, "rows 10..11, columns 0..192"),
        (Granularity::Group(64), "rows 10..11, columns 64..128"),
    ];
    for quantizer in QUANTIZERS {
        for scheme in schemes(SMALL).into_iter().filter(|s| family(s).is_empty()) {
            if let Some((_, place)) = places.iter().find(|(granularity, _)| *granularity == scheme.granularity) {
                for search in SEARCHES {
                    each(place, quantize(*quantizer, &weights, Scheme { scale, ..scheme }, search));
                }
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_is_an_error_that_says_where() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (row, column) in [(0, 0), (30, 191), (36, 191)] {
            let mut weights = Weights::new(SMALL);
            weights.values[row * SMALL[1] + column] = value;
            weights.values[36 * SMALL[1] + 191] = value;
            for quantizer in QUANTIZERS {
                for scheme in schemes(SMALL) {
                    let error = quantize(*quantizer, &weights, scheme, ScaleSearch::Absmax).unwrap_err().to_string();
                    assert!(error.contains(&format!("row {row}, column {column}")), "{scheme}: {error}");
                }
            }
        }
    }
}

#[test]
fn a_weight_that_is_not_finite_is_found_behind_the_first_piece() {
    let mut weights = Weights::new(LARGE);
    weights.values[6150 * LARGE[1] + 3] = f32::NAN;
    for quantizer in QUANTIZERS {
        let error = quantize(*quantizer, &weights, "int4/row".parse().unwrap(), ScaleSearch::Absmax).unwrap_err().to_string();
        assert!(error.contains("row 6150, column 3"), "{error}");
    }
}

#[test]
fn memory_is_no_less_than_what_a_piece_of_weights_and_the_scales_take() {
    for quantizer in QUANTIZERS {
        for dims in [[1, 1], SMALL, LARGE, [1 << 17, 1 << 13]] {
            let scales = dims[0] * dims[1].div_ceil(64) * 4;
            assert!(quantizer.memory(dims) >= (4 * (dims[0] * dims[1]).min(1 << 20) + scales) as u64, "{dims:?}");
        }
    }
}
