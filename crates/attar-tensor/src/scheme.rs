//! Quantization schemes: grid, granularity, and storage of scales and zeros.

use std::{fmt, str::FromStr};

use crate::{BlockFormat, Dtype, Error, Fit, Grid, Levels, Result, ScaleFormat, Scales, error::nearest, grid, pack::row_bytes};

/// The weights that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale per tensor.
    Tensor,
    /// A row: one output channel of a linear layer.
    Row,
    /// That many neighbours in a row.
    Group(usize),
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Granularity::Tensor => f.write_str("tensor"),
            Granularity::Row => f.write_str("row"),
            Granularity::Group(n) => n.fmt(f),
        }
    }
}

/// What to do when a group does not divide a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Tail {
    /// Report an error.
    #[default]
    Error,
    /// The last group of each row is shorter.
    Short,
}

/// Whether a group stores a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ZeroPoint {
    /// No: the middle code is zero.
    #[default]
    Symmetric,
    /// One code per group.
    Asymmetric,
}

/// How a tensor is quantized. Text form: `int4/g64`, `int8/row/asymmetric`,
/// `int3/g32/f32/short`, `int4/g32/int6`.
#[derive(Clone, Copy)]
pub struct Scheme {
    /// Number format of the weights.
    pub grid: &'static dyn Grid,
    /// The weights that share a scale.
    pub granularity: Granularity,
    /// Whether zeros are stored.
    pub zero: ZeroPoint,
    /// How scales are stored.
    pub scale: ScaleFormat,
    /// Whether all scales are positive, as some runtimes need. Scales with signs use the outermost code of every symmetric group.
    pub positive: bool,
    /// What to do with an incomplete group at the end of a row.
    pub tail: Tail,
}

impl Scheme {
    /// Codes of `grid` with everything else as the grid requires, or as it usually is: symmetric groups of 64, scales in f16.
    pub fn of(grid: &'static dyn Grid) -> Scheme {
        let requires = grid.requires();
        let scale = if let Scales::Exactly(format) = requires.scale { format } else { ScaleFormat::F16 };
        let granularity = Granularity::Group(requires.group.unwrap_or(64));
        Scheme { grid, granularity, zero: ZeroPoint::Symmetric, scale, positive: false, tail: Tail::Error }
    }

    /// Groups per row of `columns` values.
    pub fn groups(&self, columns: usize) -> usize {
        match self.granularity {
            Granularity::Group(n) => columns.div_ceil(n),
            Granularity::Row | Granularity::Tensor => 1,
        }
    }

    /// Values per group of a row of `columns` values.
    pub fn group(&self, columns: usize) -> usize {
        match self.granularity {
            Granularity::Group(n) => n.min(columns),
            Granularity::Row | Granularity::Tensor => columns,
        }
    }

    /// Whether rows of `columns` values can be cut into groups.
    pub fn fit(&self, columns: usize) -> Result<()> {
        match self.granularity {
            Granularity::Group(group) if self.tail == Tail::Error && !columns.is_multiple_of(group) => {
                Err(Error::GroupDoesNotDivide { group, columns })
            }
            _ => Ok(()),
        }
    }

    /// Scales of a `[rows, columns]` tensor, or entries of its tables.
    pub fn scale_count(&self, [rows, columns]: [usize; 2]) -> usize {
        let [rows, groups] = self.scale_dims([rows, columns]);
        rows * groups
    }

    /// Numbers that a group has for a scale: one, or the entries of its learned table.
    pub fn entries(&self) -> usize {
        if self.grid.levels() == Levels::Learned { 1 << self.grid.bits() } else { 1 }
    }

    /// Rows and columns of the scales of a `[rows, columns]` tensor, or of the entries of its tables.
    pub fn scale_dims(&self, [rows, columns]: [usize; 2]) -> [usize; 2] {
        match self.granularity {
            Granularity::Tensor => [1, self.entries()],
            _ => [rows, self.groups(columns) * self.entries()],
        }
    }

