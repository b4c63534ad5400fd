//! What the fuzz targets do with bytes: each hands them to one reader of foreign input and asks only that it comes back. Errors
//! are fine; panics, overflows, memory without bound and accesses out of bounds are what the fuzzer looks for.
//!
//! `cargo xtask fuzz` lists the targets and runs them.

use std::{cell::RefCell, collections::BTreeMap, fs, path::Path, sync::Once};

use attar_compile::{
    Plan,
    device::Device,
    memory::read_csv,
    plan::{MAGIC, Proof, VERSION},
};
use attar_graph::{
    Graph,
    integer::{IntegerMatrix, Rounding},
    kernel::{Scores, attention},
};
use attar_model::{Model, Tokenizer};
use attar_recipe::Recipe;
use attar_tensor::{Fit, GRIDS, Levels, QuantizedTensor, Scheme, Source, gguf, safetensors::Shards};
use candle_core::{Device as Processor, Tensor};
use tempfile::TempDir;

thread_local! {
    /// One folder for all inputs, in memory where there is such a file system.
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Writes the bytes to a file of that name, for a reader that wants a path.
fn in_file(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let at = FOLDER.with_borrow_mut(|folder| {
        let memory = Path::new("/dev/shm");
        let make = || if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        folder.get_or_insert_with(|| make().expect("a folder for inputs")).path().to_owned()
    });
    let path = at.join(name);
    fs::write(&path, bytes).expect("the input can be written");
    read(&path);
}

/// libFuzzer ends at any panic, also at one that our reader catches. From here on it ends at those that leave the target.
fn let_panics_be_caught() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
}

/// Reads the first rows of every tensor, as far as they are small.
fn read_all(source: &dyn Source) {
    for (name, info) in source.tensors() {
        let [rows, columns] = info.matrix();
        if columns <= 1 << 16 {
            let rows = rows.min(2);
            let mut out = vec![0.0; rows * columns];
            let _ = source.read(name, 0..rows, &mut out);
            let _ = source.read_quantized(name, 0..rows);
        }
        let _ = source.digest(name);
    }
}

/// A safetensors file: its header, and rows of its tensors, one of which may be codes.
pub fn safetensors(bytes: &[u8]) {
    in_file("model.safetensors", bytes, |path| {
        let paths = [path.to_owned()];
        let codes = |scheme: &str| BTreeMap::from([("w".to_owned(), (scheme.parse::<Scheme>().expect("a scheme"), [2, 8]))]);
        for quantized in [BTreeMap::new(), codes("int4/g4/asymmetric"), codes("int3/g4/int6")] {
            if let Ok(shards) = Shards::open(&paths, &quantized) {
                read_all(&shards);
            }
        }
    });
}

/// A GGUF file: its header, rows of its tensors, and its tokenizer.
pub fn gguf(bytes: &[u8]) {
    let_panics_be_caught();
    in_file("model.gguf", bytes, |path| {
        if let Ok(file) = gguf::File::open(path) {
            read_all(&file);
            let _ = Tokenizer::from_gguf(path, file.metadata());
        }
    });
}

/// The bytes as f32, with the first few taken for choices.
struct Numbers<'b>(&'b [u8]);

