//! FP8 as DeepSeek-V3 and Qwen3 store it (DeepSeek-V3 technical report, arXiv 2412.19437, section 3.3): `weight` is E4M3
//! `[out, in]`, and `weight_scale_inv` multiplies each block of 128 x 128. Without `weight_block_size` there is one scale in
//! all.

use std::collections::BTreeMap;

use super::{
    Files, Found, Layer, Method,
    parts::Kind,
    scaled::{Codes, Scaled, Tile, plain_codes},
};
use crate::{
    Result,
    settings::{Settings, short},
};

pub(super) static METHOD: Method = Method {
    names: &["fp8"],
    title: "FP8",
    keys: &[
        "fmt",
        "weight_block_size",
        "activation_scheme",
        "modules_to_not_convert",
        "ignored_layers",
        // transformers asks for them when it makes a checkpoint.
        "dequantize",
        "scale_fmt",
    ],
    find,
};

fn find(files: &Files<'_>, settings: &Settings<'_>) -> Result<Found> {
    if let Some(format) = settings.text("fmt")?.filter(|format| *format != "e4m3") {
        return Err(settings.wrong("fmt", format!("`{format}`"), "`e4m3`"));
    }
    if let Some(format) = settings.text("scale_fmt")?.filter(|format| *format != "float") {
        return Err(settings.wrong("scale_fmt", format!("`{format}`"), "`float`"));
    }
    let (tile, format) = match block(settings, "weight_block_size")? {
        Some([high, wide]) => (Tile::Block([high, wide]), format!("fp8 {high}x{wide}")),
        None => (Tile::Tensor, "fp8 per tensor".into()),
    };
    let mut layers = BTreeMap::new();
    for end in [".weight_scale_inv", ".weight_scale"] {
        for module in files.modules(end) {
            let name = format!("{module}.weight");
            let (codes, scales) = (files.need(&name)?, files.need(&format!("{module}{end}"))?);
            let dims = plain_codes(files, &codes, Kind::F8)?;
            let per_row = matches!(tile, Tile::Tensor) && scales.dims.first() == Some(&dims[0]) && dims[0] > 1;
            let tile = if per_row { Tile::Row } else { tile };
            let mut layer = Scaled::new(files, dims, tile, (Codes::Plain, codes), scales, None)?;
            for of in ["input_scale", "activation_scale"] {
                layer.unused.extend(files.maybe(&format!("{module}.{of}"))?);
            }
            if layers.insert(name.clone(), Box::new(layer) as Box<dyn Layer>).is_some() {
                return Err(files.part(
                    &format!("{module}{end}"),
                    "a second scale",
                    "one of `weight_scale_inv` and `weight_scale`",
                ));
            }
        }
    }
    Ok(Found { format, activations: true, layers })
}

/// Rows and columns of a block.
pub(super) fn block(settings: &Settings<'_>, key: &str) -> Result<Option<[usize; 2]>> {
    let Some(value) = settings.get(key) else { return Ok(None) };
    let side = |n: &serde_json::Value| n.as_u64().filter(|n| (1..=1 << 24).contains(n)).map(|n| n as usize);
    let sides: Option<Vec<usize>> = value.as_array().and_then(|sides| sides.iter().map(side).collect());
    match sides.as_deref() {
        Some([high, wide]) => Ok(Some([*high, *wide])),
        _ => Err(settings.wrong(key, short(value), "two whole numbers of at least 1")),
    }
}