    /// The scale and zero that cover values from `low` to `high`.
    pub fn cover(&self, low: f32, high: f32) -> Fit<'static> {
        if !self.positive {
            return self.grid.cover(low, high, self.is_symmetric());
        }
        let middle = self.grid.middle();
        let scale = (high / f32::from(middle - 1)).max(-low / f32::from(middle));
        Fit { scale: scale.max(0.0), zero: middle, table: &[] }
    }

    /// Signs of the covering scale that a search looks at.
    pub fn signs(&self) -> &'static [f32] {
        if self.positive { &[1.0] } else { self.grid.signs() }
    }

    /// Whether no scale can be negative.
    pub fn has_positive_scales(&self) -> bool {
        self.positive || !self.is_symmetric() || (self.grid.levels() != Levels::Even && self.grid.signs().len() == 1)
    }

    /// Checks that the choices are consistent, independent of any tensor.
    pub fn check(&self) -> Result<()> {
        self.check_grid()?;
        let not = |setting, found: &str, wanted: &str| self.contradiction(self.scale.name(), setting, found, wanted);
        match (self.scale.supers(), self.granularity) {
            (_, Granularity::Tensor) if self.scale.plain().is_none() => not("group", "tensor", "a number of columns"),
            (Some((_, Granularity::Row)), Granularity::Row) => not("group", "row", "a number of columns"),
            _ if self.grid.levels() == Levels::Even && !self.scale.is_signed() && self.is_symmetric() => {
                not("asymmetric", "false", "true: symmetric scales have signs")
            }
            _ => Ok(()),
        }
    }

    /// Checks the requirements of the grid.
    fn check_grid(&self) -> Result<()> {
        let requires = self.grid.requires();
        let not = |setting, found: &str, wanted: &str| self.contradiction(self.grid.name(), setting, found, wanted);
        if let Some(group) = requires.group.filter(|group| self.granularity != Granularity::Group(*group)) {
            return not("group", &self.granularity.to_string(), &group.to_string());
        }
        if requires.symmetric && !self.is_symmetric() {
            return not("asymmetric", "true", "false: it has no zero to move");
        }
        if self.positive && (self.grid.levels() != Levels::Even || !self.is_symmetric()) {
            let what = if self.is_symmetric() { self.grid.name() } else { "asymmetric" };
            return self.contradiction(what, "positive_scales", "true", "false: it is for symmetric integers");
        }
        match requires.scale {
            Scales::Exactly(format) if format != self.scale => not("scale_dtype", self.scale.name(), format.name()),
            Scales::Plain if self.scale.plain().is_none() => not("scale_dtype", self.scale.name(), "f16, bf16 or f32"),
            _ => Ok(()),
        }
    }

    fn contradiction(&self, what: &str, setting: &'static str, found: &str, wanted: &str) -> Result<()> {
        Err(Error::Contradiction { what: what.into(), setting, found: found.into(), wanted: wanted.into() })
    }

    /// Bits of a `[rows, columns]` tensor as attar's checkpoints hold it: codes, scales or tables, super scales and zeros, and what fills rows of them up to
    /// whole bytes.
    pub fn true_bits(&self, [rows, columns]: [usize; 2]) -> u64 {
        let [scale_rows, scales] = self.scale_dims([rows, columns]);
        let zeros = if self.is_symmetric() { 0 } else { row_bytes(scales, self.grid.bits()) };
        let bytes = rows * self.grid.packing().row_bytes(columns) + scale_rows * (self.scale.row_bytes(scales) + zeros);
        8 * bytes as u64 + self.scale.super_bits(rows)
    }

    /// [`Scheme::true_bits`] a weight.
    pub fn bits_per_weight(&self, dims: [usize; 2]) -> f64 {
        self.true_bits(dims) as f64 / (dims[0] * dims[1]) as f64
    }

    /// Whether no zeros are stored.
    pub fn is_symmetric(&self) -> bool {
        self.zero == ZeroPoint::Symmetric
    }
}

impl PartialEq for Scheme {
    fn eq(&self, other: &Scheme) -> bool {
        self.grid.name() == other.grid.name()
            && (self.granularity, self.zero, self.scale) == (other.granularity, other.zero, other.scale)
            && (self.positive, self.tail) == (other.positive, other.tail)
    }
}

impl Eq for Scheme {}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scheme({self})")
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.grid.name())?;
        match self.granularity {
            Granularity::Tensor => f.write_str("/tensor")?,
            Granularity::Row => f.write_str("/row")?,
            Granularity::Group(n) => write!(f, "/g{n}")?,
        }
        if self.zero == ZeroPoint::Asymmetric {
            f.write_str("/asymmetric")?;
        }
        if self.scale != Scheme::of(self.grid).scale {
            write!(f, "/{}", self.scale)?;
        }
        if self.positive {
            f.write_str("/positive")?;
        }
        if self.tail == Tail::Short {
            f.write_str("/short")?;
        }
        Ok(())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Scheme> {
        let unknown = || Error::UnknownName { found: text.into(), what: "scheme", nearest: None };
        let mut words = text.split('/');
        let grid = grid(words.next().unwrap_or_default())?;
        let granularity = match words.next().ok_or_else(unknown)? {
            "tensor" => Granularity::Tensor,
            "row" => Granularity::Row,
            group => match group.strip_prefix('g').and_then(|n| n.parse().ok()) {
                Some(n) if n > 0 => Granularity::Group(n),
                _ => return Err(unknown()),
            },
        };
        let mut scheme = Scheme { granularity, ..Scheme::of(grid) };
        for word in words {
            match word {
                "asymmetric" => scheme.zero = ZeroPoint::Asymmetric,
                "positive" => scheme.positive = true,
                "short" => scheme.tail = Tail::Short,
                _ => scheme.scale = word.parse().map_err(|_| unknown())?,
            }
        }
        scheme.check()?;
        Ok(scheme)
    }
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One number per element, without shared scales.
    Plain(Dtype),
    /// Blocks of a GGUF file.
    Blocks(BlockFormat),
    /// Codes, scales and zeros in attar's canonical packing.
    Quantized(Scheme),
}

