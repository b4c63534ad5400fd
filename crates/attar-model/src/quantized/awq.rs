//! AWQ as AutoAWQ stores it, version `gemm` (Lin et al., arXiv 2306.00978, is the algorithm).
//!
//! `qweight` is i32 `[in, out / 8]`, `qzeros` i32 `[groups, out / 8]`, `scales` `[groups, out]`. The eight 4-bit codes of a word
//! belong to eight neighbouring outputs in the order 0, 2, 4, 6, 1, 3, 5, 7.

use std::{collections::BTreeMap, ops::Range};

use attar_tensor::{Dtype, Source};

use super::{Files, Found, Layer, Method, gptq::group_size, parts::Part};
use crate::{Result, settings::Settings};

pub(super) static METHOD: Method = Method {
    names: &["awq"],
    title: "AWQ",
    keys: &[
        "bits",
        "w_bit",
        "group_size",
        "q_group_size",
        "zero_point",
        "version",
        "modules_to_not_convert",
        // Which kernel runs it.
        "backend",
        "do_fuse",
        "fuse_max_seq_len",
        "modules_to_fuse",
        "exllama_config",
    ],
    find,
};

/// Where in a word the code of each of eight outputs is.
const PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

fn find(files: &Files<'_>, settings: &Settings<'_>) -> Result<Found> {
    let bits = settings.size("bits")?.or(settings.size("w_bit")?);
    if settings.need("bits", bits, "4")? != 4 {
        return Err(settings.wrong("bits", bits.unwrap_or(0).to_string(), "4"));
    }
    let version = settings.text("version")?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(settings.wrong("version", format!("`{version}`"), "`gemm`"));
    }
    if settings.truth("zero_point")? == Some(false) {
        return Err(settings.wrong("zero_point", "false", "`true`"));
    }
    let group = match settings.size("q_group_size")? {
        Some(group) => Some(group),
        None => group_size(settings)?,
    };
    let layers = files
        .modules(".qweight")
        .into_iter()
        .map(|module| Ok((format!("{module}.weight"), Box::new(Awq::open(files, &module, group)?) as Box<dyn Layer>)));
    let format = format!("int4 {}", group.map_or("per row".into(), |group| format!("g{group}")));
    Ok(Found { format, activations: false, layers: layers.collect::<Result<BTreeMap<_, _>>>()? })
}

struct Awq {
    dims: [usize; 2],
    dtype: Dtype,
    group: usize,
    codes: Part,
    zeros: Part,
    scales: Part,
}

impl Awq {
    fn open(files: &Files<'_>, module: &str, group: Option<usize>) -> Result<Awq> {
        let part = |name: &str| files.need(&format!("{module}.{name}"));
        let (codes, zeros, scales) = (part("qweight")?, part("qzeros")?, part("scales")?);
        let [columns, words] = files.words(&codes)?;
        let group = group.unwrap_or(columns);
        if !columns.is_multiple_of(group) {
            return Err(files.part(&codes.name, format!("{:?}", codes.dims), format!("whole groups of {group} inputs")));
        }
        files.words(&zeros)?;
        files.check_dims(&zeros, &[columns / group, words])?;
        files.check_dims(&scales, &[columns / group, words * 8])?;
        let dtype = files.scale_dtype(&scales)?;
        Ok(Awq { dims: [words * 8, columns], dtype, group, codes, zeros, scales })
    }
}

impl Layer for Awq {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn parts(&self) -> Vec<&Part> {
        vec![&self.codes, &self.zeros, &self.scales]
    }

    fn read(&self, source: &dyn Source, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        let (n, columns) = (rows.len(), self.dims[1]);
        let words = rows.start / 8..rows.end.div_ceil(8);
        let codes = self.codes.columns(source, words.clone())?;
        let zeros = self.zeros.columns(source, words.clone())?;
        let scales = self.scales.float_columns(source, rows.clone())?;
        for (i, out) in out.chunks_exact_mut(columns).enumerate() {
            let row = rows.start + i;
            let value = |words_of: &[u32], line: usize| {
                (words_of[line * words.len() + row / 8 - words.start] >> (4 * PLACE[row % 8]) & 15) as i32
            };
            for (column, out) in out.iter_mut().enumerate() {
                let group = column / self.group;
                *out = self.dtype.round((value(&codes, column) - value(&zeros, group)) as f32 * scales[group * n + i]);
            }
        }
        Ok(())
    }
}