impl Numbers<'_> {
    fn choice(&mut self, of: usize) -> usize {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        usize::from(*first) % of
    }

    fn number(&mut self) -> f32 {
        let (four, rest) = self.0.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        self.0 = rest;
        f32::from_le_bytes(*four)
    }

    fn some(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

/// Any numbers under any scale of any grid: codes lie in the grid, pack, unpack and decode.
pub fn grids(bytes: &[u8]) {
    let mut numbers = Numbers(bytes);
    let grid = GRIDS[numbers.choice(GRIDS.len())];
    let (scale, zero) = (numbers.number(), numbers.choice(256) as u8);
    let mut table = numbers.some(if grid.levels() == Levels::Learned { 1 << grid.bits() } else { 0 });
    table.retain(|entry| entry.is_finite());
    table.sort_by(f32::total_cmp);
    if grid.levels() == Levels::Learned && table.len() != 1 << grid.bits() {
        return;
    }
    let fit = Fit { scale, zero, table: &table };
    let values = numbers.some(bytes.len() / 4 + 1);
    let (mut codes, mut unpacked, mut decoded) = (vec![0; values.len()], vec![0; values.len()], vec![0.0; values.len()]);
    grid.encode(&values, fit, &mut codes);
    assert!(codes.iter().all(|code| u32::from(*code) < 1 << grid.bits()), "a code is outside of {}", grid.name());
    grid.error(&values, fit);
    grid.decode(&codes, fit, &mut decoded);
    let mut packed = Vec::new();
    grid.packing().pack(&codes, &mut packed);
    grid.packing().unpack(&packed, &mut unpacked);
    assert_eq!(codes, unpacked, "{}", grid.name());
    let (low, high) = values.iter().filter(|v| v.is_finite()).fold((0.0f32, 0.0f32), |(l, h), v| (l.min(*v), h.max(*v)));
    for symmetric in [true, false] {
        let fit = grid.cover(low, high, symmetric);
        grid.encode(&values, Fit { table: &table, ..fit }, &mut codes);
        assert!(codes.iter().all(|code| u32::from(*code) < 1 << grid.bits()), "a code is outside of {}", grid.name());
    }
}

/// Products of codes and attention, of any small shape and numbers: no access is out of bounds.
pub fn kernels(bytes: &[u8]) {
    let mut numbers = Numbers(bytes);
    let [rows, groups, tokens] = [1 + numbers.choice(9), 1 + numbers.choice(4), numbers.choice(5)];
    let scheme: Scheme = ["int4/g4", "int8/g4/f32", "int3/g4", "int2/g4"][numbers.choice(4)].parse().expect("a scheme");
    let columns = 4 * groups;
    let mut matrix = QuantizedTensor::empty(scheme, columns);
    for _ in 0..rows {
        let codes: Vec<u8> = (0..columns).map(|_| numbers.choice(1 << scheme.grid.bits()) as u8).collect();
        scheme.grid.packing().pack(&codes, &mut matrix.codes);
        matrix.scales.extend(numbers.some(groups));
        matrix.dims[0] += 1;
    }
    let rounding = Rounding::dynamic([8, 16][numbers.choice(2)]);
    let x = numbers.some(tokens * columns);
    let mut rounded = vec![0.0; x.len()];
    rounding.round(&x, columns, &mut rounded);
    if let (Some(matrix), Some(scales)) = (IntegerMatrix::new(&matrix), rounding.row_scales(&x, columns)) {
        assert_eq!(matrix.product(&rounded, &scales).len(), tokens * rows);
    }
    let [heads, group, seq, past, head] =
        [1 + numbers.choice(3), 1 + numbers.choice(3), 1 + numbers.choice(5), numbers.choice(5), 1 + numbers.choice(6)];
    let window = [None, Some(1 + numbers.choice(4))][numbers.choice(2)];
    let scores = Scores { scale: 0.5, softcap: [None, Some(3.0)][numbers.choice(2)], causal: numbers.choice(2) == 0, window };
    let mut tensor = |shape: (usize, usize, usize, usize)| {
        let values = numbers.some(shape.0 * shape.1 * shape.2 * shape.3);
        Tensor::from_vec(values, shape, &Processor::Cpu).expect("as many as the shape says")
    };
    let q = tensor((1, heads * group, seq, head));
    let [k, v] = [(); 2].map(|()| tensor((1, heads, past + seq, head)));
    let _ = attention(&q, &k, &v, &scores);
}

/// A checkpoint that another tool quantized: two bytes with the length of `config.json`, that file, then the weights. Every
/// weight is decoded.
pub fn quantized(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let Some((config, weights)) = rest.split_at_checked(length) else { return };
    in_file("config.json", config, |_| {});
    in_file("model.safetensors", weights, |path| {
        if let Ok(model) = Model::open(path.parent().expect("it is in a folder")) {
            read_all(&*model.source);
        }
    });
}

/// A `tokenizer.model`, and what it makes of a text.
pub fn pieces(bytes: &[u8]) {
    let_panics_be_caught();
    in_file("tokenizer.model", bytes, |path| {
        if let Ok(tokenizer) = Tokenizer::from_pieces(path, None) {
            let _ = tokenizer.encode("To be,  or not to be: 123 naïve ☃");
        }
    });
}

/// A `config.json` beside the weights of a small model.
pub fn config(bytes: &[u8]) {
    const WEIGHTS: &[u8] = include_bytes!("../../testdata/models/tiny-llama-yarn/model.safetensors");
    in_file("model.safetensors", WEIGHTS, |_| {});
    in_file("config.json", bytes, |path| {
        let _ = Model::open(path.parent().expect("it is in a folder"));
    });
}

/// A `tokenizer.json`, and a text in its tokens.
pub fn tokenizer(bytes: &[u8]) {
    let_panics_be_caught();
    in_file("tokenizer.json", bytes, |path| {
        if let Ok(tokenizer) = Tokenizer::open(path) {
            let _ = tokenizer.encode("To be, or not to be").map(|tokens| tokenizer.decode(&tokens));
            let _ = tokenizer.to_json();
        }
    });
}

/// The text form of a graph: what is read is what is printed.
pub fn ir(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(graph) = Graph::parse(text) {
        let printed = graph.to_string();
        let again = Graph::parse(&printed).expect("what we print we read");
        assert_eq!(printed, again.to_string());
    }
}

/// A recipe, up to its settings.
pub fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Recipe::parse(Path::new("recipe.toml"), text) {
        Ok(recipe) => drop(recipe.settings()),
        Err(error) => drop((error.render(false), error.to_json())),
    }
}

/// A file with that magic, whose digest is right.
fn sealed(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    [magic.as_slice(), &VERSION.to_le_bytes(), blake3::hash(body).as_bytes(), body].concat()
}

/// A plan file whose digest is right, and its text form.
pub fn plan(bytes: &[u8]) {
    let _ = Plan::from_bytes(bytes);
    if let Ok(plan) = Plan::from_bytes(&sealed(MAGIC, bytes)) {
        let _ = plan.to_string();
    }
}

/// A proof file whose digest is right.
pub fn proof(bytes: &[u8]) {
    let _ = Proof::from_bytes(bytes);
    let _ = Proof::from_bytes(&sealed(b"attarprf", bytes));
}

/// A device file.
pub fn device(bytes: &[u8]) {
    in_file("device.toml", bytes, |path| {
        let _ = Device::load(path);
    });
}

/// Buffers to place, as CSV.
pub fn memory(bytes: &[u8]) {
    let _ = read_csv(bytes);
}

/// The `model.onnx` of an artifact.
pub fn onnx(bytes: &[u8]) {
    let _ = attar_export::check_onnx(Path::new("model.onnx"), bytes);
}

/// A bundle for LiteRT-LM.
pub fn litert_lm(bytes: &[u8]) {
    let _ = attar_export::check_litert(Path::new("model.litertlm"), bytes);
}

/// The `openvino_model.xml` of an artifact.
pub fn openvino(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = attar_export::check_openvino(Path::new("openvino_model.xml"), text);
}
