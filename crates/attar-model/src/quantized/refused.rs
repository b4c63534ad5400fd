//! Methods that are known and not read, each with its name for people.

use crate::{Error, settings::Settings};

/// `quant_method` and the name for people.
static KNOWN: &[(&str, &str)] = &[
    ("bitsandbytes", "bitsandbytes"),
    ("mlx", "MLX"),
    ("hqq", "HQQ"),
    ("eetq", "EETQ"),
    ("aqlm", "AQLM"),
    ("quip", "QuIP#"),
    ("vptq", "VPTQ"),
    ("spqr", "SpQR"),
    ("torchao", "torchao"),
    ("quanto", "Quanto"),
    ("fbgemm_fp8", "FBGEMM FP8"),
    ("mxfp4", "MXFP4"),
    ("modelopt", "ModelOpt"),
    ("quark", "Quark"),
    ("bitnet", "BitNet"),
    ("higgs", "HIGGS"),
    ("exl2", "EXL2"),
    ("exl3", "EXL3"),
    ("marlin", "Marlin"),
    ("squeezellm", "SqueezeLLM"),
    ("auto-round", "AutoRound"),
    ("fp_quant", "FP-Quant"),
    ("sinq", "SINQ"),
];

/// The error for a method that is not read.
pub(super) fn by_name(settings: &Settings<'_>, name: &str) -> Error {
    let title = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, title)| *title);
    Error::AlreadyQuantized { path: settings.path().into(), method: title.unwrap_or(name).into(), known: title.is_some() }
}