impl Encoding {
    /// Bits of a `[rows, columns]` tensor: everything that is needed to read it.
    pub fn true_bits(&self, dims: [usize; 2]) -> u64 {
        let elements = (dims[0] * dims[1]) as u64;
        match self {
            Encoding::Plain(dtype) => elements * 8 * dtype.bytes() as u64,
            Encoding::Blocks(format) => elements / format.values() as u64 * 8 * format.bytes() as u64,
            Encoding::Quantized(scheme) => scheme.true_bits(dims),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::Plain(dtype) => dtype.fmt(f),
            Encoding::Blocks(format) => format.fmt(f),
            Encoding::Quantized(scheme) => scheme.fmt(f),
        }
    }
}

impl FromStr for Encoding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Encoding> {
        if text.contains('/') {
            return text.parse().map(Encoding::Quantized);
        }
        if let Some(format) = BlockFormat::ALL.iter().find(|b| b.name() == text) {
            return Ok(Encoding::Blocks(*format));
        }
        let words = Dtype::ALL.iter().map(|d| d.name()).chain(BlockFormat::ALL.iter().map(|b| b.name()));
        text.parse().map(Encoding::Plain).map_err(|_| Error::UnknownName {
            found: text.into(),
            what: "encoding",
            nearest: nearest(text, words).map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip() {
        for text in [
            "int4/g64",
            "int8/row/asymmetric",
            "int3/g32/f32/short",
            "int8/tensor/bf16",
            "int4/g32/int6",
            "int4/g32/positive",
            "int3/row/f32/positive/short",
            "bf16",
            "q4_k",
            "mxfp4/g32",
            "lut4/row",
            "nf4/g64/int8",
        ] {
            assert_eq!(text.parse::<Encoding>().unwrap().to_string(), text);
        }
        for text in [
            "int4",
            "int4/g0",
            "int7/g64",
            "int4/g64/q",
            "int4/64",
            "int4/row/int6",
            "int4/g64/e8m0",
            "mxfp4/g64",
            "nf4/g64/asymmetric",
            "int4/g64/asymmetric/positive",
            "nf4/g64/positive",
            "lut2/g64/int6",
        ] {
            assert!(text.parse::<Scheme>().is_err(), "{text}");
        }
    }

    #[test]
    fn true_bits_count_scales_and_zeros() {
        let bits = |text: &str, dims| text.parse::<Scheme>().unwrap().bits_per_weight(dims);
        assert_eq!(bits("int4/g64", [8, 576]), 4.25);
        // Nine zeros of 4 bits take 5 bytes.
        assert_eq!(bits("int4/g64/asymmetric", [8, 576]), 4.25 + 40.0 / 576.0);
        assert_eq!(bits("int8/row", [576, 576]), 8.0 + 16.0 / 576.0);
        assert_eq!(bits("int4/g32/int6", [8, 4096]), 4.0 + 6.0 / 32.0 + 16.0 / 4096.0);
        assert_eq!(bits("lut4/row", [8, 4096]), 4.0 + 256.0 / 4096.0);
        assert_eq!(bits("ternary/row", [8, 4000]), 1.6 + 16.0 / 4000.0);
        assert_eq!(bits("mxfp4/g32", [8, 4096]), 4.25);
        assert_eq!(bits("nvfp4/g16", [8, 4096]), 4.5 + 32.0 / 32768.0);
        // Rows of 516 bits take 65 bytes, and 18 scales of 6 bits 14.
        assert_eq!(bits("int3/g64/short", [1, 172]), (65.0 * 8.0 + 48.0) / 172.0);
        assert_eq!(bits("int4/g32/int6", [8, 576]), 4.0 + (14.0 * 8.0 + 16.0) / 576.0);
    }

    #[test]
    fn a_group_that_does_not_divide_is_an_error_unless_the_tail_may_be_short() {
        assert!("int4/g64".parse::<Scheme>().unwrap().fit(172).is_err());
        assert!("int4/g64/short".parse::<Scheme>().unwrap().fit(172).is_ok());
    }
}
