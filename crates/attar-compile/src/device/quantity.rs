//! Numbers with units, as people write them: `256 KiB`, `12 GB/s`, `1.85 GHz`, `95 us`, `1x32x32`.

/// What a key of a device measures, which says the units it is written in and those it is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
}

/// Units of a kind and what each is worth.
const UNITS: &[(Kind, &str, f64)] = &[
    (Kind::Bytes, "B", 1.0),
    (Kind::Bytes, "KiB", 1024.0),
    (Kind::Bytes, "MiB", 1_048_576.0),
    (Kind::Bytes, "GiB", 1_073_741_824.0),
    (Kind::Bytes, "kB", 1e3),
    (Kind::Bytes, "MB", 1e6),
    (Kind::Bytes, "GB", 1e9),
    (Kind::Bandwidth, "MB/s", 1e6),
    (Kind::Bandwidth, "GB/s", 1e9),
    (Kind::Bandwidth, "TB/s", 1e12),
    (Kind::Bandwidth, "MiB/s", 1_048_576.0),
    (Kind::Bandwidth, "GiB/s", 1_073_741_824.0),
    (Kind::Frequency, "MHz", 1e6),
    (Kind::Frequency, "GHz", 1e9),
    (Kind::Time, "s", 1.0),
    (Kind::Time, "ms", 1e-3),
    (Kind::Time, "us", 1e-6),
    (Kind::Time, "ns", 1e-9),
    (Kind::Power, "W", 1.0),
    (Kind::Power, "mW", 1e-3),
    (Kind::Energy, "pJ", 1.0),
    (Kind::Energy, "pJ/B", 1.0),
    (Kind::Count, "", 1.0),
    (Kind::Whole, "", 1.0),
];

/// Nothing on a device is larger, so that sums and products of sizes stay within 64 bits.
const LARGEST: f64 = 1e15;

impl Kind {
    /// What is wanted, for messages.
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Kind::Bytes => "a size such as `256 KiB`",
            Kind::Bandwidth => "a bandwidth such as `12 GB/s`",
            Kind::Frequency => "a frequency such as `1.2 GHz`",
            Kind::Time => "a time such as `95 us`",
            Kind::Power => "a power such as `0.5 W`",
            Kind::Energy => "an energy such as `8 pJ`",
            Kind::Count => "a number",
            Kind::Whole => "a whole number up to 65536",
            Kind::Shape => "a block in m, k and n such as `1x32x32`",
            Kind::Bits => "numbers of bits such as `8 4`",
        }
    }

    /// The values of `text`: three of a shape, any number of bits, else one. None if it is not of this kind or below 0.
    pub(super) fn parse(self, text: &str) -> Option<Vec<f64>> {
        let split: Vec<&str> = match self {
            Kind::Shape => text.split('x').collect(),
            Kind::Bits => text.split_whitespace().collect(),
            _ => return Some(vec![self.one(text)?]),
        };
        let values: Option<Vec<f64>> = split.into_iter().map(|part| Kind::Whole.one(part)).collect();
        values.filter(|v| if self == Kind::Shape { v.len() == 3 } else { !v.is_empty() })
    }

    fn one(self, text: &str) -> Option<f64> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (text[..end].parse::<f64>().ok()?, text[end..].trim());
        let (_, _, worth) = UNITS.iter().find(|(kind, name, _)| *kind == self && *name == unit)?;
        let value = number * worth;
        let (most, whole) = match self {
            Kind::Bytes => (LARGEST, true),
            Kind::Whole => (65536.0, true),
            _ => (LARGEST, false),
        };
        (value <= most && (!whole || value.fract() == 0.0)).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn quantities_are_read_with_their_units() {
        assert_eq!(Kind::Bytes.parse("256 KiB"), Some(vec![262_144.0]));
        assert_eq!(Kind::Bytes.parse("256KiB"), Some(vec![262_144.0]));
        assert_eq!(Kind::Bandwidth.parse("3.75 GB/s"), Some(vec![3.75e9]));
        assert_eq!(Kind::Time.parse("0.095 ms"), Some(vec![0.095e-3]));
        assert_eq!(Kind::Shape.parse("1x32x32"), Some(vec![1.0, 32.0, 32.0]));
        assert_eq!(Kind::Bits.parse("8 4"), Some(vec![8.0, 4.0]));
        for (kind, wrong) in [
            (Kind::Bytes, "256"),
            (Kind::Bytes, "1.0005 KiB"),
            (Kind::Bytes, "-1 KiB"),
            (Kind::Bandwidth, "12 GB"),
            (Kind::Shape, "32x32"),
            (Kind::Shape, "1x1x70000"),
            (Kind::Whole, "1.5"),
            (Kind::Bytes, "1000000000 GiB"),
            (Kind::Bits, ""),
            (Kind::Count, "1e400"),
            (Kind::Count, "NaN"),
        ] {
            assert_eq!(kind.parse(wrong), None, "{wrong}");
        }
    }
}
