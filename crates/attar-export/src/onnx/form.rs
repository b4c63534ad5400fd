//! The forms in which a weight can be stored: what is arranged how, and which codes are shifted by what.

use attar_tensor::{Dtype, Granularity, Levels, Minifloat, ScaleFormat, Scheme};

use super::proto::Element;
pub(super) use crate::layout::is_even;

/// How numbers are arranged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// Values, as in the graph.
    Plain(Dtype),
    /// Codes `[in, out]`, scales and zeros `[groups, out]`: what a `MatMul` reads.
    Columns(Scheme, Sign),
    /// The same in blocks whose scales are codes without a sign under an f32 a row: what QNN calls low-power blockwise quantization (LPBQ). Of rows with one
    /// scale, all blocks of a row have [`EVEN`] of it.
    Blocks(Scheme),
    /// Codes, scales and zeros by rows, codes of less than 8 bits two per byte: what a `Gather` reads.
    Rows(Scheme),
    /// Codes by rows, every group whole, zeros packed by rows: what `MatMulNBits` and `GatherBlockQuantized` want.
    Blobs(Scheme, Scales),
    /// Codes by rows, every group whole, that say where in a table a value is.
    Table(Scheme),
}

/// How integer codes of [`Form::Columns`] are stored. Those of an asymmetric scheme are always unsigned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sign {
    /// In two's complement, without a zero point.
    Signed,
    /// With a stored zero point, for products in integers: see [`super::integer`].
    Unsigned,
}

/// How scales of [`Form::Blobs`] are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scales {
    /// As the scheme has them, perhaps as codes.
    Own,
    /// As f32: OpenVINO's `GatherBlockQuantized` takes constants only, and no `Cast` of one.
    F32,
}

/// Width of the integers that hold codes of `scheme`.
pub(super) fn stored_bits(scheme: &Scheme) -> u32 {
    if scheme.grid.bits() > 4 { 8 } else { 4 }
}

/// Width of the integers that hold codes that are looked up: groups start on a byte.
pub(super) fn table_bits(scheme: &Scheme, columns: usize) -> u32 {
    if scheme.group(columns).is_multiple_of(2) { stored_bits(scheme) } else { 8 }
}

/// The element type whose bits the codes are, if there is one.
pub(super) fn float(scheme: &Scheme) -> Option<Element> {
    let Levels::Table(values) = scheme.grid.levels() else { return None };
    let same = |float: Minifloat| values.iter().zip(0u8..=255).all(|(v, c)| v.to_bits() == float.value(c).to_bits());
    let known = [(Minifloat::E4M3, Element::F8_E4M3), (Minifloat::E5M2, Element::F8_E5M2)];
    known.into_iter().find(|(float, _)| values.len() == 256 && same(*float)).map(|(_, element)| element)
}

/// The code of every scale of blocks that are all alike: dividing by it and multiplying with it are exact.
pub(super) const EVEN: u8 = 8;

/// Columns of a block of [`Form::Blocks`].
pub(super) fn block(scheme: &Scheme, columns: usize) -> usize {
    match scheme.granularity {
        Granularity::Group(size) => size,
        _ => [128, 64, 32].into_iter().find(|size| columns.is_multiple_of(*size)).unwrap_or(columns),
    }
}

/// Whether rows with one f32 scale can be such blocks.
fn is_even_lpbq(scheme: &Scheme, columns: usize) -> bool {
    let one = scheme.granularity == Granularity::Row && scheme.scale == ScaleFormat::F32 && scheme.has_positive_scales();
    one && scheme.is_symmetric() && is_even(scheme) && stored_bits(scheme) == 4 && columns.is_multiple_of(32)
}

impl Sign {
    /// What a scheme asks for by itself.
    pub(super) fn of(scheme: &Scheme) -> Sign {
        if scheme.is_symmetric() { Sign::Signed } else { Sign::Unsigned }
    }
}

impl Form {
    /// The same with unsigned codes.
    pub(super) fn unsigned(self) -> Form {
        match self {
            Form::Columns(scheme, _) => Form::Columns(scheme, Sign::Unsigned),
            other => other,
        }
    }

    /// The same for Hexagon, of rows of so many `columns`; `wide` where all that they are multiplied with has 16 bits, and there is no bias.
    ///
    /// Its products lose the lower 8 bits of their sums, always downwards. Those with blocks lose as much of sums that count in smaller units: so rows
    /// of one scale are blocks, too.
    pub(super) fn on_device(self, columns: usize, wide: bool) -> Form {
        match self {
            Form::Columns(scheme, Sign::Signed) if is_lpbq(&scheme) => Form::Blocks(scheme),
            Form::Columns(scheme, Sign::Signed) if wide && is_even_lpbq(&scheme, columns) => Form::Blocks(scheme),
            other => other,
        }
    }

