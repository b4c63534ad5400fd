//! Adam (Kingma & Ba 2015), element by element.

/// Decay rates of the two moments.
const BETAS: [f64; 2] = [0.9, 0.99];

/// First and second moments of the gradients of some parameters.
#[derive(Clone, Debug)]
pub struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// One step's numbers, the same for every element.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The factors of the first moment and of the second.
    first: f32,
    second: f32,
    betas: [f32; 2],
    epsilon: f32,
}

impl Rate {
    /// Of step `step`, the first being 0: a parameter whose gradients all had the same sign moves by `length` of its units.
    pub fn new(length: f64, step: usize) -> Rate {
        Rate::with(length, step, BETAS, 0.0)
    }

    /// With other decay rates of the moments, and `epsilon` added to the root of the second.
    pub fn with(length: f64, step: usize, betas: [f64; 2], epsilon: f64) -> Rate {
        let [first, second] = betas.map(|beta| 1.0 - beta.powi(step as i32 + 1));
        Rate {
            first: (length / first) as f32,
            second: (1.0 / second) as f32,
            betas: betas.map(|beta| beta as f32),
            epsilon: epsilon as f32,
        }
    }
}

/// Learning rates of a step.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of weights before rounding, in distances between two codes.
    pub rounding: Rate,
    /// Of scales, relative to each.
    pub scaling: Rate,
    /// Of norm gains, relative to their mean.
    pub norming: Rate,
}

impl Adam {
    /// Of `count` parameters without a gradient so far.
    pub fn new(parameters: usize) -> Adam {
        Adam { first: vec![0.0; parameters], second: vec![0.0; parameters] }
    }

    /// The moments of parameters, `size` at a time.
    pub fn chunks(&mut self, size: usize) -> Vec<Moments<'_>> {
        let both = self.first.chunks_mut(size.max(1)).zip(self.second.chunks_mut(size.max(1)));
        both.map(|(first, second)| Moments { first, second }).collect()
    }

    /// Everything, first moments before second ones: for a checkpoint.
    pub fn state(&self) -> [&[f32]; 2] {
        [&self.first, &self.second]
    }

    /// Restores an [`Adam::state`].
    pub fn restore(first: Vec<f32>, second: Vec<f32>) -> Adam {
        Adam { first, second }
    }
}

/// A part of an [`Adam`].
pub struct Moments<'a> {
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Moments<'_> {
    /// Updates the moments with the gradient of parameter `at`; returns what to subtract from the parameter.
    #[inline(always)]
    pub fn step(&mut self, at: usize, gradient: f32, rate: Rate) -> f32 {
        let [a, b] = rate.betas;
        let (m, v) = (&mut self.first[at], &mut self.second[at]);
        *m = a * *m + (1.0 - a) * gradient;
        *v = b * *v + (1.0 - b) * gradient * gradient;
        if *v > 0.0 { rate.first * *m / ((*v * rate.second).sqrt() + rate.epsilon) } else { 0.0 }
    }
}
