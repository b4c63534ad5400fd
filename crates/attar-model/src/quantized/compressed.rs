//! compressed-tensors, the format of LLM Compressor and vLLM: `pack-quantized`, `int-quantized`, `float-quantized` and
//! `naive-quantized`.
//!
//! Codes are `[out, in]`: i8 or E4M3 in `weight`, or in `weight_packed`, `32 / bits` in each i32 along the inputs, lowest first, half
//! their range added. `weight_scale` is one for all, for a row, a group of a row (whose groups `weight_g_idx` may permute) or a
//! block. `weight_zero_point` has its shape, packed along the outputs where codes are packed.

use std::collections::BTreeMap;

use attar_tensor::Dtype;
use regex::Regex;

use super::{
    Files, Found, Layer, Method,
    fp8::block,
    gptq::group_size,
    parts::{Kind, Part},
    scaled::{Codes, Scaled, Tile, plain_codes},
};
use crate::{
    Result,
    settings::{Settings, short},
};

pub(super) static METHOD: Method = Method {
    names: &["compressed-tensors", "compressed_tensors"],
    title: "compressed-tensors",
    keys: &[
        "config_groups",
        "format",
        "quantization_status",
        "ignore",
        "kv_cache_scheme",
        "global_compression_ratio",
        "sparsity_config",
        "transform_config",
        "version",
        "run_compressed",
    ],
    find,
};

/// What `weights` of a group say.
struct Weights {
    bits: usize,
    float: bool,
    symmetric: bool,
    tile: Tile,
    named: String,
}

fn find(files: &Files<'_>, settings: &Settings<'_>) -> Result<Found> {
    for key in ["kv_cache_scheme", "transform_config"] {
        let set = settings.get(key).filter(|value| value.as_object().is_none_or(|map| !map.is_empty()));
        if let Some(value) = set {
            return Err(settings.wrong(key, short(value), "none: it is not read"));
        }
    }
    if let Some(sparse) = settings.inner("sparsity_config")? {
        let format = sparse.text("format")?.unwrap_or("dense");
        if format != "dense" {
            return Err(sparse.wrong("format", format!("`{format}`"), "`dense`: sparse formats are not read"));
        }
    }
    check_status(settings)?;
    let Some(groups) = settings.inner("config_groups")? else { return find_by_shapes(files, settings) };
    let names: Vec<&String> = groups.entries().map(|(name, _)| name).collect();
    let (mut layers, mut formats, mut activations) = (Layers::new(), Vec::new(), false);
    for (name, modules) in names.iter().zip(assigned(files, &groups, &names)?) {
        let group = groups.need(name, groups.inner(name)?, "an object")?;
        let weights = weights(&group)?;
        activations |= group.get("input_activations").is_some();
        let format = settings.need("format", group.text("format")?.or(settings.text("format")?), "the name of a format")?;
        layers.extend(match (format, weights.float, weights.bits) {
            ("pack-quantized", false, 4 | 8) => packed(files, &modules, &weights),
            ("int-quantized" | "naive-quantized", false, 8) => plain(files, &modules, &weights, Kind::Plain(Dtype::I8)),
            ("float-quantized" | "naive-quantized", true, 8) => plain(files, &modules, &weights, Kind::F8),
            (other, ..) => Err(settings.wrong(
                "format",
                format!("`{other}` of {}", weights.named),
                "`pack-quantized` of int4 or int8, `int-quantized` of int8 or `float-quantized` of fp8",
            )),
        }?);
        formats.push(weights.named);
    }
    formats.dedup();
    Ok(Found { format: formats.join(" and "), activations, layers })
}

/// The modules of each group. A group's `targets` are names of modules, patterns (`re:…`, from the start of the name), or the class
/// `Linear`, which is every module that no name or pattern of a group fits.
fn assigned(files: &Files<'_>, groups: &Settings<'_>, names: &[&String]) -> Result<Vec<Vec<String>>> {
    let all = files.modules(".weight_scale");
    if let [_] = names {
        return Ok(vec![all]);
    }
    let targets: Vec<Targets> =
        names.iter().map(|name| Targets::of(&groups.need(name, groups.inner(name)?, "an object")?)).collect::<Result<_>>()?;
    let mut assigned = vec![Vec::new(); names.len()];
    for module in all {
        let by_name = targets.iter().position(|targets| targets.name(&module));
        let group = by_name.or_else(|| targets.iter().position(|targets| targets.linear)).ok_or_else(|| {
            files.part(&format!("{module}.weight_scale"), "of no group", "a group of `config_groups` whose `targets` fit")
        })?;
        assigned[group].push(module);
    }
    Ok(assigned)
}