    /// Whether zero points are stored.
    pub(super) fn has_zeros(self) -> bool {
        match self {
            Form::Plain(_) | Form::Blocks(_) => false,
            Form::Columns(_, sign) => sign == Sign::Unsigned,
            Form::Rows(s) | Form::Blobs(s, _) | Form::Table(s) => !s.is_symmetric(),
        }
    }

    /// Whether codes are in two's complement.
    pub(super) fn is_signed(self) -> bool {
        match self {
            Form::Columns(s, sign) => sign == Sign::Signed && is_even(&s),
            Form::Blocks(_) => true,
            Form::Rows(s) => s.is_symmetric() && stored_bits(&s) == 8,
            Form::Blobs(..) | Form::Table(_) | Form::Plain(_) => false,
        }
    }

    /// What is added to a code, modulo the stored width, so that the code that means zero is where the form has it.
    pub(super) fn shift(self) -> u8 {
        match self {
            Form::Columns(s, _) | Form::Blocks(s) | Form::Rows(s) | Form::Blobs(s, _) if s.is_symmetric() && is_even(&s) => {
                let zero = if self.is_signed() { 0 } else { 1 << (stored_bits(&s) - 1) };
                u8::wrapping_sub(zero, s.grid.middle())
            }
            _ => 0,
        }
    }

    pub(super) fn in_words(self) -> String {
        let (scheme, what) = match self {
            Form::Plain(dtype) => return dtype.to_string(),
            Form::Columns(s, _) | Form::Blocks(s) => (s, "transposed"),
            Form::Rows(s) => (s, "by rows"),
            Form::Blobs(s, _) => (s, "in blobs"),
            Form::Table(s) => (s, "by rows, looked up"),
        };
        let unit = if scheme.entries() == 1 { "scale" } else { "table" };
        let shared = match scheme.granularity {
            Granularity::Tensor => format!("one {unit}"),
            Granularity::Row => format!("a {unit} a row"),
            Granularity::Group(n) => format!("blocks of {n} along inputs"),
        };
        let (bits, stored) = (scheme.grid.bits(), stored_bits(&scheme));
        let sign = if self.is_signed() { "int" } else { "uint" };
        let element = match (self, float(&scheme)) {
            (Form::Columns(..), Some(_)) => scheme.grid.name().into(),
            _ => format!("{sign}{stored}"),
        };
        let room = if bits == stored { String::new() } else { format!("; {bits}-bit levels in {stored}-bit storage") };
        let scales = match self {
            Form::Blobs(_, Scales::F32) => "f32 scales".into(),
            Form::Blocks(s) if s.granularity == Granularity::Row => "f32 scales, over even blocks".into(),
            Form::Blocks(_) => "int4 scales in 8 bits under an f32 a row".into(),
            _ => scales_in_words(&scheme),
        };
        format!("{element} {what}, {shared}, {scales}{room}")
    }

    /// The number format of its scales in the file, if it has codes of this scheme.
    pub(super) fn scale_format(self, scheme: &Scheme) -> ScaleFormat {
        match self {
            Form::Blobs(_, Scales::F32) => ScaleFormat::F32,
            _ => scheme.scale,
        }
    }
}

/// Whether codes are of so few bits, and scales codes without signs under one super scale a row.
fn is_lpbq(scheme: &Scheme) -> bool {
    let blocks = matches!(scheme.granularity, Granularity::Group(_)) && scheme.scale == ScaleFormat::Int4;
    blocks && matches!(scheme.grid.bits(), 3 | 4) && is_even(scheme) && scheme.is_symmetric() && scheme.has_positive_scales()
}

fn scales_in_words(scheme: &Scheme) -> String {
    match scheme.scale {
        format if scheme.entries() > 1 => format!("{} entries in {format}", scheme.entries()),
        format @ (ScaleFormat::Int8 | ScaleFormat::Int6 | ScaleFormat::Int4) => {
            format!("{format} scales in 8 bits under an f16 a row")
        }
        ScaleFormat::E8m0 => "e8m0 scales as bf16".into(),
        ScaleFormat::E4m3 => "e4m3 scales under one f32".into(),
        format => format!("{format} scales"),
    }
}
