//! Floats of 4 and 8 bits: E2M1, E4M3 and E5M2 of the OCP Microscaling Formats specification, version 1.0.
//!
//! None of them has an infinity here: what is too large becomes the largest finite number, as the specification allows.

/// A sign, so many bits of exponent, so many of mantissa, with subnormal numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Minifloat {
    exponent: u32,
    mantissa: u32,
    /// The code of the largest finite number; those above it are no numbers.
    top: u8,
}

impl Minifloat {
    /// 4 bits: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
    pub const E2M1: Minifloat = Minifloat { exponent: 2, mantissa: 1, top: 0x07 };
    /// 8 bits, up to 448.
    pub const E4M3: Minifloat = Minifloat { exponent: 4, mantissa: 3, top: 0x7e };
    /// 8 bits, up to 57344.
    pub const E5M2: Minifloat = Minifloat { exponent: 5, mantissa: 2, top: 0x7b };

    /// Width of a code.
    pub const fn bits(self) -> u32 {
        1 + self.exponent + self.mantissa
    }

    /// The largest finite number.
    pub const fn largest(self) -> f32 {
        self.value(self.top)
    }

    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    const fn sign(self) -> u8 {
        1 << (self.bits() - 1)
    }

    /// What a code means; NaN for those that mean no number, or none here.
    pub const fn value(self, code: u8) -> f32 {
        let magnitude = code & (self.sign() - 1);
        if magnitude > self.top {
            return f32::NAN;
        }
        let (exponent, fraction) = ((magnitude >> self.mantissa) as i32, magnitude & ((1 << self.mantissa) - 1));
        let (exponent, significand) = match exponent {
            0 => (1, fraction),
            _ => (exponent, fraction | 1 << self.mantissa),
        };
        let value = significand as f32 * power_of_two(exponent - self.bias() - self.mantissa as i32);
        if code & self.sign() == 0 { value } else { -value }
    }

    /// The code of the nearest finite number; halves go to the even code.
    #[inline]
    pub fn nearest(self, value: f32) -> u8 {
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        let magnitude = value.abs().min(self.largest());
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(1 - self.bias());
        let steps = (magnitude * power_of_two(self.mantissa as i32 - exponent)).round_ties_even() as i32;
        // A carry out of the mantissa is one into the exponent.
        sign | (((exponent + self.bias() - 1) << self.mantissa) + steps) as u8
    }
}

/// Of a normal number.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Minifloat; 3] = [Minifloat::E2M1, Minifloat::E4M3, Minifloat::E5M2];

    #[test]
    fn every_finite_code_is_its_own_nearest() {
        for float in ALL {
            for code in 0..=((1u32 << float.bits()) - 1) as u8 {
                let value = float.value(code);
                assert!(value.is_nan() || float.nearest(value) == code, "{float:?} {code}: {value}");
            }
        }
        assert_eq!(ALL.map(Minifloat::largest), [6.0, 448.0, 57344.0]);
    }

    /// `tests/oracle/minifloat.py` wrote what `ml_dtypes` makes of numbers in range, halves and subnormal ones among them.
    #[test]
    fn codes_are_those_of_ml_dtypes() {
        let text = include_str!("../tests/oracle/minifloat.txt");
        let mut seen = 0;
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let value = f32::from_bits(u32::from_str_radix(words[1], 16).unwrap());
            let (found, decoded) = match words[0] {
                "e8m0" => (crate::ScaleFormat::E8m0.nearest(value), crate::ScaleFormat::E8m0.value(words[2].parse().unwrap())),
                name => {
                    let float = ALL[["e2m1", "e4m3", "e5m2"].iter().position(|known| *known == name).unwrap()];
                    (float.nearest(value), float.value(words[2].parse().unwrap()))
                }
            };
            let meant = f32::from_bits(u32::from_str_radix(words[3], 16).unwrap());
            assert_eq!((found.to_string().as_str(), decoded), (words[2], meant), "{line}");
            seen += 1;
        }
        assert!(seen > 2000, "{seen}");
    }

    #[test]
    fn what_is_too_large_becomes_the_largest() {
        for float in ALL {
            assert_eq!(float.value(float.nearest(f32::INFINITY)), float.largest());
            assert_eq!(float.value(float.nearest(-1e30)), -float.largest());
        }
    }
}
