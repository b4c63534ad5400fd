//! Numbers with units, as people write them: `256 KiB`, `12 GB/s`, `1.85 GHz`, `95 us`, `1x32x32`.

/// What a key of a device measures, which says the units it is written in and those it is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Bytes: `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB`, `GB`.
    Bytes,
    /// Bytes a second: a size with `/s`.
    Bandwidth,
    /// Hertz: `MHz`, `GHz`.
    Frequency,
    /// Seconds: `s`, `ms`, `us`, `ns`.
    Time,
    /// Watts: `W`, `mW`.
    Power,
    /// Picojoules: `pJ`, also for each byte: `pJ/B`.
    Energy,
    /// A number without a unit, such as cycles.
    Count,
    /// The same, whole.
    Whole,
    /// Three counts: `1x32x32`.
    Shape,
    /// Bits that are offered: `8 4`.
    Bits,
    /// Numbers without a unit: `7.06 4.58`.
    Numbers,
    /// Weights that stay of consecutive ones: `2:4`.
    Pattern,
    /// One of some words, kept as its index, and the words as a message lists them.
    Word(&'static [&'static str], &'static str),
}

/// Units of a kind and what each is worth.
const UNITS: &[(Unit, &str, f64)] = &[
    (Unit::Bytes, "B", 1.0),
    (Unit::Bytes, "KiB", 1024.0),
    (Unit::Bytes, "MiB", 1_048_576.0),
    (Unit::Bytes, "GiB", 1_073_741_824.0),
    (Unit::Bytes, "kB", 1e3),
    (Unit::Bytes, "MB", 1e6),
    (Unit::Bytes, "GB", 1e9),
    (Unit::Bandwidth, "MB/s", 1e6),
    (Unit::Bandwidth, "GB/s", 1e9),
    (Unit::Bandwidth, "TB/s", 1e12),
    (Unit::Bandwidth, "MiB/s", 1_048_576.0),
    (Unit::Bandwidth, "GiB/s", 1_073_741_824.0),
    (Unit::Frequency, "MHz", 1e6),
    (Unit::Frequency, "GHz", 1e9),
    (Unit::Time, "s", 1.0),
    (Unit::Time, "ms", 1e-3),
    (Unit::Time, "us", 1e-6),
    (Unit::Time, "ns", 1e-9),
    (Unit::Power, "W", 1.0),
    (Unit::Power, "mW", 1e-3),
    (Unit::Energy, "pJ", 1.0),
    (Unit::Energy, "pJ/B", 1.0),
    (Unit::Count, "", 1.0),
    (Unit::Whole, "", 1.0),
];

/// Nothing on a device is larger, so that sums and products of sizes stay within 64 bits.
const LARGEST: f64 = 1e15;

impl Unit {
    /// What is wanted, for messages.
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Unit::Bytes => "a size such as `256 KiB`",
            Unit::Bandwidth => "a bandwidth such as `12 GB/s`",
            Unit::Frequency => "a frequency such as `1.2 GHz`",
            Unit::Time => "a time such as `95 us`",
            Unit::Power => "a power such as `0.5 W`",
            Unit::Energy => "an energy such as `8 pJ`",
            Unit::Count => "a number",
            Unit::Whole => "a whole number up to 65536",
            Unit::Shape => "a block in m, k and n such as `1x32x32`",
            Unit::Bits => "numbers of bits such as `8 4`",
            Unit::Numbers => "numbers such as `7.06 4.58`",
            Unit::Pattern => "a pattern such as `2:4`",
            Unit::Word(_, listed) => listed,
        }
    }

    /// The values of `text`: three of a shape, two of a pattern, any number of bits and numbers, the index of a word, else one. None if it is not of this kind or below 0.
    pub(super) fn parse(self, text: &str) -> Option<Vec<f64>> {
        let split: Vec<&str> = match self {
            Unit::Shape => text.split('x').collect(),
            Unit::Bits | Unit::Numbers => text.split_whitespace().collect(),
            Unit::Pattern => text.split(':').collect(),
            Unit::Word(words, _) => return words.iter().position(|word| *word == text.trim()).map(|at| vec![at as f64]),
            _ => return Some(vec![self.one(text)?]),
        };
        let part = if self == Unit::Numbers { Unit::Count } else { Unit::Whole };
        let values: Option<Vec<f64>> = split.into_iter().map(|text| part.one(text)).collect();
        values.filter(|v| match self {
            Unit::Shape => v.len() == 3,
            Unit::Pattern => v.len() == 2 && v[0] < v[1],
            _ => !v.is_empty(),
        })
    }

    fn one(self, text: &str) -> Option<f64> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (text[..end].parse::<f64>().ok()?, text[end..].trim());
        let (_, _, worth) = UNITS.iter().find(|(kind, name, _)| *kind == self && *name == unit)?;
        let value = number * worth;
        let (most, whole) = match self {
            Unit::Bytes => (LARGEST, true),
            Unit::Whole => (65536.0, true),
            _ => (LARGEST, false),
        };
        (value <= most && (!whole || value.fract() == 0.0)).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::Unit;

    #[test]
    fn quantities_are_read_with_their_units() {
        assert_eq!(Unit::Bytes.parse("256 KiB"), Some(vec![262_144.0]));
        assert_eq!(Unit::Bytes.parse("256KiB"), Some(vec![262_144.0]));
        assert_eq!(Unit::Bandwidth.parse("3.75 GB/s"), Some(vec![3.75e9]));
        assert_eq!(Unit::Time.parse("0.095 ms"), Some(vec![0.095e-3]));
        assert_eq!(Unit::Shape.parse("1x32x32"), Some(vec![1.0, 32.0, 32.0]));
        assert_eq!(Unit::Bits.parse("8 4"), Some(vec![8.0, 4.0]));
        assert_eq!(Unit::Numbers.parse("7.06 4"), Some(vec![7.06, 4.0]));
        assert_eq!(Unit::Pattern.parse("2:4"), Some(vec![2.0, 4.0]));
        for (kind, wrong) in [
            (Unit::Bytes, "256"),
            (Unit::Bytes, "1.0005 KiB"),
            (Unit::Bytes, "-1 KiB"),
            (Unit::Bandwidth, "12 GB"),
            (Unit::Shape, "32x32"),
            (Unit::Shape, "1x1x70000"),
            (Unit::Whole, "1.5"),
            (Unit::Bytes, "1000000000 GiB"),
            (Unit::Bits, ""),
            (Unit::Numbers, "7.06 x"),
            (Unit::Pattern, "4:2"),
            (Unit::Pattern, "2"),
            (Unit::Count, "1e400"),
            (Unit::Count, "NaN"),
        ] {
            assert_eq!(kind.parse(wrong), None, "{wrong}");
        }
    }
}
