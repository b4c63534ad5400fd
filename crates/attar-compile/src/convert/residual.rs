//! How the residual stream is stored: int16 with one step per channel.
//!
//! Decoders have a few outlier channels whose values are a thousand times larger than the others; one scale for all channels
//! would leave nothing of the rest (at the second block of SmolLM2-135M 17 dB remain, 46 with one step per channel). Steps are a
//! base step times powers of two, so that a norm, the only kernel that mixes channels, needs no more than shifts. Steps never
//! shrink with depth, as the stream itself grows: an addition shifts the residual where its steps are finer.

use crate::fixed::MOST_EXPONENT;

/// The largest code.
const LARGEST: f64 = 32767.0;

/// Steps of the channels at one point of the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Residual {
    /// The base step.
    pub step: f64,
    /// Of each channel: its step is `step * 2^exponent`.
    pub exponents: Vec<u8>,
}

impl Residual {
    /// The base step, if no value in the stream is larger than `most`.
    pub(super) fn step(most: f64) -> f64 {
        most.max(1e-6) / LARGEST / f64::from(1 << MOST_EXPONENT)
    }

    /// One step for all channels.
    pub(super) fn even(step: f64, channels: usize) -> Residual {
        Residual { step, exponents: vec![0; channels] }
    }

    /// Steps for channels with these largest magnitudes.
    pub(super) fn of(largest: &[f64], step: f64) -> Residual {
        let exponent = |largest: &f64| (largest / LARGEST / step).max(1.0).log2().ceil().min(f64::from(MOST_EXPONENT)) as u8;
        Residual { step, exponents: largest.iter().map(exponent).collect() }
    }

    /// The step of a channel.
    pub fn channel(&self, channel: usize) -> f64 {
        self.step * f64::from(1u32 << self.exponents[channel])
    }

    /// Rounds rows of values to codes.
    pub fn round(&self, values: &[f32]) -> Vec<i32> {
        let code = |(at, x): (usize, &f32)| {
            let step = self.channel(at % self.exponents.len());
            (f64::from(*x) / step).round().clamp(-LARGEST - 1.0, LARGEST) as i32
        };
        values.iter().enumerate().map(code).collect()
    }

    /// The values of rows of codes.
    pub fn values(&self, codes: &[i32]) -> Vec<f64> {
        codes.iter().enumerate().map(|(at, code)| f64::from(*code) * self.channel(at % self.exponents.len())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_keeps_fifteen_bits_within_a_factor_of_a_thousand() {
        let largest = [0.5, 30.0, 40.0, 27_000.0, 0.0];
        let residual = Residual::of(&largest, Residual::step(27_000.0));
        for (at, most) in largest.iter().enumerate() {
            let mut row = [0.0f32; 5];
            row[at] = *most as f32;
            let codes = residual.round(&row);
            let found = residual.values(&codes)[at];
            assert!(codes[at] <= 32767 && (found - most).abs() <= residual.channel(at) / 2.0, "{at}: {found} for {most}");
        }
        assert_eq!(residual.exponents[3], 10);
        assert!(residual.round(&[0.0, 30.0, 0.0, 0.0, 0.0])[1] > 16_383);
    }
}