/// What the `targets` of a group fit.
struct Targets {
    names: Vec<String>,
    patterns: Vec<Regex>,
    linear: bool,
}

impl Targets {
    fn of(group: &Settings<'_>) -> Result<Targets> {
        const WANTED: &str = "a list of module names, patterns `re:…` and `Linear`";
        let mut targets = Targets { names: Vec::new(), patterns: Vec::new(), linear: false };
        let list = group.get("targets").and_then(serde_json::Value::as_array);
        for target in group.need("targets", list, WANTED)? {
            let wrong = || group.wrong("targets", short(target), WANTED);
            let text = target.as_str().ok_or_else(wrong)?;
            match text.strip_prefix("re:") {
                Some(pattern) => targets.patterns.push(Regex::new(&format!("^(?:{pattern})")).map_err(|_| wrong())?),
                None if text == "Linear" => targets.linear = true,
                None => targets.names.push(text.to_owned()),
            }
        }
        Ok(targets)
    }

    fn name(&self, module: &str) -> bool {
        self.names.iter().any(|name| name == module) || self.patterns.iter().any(|pattern| pattern.is_match(module))
    }
}

/// Where the configuration has no groups: what the stored shapes say of the first layer holds for all, or does not fit them.
fn find_by_shapes(files: &Files<'_>, settings: &Settings<'_>) -> Result<Found> {
    let format = settings.need("format", settings.text("format")?, "the name of a format")?;
    let (codes, kind) = match format {
        "pack-quantized" => (".weight_packed", Kind::Plain(Dtype::I32)),
        "int-quantized" => (".weight", Kind::Plain(Dtype::I8)),
        "float-quantized" => (".weight", Kind::F8),
        other => {
            let wanted = "`config_groups`, without which `pack-quantized`, `int-quantized` and `float-quantized` are read";
            return Err(settings.wrong("format", format!("`{other}`"), wanted));
        }
    };
    let modules = files.modules(".weight_scale");
    let module = modules.first().ok_or_else(|| settings.wrong("format", format!("`{format}`"), "a tensor `…weight_scale`"))?;
    let part = files.need(&format!("{module}{codes}"))?;
    files.check_kind(&part, kind)?;
    let [rows, stored] = files.matrix(&part)?;
    let columns = match codes {
        ".weight_packed" => shape_of(files, &files.need(&format!("{module}.weight_shape"))?)?[1],
        _ => stored,
    };
    let bits = [8, 4].into_iter().find(|bits| kind.bytes() == 1 || columns.div_ceil(32 / bits) == stored);
    let bits = bits.ok_or_else(|| files.part(&part.name, format!("{:?}", part.dims), "columns of 4 or 8 bits"))?;
    let scales = files.need(&format!("{module}.weight_scale"))?;
    let (tile, shared) = match scales.dims[..] {
        [] | [1] => (Tile::Tensor, "per tensor".to_owned()),
        [n, 1] if n == rows => (Tile::Row, "per row".into()),
        [n, groups] if n == rows && columns.is_multiple_of(groups) => {
            (Tile::Group(columns / groups), format!("g{}", columns / groups))
        }
        _ => return Err(files.part(&scales.name, format!("{:?}", scales.dims), "a scale for all, a row or a group of a row")),
    };
    let float = kind == Kind::F8;
    let symmetric = files.maybe(&format!("{module}.weight_zero_point"))?.is_none();
    let named = format!("{}{bits} {shared}", if float { "fp" } else { "int" });
    let weights = Weights { bits, float, symmetric, tile, named };
    let layers = if codes == ".weight" { plain(files, &modules, &weights, kind) } else { packed(files, &modules, &weights) }?;
    Ok(Found { format: weights.named, activations: false, layers })
}

/// Weights that are not compressed yet are stored as float, whatever the configuration says.
fn check_status(settings: &Settings<'_>) -> Result<()> {
    match settings.text("quantization_status")? {
        None | Some("compressed") => Ok(()),
        Some(other) => Err(settings.wrong("quantization_status", format!("`{other}`"), "`compressed`")),
    }
}

