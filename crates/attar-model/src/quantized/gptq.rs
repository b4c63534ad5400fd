//! GPTQ as AutoGPTQ and GPTQModel store it (Frantar et al., arXiv 2210.17323, is the algorithm).
//!
//! `qweight` is i32 `[in * bits / 32, out]`: each column is a stream of codes along the inputs. `qzeros` is i32
//! `[groups, out * bits / 32]`, each row a stream along the outputs, stored less one unless `checkpoint_format` is `gptq_v2`;
//! as in AutoGPTQ, one is added modulo `2^bits`. `scales` is `[groups, out]`. `g_idx`, where it is there, gives the group of
//! every input; else groups follow each other.

use std::{collections::BTreeMap, ops::Range};

use attar_tensor::{Dtype, Source};

use super::{
    Files, Found, Layer, Method,
    parts::{Part, unpack},
};
use crate::{Result, settings::Settings};

pub(super) static METHOD: Method = Method {
    names: &["gptq"],
    title: "GPTQ",
    keys: &[
        "bits",
        "group_size",
        "desc_act",
        "sym",
        "checkpoint_format",
        "format",
        "pack_dtype",
        "lm_head",
        "dynamic",
        "meta",
        // How it was made, or which kernel runs it.
        "damp*",
        "static_groups",
        "true_sequential",
        "model_name_or_path",
        "model_file_base_name",
        "is_marlin_format",
        "quantizer",
        "exllama_config",
        "use_exllama",
        "use_cuda_fp16",
        "max_input_length",
        "cache_block_outputs",
        "modules_in_block_to_quantize",
        "module_name_preceding_first_block",
        "block_name_to_quantize",
        "dataset",
        "model_seqlen",
        "pad_token_id",
        "batch_size",
        "tokenizer",
        "backend",
        "hyb_act",
        "mse",
        "act_group_aware",
    ],
    find,
};

fn find(files: &Files<'_>, settings: &Settings<'_>) -> Result<Found> {
    let bits = settings.need_size("bits")?;
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(settings.wrong("bits", bits.to_string(), "2, 3, 4 or 8"));
    }
    if settings.truth("is_marlin_format")? == Some(true) {
        return Err(settings.wrong("is_marlin_format", "true", "`false`: the layout of a GPU kernel is not read"));
    }
    let format = settings.text("checkpoint_format")?.or(settings.text("format")?).unwrap_or("gptq");
    let add = match format {
        "gptq" => 1,
        "gptq_v2" => 0,
        other => return Err(settings.wrong("checkpoint_format", format!("`{other}`"), "`gptq` or `gptq_v2`")),
    };
    if settings.text("pack_dtype")?.is_some_and(|dtype| dtype != "int32") {
        return Err(settings.wrong("pack_dtype", "another type", "`int32`"));
    }
    if settings.inner("dynamic")?.is_some_and(|dynamic| dynamic.entries().next().is_some()) {
        return Err(settings.wrong("dynamic", "set", "none: one format for all layers"));
    }
    let group = group_size(settings)?;
    let layers = files.modules(".qweight").into_iter().map(|module| {
        let layer = Gptq::open(files, &module, bits, group, add)?;
        Ok((format!("{module}.weight"), Box::new(layer) as Box<dyn Layer>))
    });
    let format = format!("int{bits} {}", group.map_or("per row".into(), |group| format!("g{group}")));
    Ok(Found { format, activations: false, layers: layers.collect::<Result<BTreeMap<_, _>>>()? })
}

/// Inputs that share a scale; none for all of them.
pub(super) fn group_size(settings: &Settings<'_>) -> Result<Option<usize>> {
    if settings.get("group_size").and_then(serde_json::Value::as_i64) == Some(-1) {
        return Ok(None);
    }
    settings.need("group_size", settings.size("group_size")?, "-1 or a whole number of at least 1").map(Some)
}

struct Gptq {
    dims: [usize; 2],
    dtype: Dtype,
    bits: usize,
    group: usize,
    /// What stored zeros lack.
    add: i32,
    codes: Part,
    zeros: Part,
    scales: Part,
    /// The tensor and its content.
    index: Option<(Part, Vec<u32>)>,
}

impl Gptq {
    fn open(files: &Files<'_>, module: &str, bits: usize, group: Option<usize>, add: i32) -> Result<Gptq> {
        let part = |name: &str| files.need(&format!("{module}.{name}"));
        let (codes, zeros, scales) = (part("qweight")?, part("qzeros")?, part("scales")?);
        let [words, rows] = files.words(&codes)?;
        if !(words * 32).is_multiple_of(bits) || !(rows * bits).is_multiple_of(32) {
            let wanted = format!("whole words of {bits}-bit codes along inputs and outputs");
            return Err(files.part(&codes.name, format!("{:?}", codes.dims), wanted));
        }
        let columns = words * 32 / bits;
        let group = group.unwrap_or(columns).min(columns);
        let groups = columns.div_ceil(group);
        files.words(&zeros)?;
        files.check_dims(&zeros, &[groups, rows * bits / 32])?;
        files.check_dims(&scales, &[groups, rows])?;
        let index = files.maybe(&format!("{module}.g_idx"))?;
        let index = index.map(|part| files.group_index(&part, columns, groups).map(|index| (part, index))).transpose()?;
        let dtype = files.scale_dtype(&scales)?;
        Ok(Gptq { dims: [rows, columns], dtype, bits, group, add, codes, zeros, scales, index })
    }
}

impl Layer for Gptq {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn parts(&self) -> Vec<&Part> {
        let index = self.index.as_ref().map(|(part, _)| part);
        [Some(&self.codes), Some(&self.zeros), Some(&self.scales), index].into_iter().flatten().collect()
    }

    fn read(&self, source: &dyn Source, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        let (bits, n, columns) = (self.bits, rows.len(), self.dims[1]);
        let codes = self.codes.columns(source, rows.clone())?;
        let scales = self.scales.float_columns(source, rows.clone())?;
        let words = rows.start * bits / 32..(rows.end * bits).div_ceil(32);
        let zeros = self.zeros.columns(source, words.clone())?;
        for (i, out) in out.chunks_exact_mut(columns).enumerate() {
            for (column, out) in out.iter_mut().enumerate() {
                let group = self.index.as_ref().map_or(column / self.group, |(_, index)| index[column] as usize);
                let code = unpack(column, bits, |word| codes[word * n + i]);
                let zero = unpack(rows.start + i, bits, |word| zeros[group * words.len() + word - words.start]);
                let zero = (zero + self.add) & ((1 << bits) - 1);
                *out = self.dtype.round((code - zero) as f32 * scales[group * n + i]);
            }
        }
        Ok(())
    }
}
