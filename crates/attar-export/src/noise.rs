//! What every target checks of the weights it has read back.

use attar_tensor::{Damage, Encoding, Granularity, Levels, Scheme};

use crate::{Error, Result};

/// The least signal-to-noise ratio, in decibels, that a scheme can honestly have. Evenly spread weights rounded to
/// `2^bits` levels keep 6 dB per bit; real ones keep about 5 dB less in groups of 32, 10 dB less with one scale per row, and
/// under one scale in all as much less as their largest outlier takes. Below these floors something else went wrong than
/// rounding: another tensor's scales, lost rows, a swapped sign (which has about -6 dB).
fn floor(scheme: &Scheme) -> f64 {
    let whole = scheme.granularity == Granularity::Tensor;
    match (scheme.grid.bits(), whole) {
        // Floats of 8 bits keep 2 or 3 bits of every weight.
        (8.., _) if scheme.grid.levels() != Levels::Even => 12.0,
        (8.., false) => 30.0,
        (8.., true) => 15.0,
        (4..8, false) => 12.0,
        (3, false) => 6.0,
        // Four levels: a wide row keeps little more than the signs.
        (_, false) => 0.5,
        // A tensor with one outlier rounds to zeros and little else: 0 dB.
        (_, true) => -0.1,
    }
}

/// Both are equal to the bit, and finite. `first` is the first row.
pub(crate) fn same(name: &str, first: usize, columns: usize, found: &[f32], wanted: &[f32]) -> Result<()> {
    let differs = found.iter().zip(wanted).fold(0, |all, (f, w)| all | (f.to_bits() ^ w.to_bits()));
    let strange = found.iter().fold(false, |any, f| any | !f.is_finite());
    if differs == 0 && !strange {
        return Ok(());
    }
    let at = found.iter().zip(wanted).position(|(f, w)| f.to_bits() != w.to_bits() || !f.is_finite()).unwrap_or(0);
    let (row, column, tensor) = (first + at / columns, at % columns, name.to_owned());
    if found[at].to_bits() == wanted[at].to_bits() {
        let count = found.iter().filter(|f| !f.is_finite()).count();
        return Err(attar_tensor::Error::NotFinite { name: tensor, count, value: found[at], row, column }.into());
    }
    Err(Error::Differs { tensor, row, column, found: found[at], wanted: wanted[at] })
}

/// What quantization did to one weight.
#[derive(Default)]
pub(crate) struct Noise {
    signal: f64,
    noise: f64,
    count: usize,
    /// The smallest magnitude found that is not zero: with even levels, the step between two codes of some row.
    step: Option<f32>,
    found: Only,
    original: Only,
}

impl Noise {
    /// Some weights as the artifact has them and as they were.
    pub(crate) fn add(&mut self, found: &[f32], original: &[f32]) {
        for (found, original) in found.chunks(LANES * 64).zip(original.chunks(LANES * 64)) {
            let [signal, noise] = squares(found, original);
            // Squares that are no normal numbers in f32 are summed in f64.
            let exact = EXACT.contains(&signal) && noise < EXACT.end;
            self.damage(match exact {
                true => Damage { squared_error: noise.into(), energy: signal.into() },
                false => Damage::between(original, found),
            });
        }
        self.count += found.len();
        let least = found.iter().map(|w| w.abs()).fold(f32::INFINITY, |least, w| if w > 0.0 { least.min(w) } else { least });
        self.step = self.step.into_iter().chain(least.is_finite().then_some(least)).reduce(f32::min);
        self.found.add(found);
        self.original.add(original);
    }

    fn damage(&mut self, damage: Damage) {
        self.signal += damage.energy;
        self.noise += damage.squared_error;
    }

    /// The signal-to-noise ratio in decibels, `None` if nothing was lost; an error where rounding does not explain it.
    pub(crate) fn judge(&self, name: &str, encoding: Encoding) -> Result<Option<f64>> {
        let Encoding::Quantized(scheme) = encoding else { return Ok(self.decibels()) };
        if let Some(only) = self.found.only().filter(|_| self.original.only().is_none() && self.signal > 0.0) {
            return Err(Error::Constant { tensor: name.into(), found: only });
        }
        let (found, wanted) = (self.decibels(), floor(&scheme).min(self.coarse(&scheme)));
        match found {
            Some(found) if found < wanted => {
                Err(Error::Noise { tensor: name.into(), encoding: scheme.to_string(), found, wanted })
            }
            found => Ok(found),
        }
    }

    /// The floor under a step that is coarse for the grid, as rounding for a coder makes it: the noise is `step^2 / 12` where weights are
    /// rounded to the nearest code, and less than six times that where bits are weighed against it.
    fn coarse(&self, scheme: &Scheme) -> f64 {
        let Some(step) = self.step.filter(|_| scheme.grid.levels() == Levels::Even) else { return f64::INFINITY };
        let steps = self.signal / self.count.max(1) as f64 / f64::from(step).powi(2);
        (10.0 * (2.0 * steps).log10()).max(0.5)
    }

    fn decibels(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }
}

/// Sums of squares in f32 that neither lost anything below its normal numbers nor overflowed.
const EXACT: std::ops::Range<f32> = 1e-24..1e30;

/// Partial sums, so that a wide unit can add them.
const LANES: usize = 16;

/// Sums of squares of `original` and of the difference.
fn squares(found: &[f32], original: &[f32]) -> [f32; 2] {
    let (mut signal, mut noise) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (found, original) in found.chunks(LANES).zip(original.chunks(LANES)) {
        for (((s, n), f), o) in signal.iter_mut().zip(&mut noise).zip(found).zip(original) {
            *s += o * o;
            *n += (f - o) * (f - o);
        }
    }
    [signal.iter().sum(), noise.iter().sum()]
}

/// Whether values are one number.
#[derive(Default)]
enum Only {
    #[default]
    Nothing,
    One(f32),
    Several,
}

impl Only {
    fn add(&mut self, values: &[f32]) {
        let Some(first) = values.first() else { return };
        let one = match self {
            Only::Several => return,
            Only::Nothing => *first,
            Only::One(one) => *one,
        };
        *self = if values.iter().all(|value| *value == one) { Only::One(one) } else { Only::Several };
    }

    /// The value, if all are the same.
    fn only(&self) -> Option<f32> {
        if let Only::One(one) = self { Some(*one) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_whose_squares_underflow_have_a_signal() {
        let mut noise = Noise::default();
        noise.add(&[0.0; 4], &[1e-30, -2e-30, 1e-30, 3e-30]);
        let int4 = Encoding::Quantized("int4/row".parse().expect("a scheme"));
        assert!(matches!(noise.judge("w", int4), Err(Error::Constant { .. })));
    }
}