fn weights(group: &Settings<'_>) -> Result<Weights> {
    let weights = group.need("weights", group.inner("weights")?, "an object")?;
    let bits = weights.need_size("num_bits")?;
    let float = match weights.text("type")? {
        Some("float") => true,
        None | Some("int") => false,
        Some(other) => return Err(weights.wrong("type", format!("`{other}`"), "`int` or `float`")),
    };
    let grouped = || weights.need("group_size", group_size(&weights)?, "a whole number of at least 1");
    let strategy = weights.text("strategy")?;
    let implied =
        if weights.get("group_size").and_then(serde_json::Value::as_i64).is_some_and(|n| n > 0) { "group" } else { "tensor" };
    let (tile, part) = match strategy.unwrap_or(implied) {
        "tensor" => (Tile::Tensor, "per tensor".into()),
        "channel" => (Tile::Row, "per row".into()),
        "group" => grouped().map(|group| (Tile::Group(group), format!("g{group}")))?,
        "block" => {
            let sides = weights.need("block_structure", block(&weights, "block_structure")?, "two whole numbers")?;
            (Tile::Block(sides), format!("{}x{}", sides[0], sides[1]))
        }
        other => return Err(weights.wrong("strategy", format!("`{other}`"), "`tensor`, `channel`, `group` or `block`")),
    };
    let kind = if float { "fp" } else { "int" };
    let symmetric = weights.truth("symmetric")?.unwrap_or(true);
    Ok(Weights { bits, float, symmetric, tile, named: format!("{kind}{bits} {part}") })
}

type Layers = BTreeMap<String, Box<dyn Layer>>;

fn packed(files: &Files<'_>, modules: &[String], weights: &Weights) -> Result<Layers> {
    let each = modules.iter().map(|module| {
        let part = |name: &str| files.need(&format!("{module}.{name}"));
        let (codes, shape) = (part("weight_packed")?, part("weight_shape")?);
        let dims = shape_of(files, &shape)?;
        files.words(&codes)?;
        files.check_dims(&codes, &[dims[0], dims[1].div_ceil(32 / weights.bits)])?;
        let mut layer = layer(files, module, weights, dims, (Codes::Packed(weights.bits), codes))?;
        layer.unused.push(shape);
        Ok((format!("{module}.weight"), Box::new(layer) as Box<dyn Layer>))
    });
    each.collect()
}

/// The two numbers in `weight_shape`.
fn shape_of(files: &Files<'_>, shape: &Part) -> Result<[usize; 2]> {
    files.check_dims(shape, &[2])?;
    let dims = shape.numbers(files.source, 0..2)?;
    match dims.iter().all(|n| (1.0..=16_777_216.0).contains(n)) {
        true => Ok([dims[0] as usize, dims[1] as usize]),
        false => Err(files.part(&shape.name, format!("{dims:?}"), "rows and columns from 1 to 16777216")),
    }
}

fn plain(files: &Files<'_>, modules: &[String], weights: &Weights, kind: Kind) -> Result<Layers> {
    let each = modules.iter().map(|module| {
        let codes = files.need(&format!("{module}.weight"))?;
        let dims = plain_codes(files, &codes, kind)?;
        let layer = layer(files, module, weights, dims, (Codes::Plain, codes))?;
        Ok((format!("{module}.weight"), Box::new(layer) as Box<dyn Layer>))
    });
    each.collect()
}

fn layer(files: &Files<'_>, module: &str, weights: &Weights, dims: [usize; 2], codes: (Codes, Part)) -> Result<Scaled> {
    let part = |name: &str| files.maybe(&format!("{module}.{name}"));
    let scales = files.need(&format!("{module}.weight_scale"))?;
    let (zeros, index) = (part("weight_zero_point")?, part("weight_g_idx")?);
    if zeros.is_none() && !weights.symmetric {
        return Err(files.part(&format!("{module}.weight_zero_point"), "missing", "zeros: `symmetric` is false"));
    }
    // A symmetric layer may store zeros, each 0; another number would be a weight that is read as another.
    if let Some(zeros) = zeros.as_ref().filter(|_| weights.symmetric) {
        let all = zeros.numbers(files.source, 0..zeros.dims.iter().product())?;
        if all.iter().any(|zero| *zero != 0.0) {
            return Err(files.part(&zeros.name, "a number other than 0", "zeros only: `symmetric` is true"));
        }
    }
    let (zeros, idle) = if weights.symmetric { (None, zeros) } else { (zeros, None) };
    let mut layer = Scaled::new(files, dims, weights.tile, codes, scales, zeros)?;
    layer.index = index.map(|part| files.group_index(&part, dims[1], layer.across()).map(|index| (part, index))).transpose()?;
    layer.unused.extend(idle);
    for name in ["input_scale", "input_zero_point", "output_scale", "output_zero_point"] {
        layer.unused.extend(part(name)?);
    }
    Ok(layer)
}
