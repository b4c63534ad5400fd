//! What next-token distributions are held against: those of a teacher, and the tokens that followed.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::{exp_sum, max, scale, wide, with_f32};

wide! {
    /// Replaces a row of student logits by the gradient of the row's divergence, and the teacher's by `e^(x - max)`. Returns the
    /// divergence, the sum of the teacher's row and the logarithm of the student's sum of exponentials.
    fn divergence_row(teacher: &mut [f32], student: &mut [f32]) -> (f64, f32, f64) {
        let (t_offset, s_offset) = (max(teacher), max(student));
        let mut difference = 0.0f64;
        let gap: Vec<f32> = teacher.iter().zip(student.iter()).map(|(t, s)| t - s).collect();
        let (t_sum, s_sum) = (exp_sum(teacher, t_offset), exp_sum(student, s_offset));
        let (t_scale, s_scale) = (1.0 / t_sum, 1.0 / s_sum);
        for ((t, s), gap) in teacher.iter().zip(student.iter_mut()).zip(gap) {
            let p = t * t_scale;
            difference += f64::from(p * gap);
            *s = *s * s_scale - p;
        }
        let divergence = difference + f64::from(s_offset - t_offset) + f64::from(s_sum).ln() - f64::from(t_sum).ln();
        (divergence, t_sum, f64::from(s_offset) + f64::from(s_sum).ln())
    }
}

wide! {
    fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from * factor;
        }
    }
}

/// The mean over positions of `KL(teacher || student)` of the distributions that logits `[.., vocabulary]` mean, and its
/// gradient with respect to the student's.
pub fn kl_divergence(teacher: &Tensor, student: &Tensor) -> Result<(f64, Tensor)> {
    let vocabulary = student.dim(D::Minus1)?;
    let mut teacher = with_f32(teacher, <[f32]>::to_vec)?;
    let mut of_student = with_f32(student, <[f32]>::to_vec)?;
    let rows = (of_student.len() / vocabulary.max(1)).max(1);
    let each = teacher.par_chunks_mut(vocabulary.max(1)).zip(of_student.par_chunks_mut(vocabulary.max(1)));
    let divergences: Vec<f64> = each
        .map(|(teacher, student)| {
            let (divergence, ..) = divergence_row(teacher, student);
            scale(student, 1.0 / rows as f32);
            divergence
        })
        .collect();
    let mean = divergences.iter().sum::<f64>() / rows as f64;
    Ok((mean, Tensor::from_vec(of_student, student.shape(), student.device())?))
}

/// What the logits `[.., vocabulary]` of some positions are held against, row by row.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What a teacher says, and the weight of a row's divergence from it.
    pub teacher: Option<(Taught, f32)>,
    /// The token that follows at every row, if it is known, and the weight of a row's cross-entropy.
    pub labels: Option<(Vec<Option<u32>>, f32)>,
    /// A divergence `c`: the loss of a row with divergence `d` is `2 (sqrt(c^2 + c d) - c)`, which is `d` where `d` is small and grows with its
    /// root where it is large. Without it, the loss is `d`.
    pub soften: Option<f32>,
}

/// What a teacher says of the next token, row by row.
#[derive(Clone, Debug)]
pub enum Taught {
    /// Logits of the same shape as the student's.
    Logits(Tensor),
    /// Its most probable tokens, as many for every row; all others count as one outcome.
    Top(Top),
}

/// The most probable tokens of some rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Top {
    /// How many there are of every row.
    pub count: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Logarithms of their probabilities.
    pub logs: Vec<f32>,
    /// By row, the probability of all others together.
    pub rest: Vec<f32>,
}

impl Top {
    /// The `count` most probable tokens of every row of logits `[.., vocabulary]`; of equals, the first.
    pub fn of(logits: &Tensor, count: usize) -> Result<Top> {
        let vocabulary = logits.dim(D::Minus1)?.max(1);
        let count = count.min(vocabulary);
        let rows: Vec<(Vec<u32>, Vec<f32>, f32)> =
            with_f32(logits, |logits| logits.par_chunks(vocabulary).map(|row| top_of_row(row, count)).collect())?;
        let mut top = Top { count, ..Top::default() };
        for (tokens, logs, rest) in rows {
            top.tokens.extend(tokens);
            top.logs.extend(logs);
            top.rest.push(rest);
        }
        Ok(top)
    }

    /// Those of some of the rows, in the given order.
    pub fn rows(&self, rows: impl Iterator<Item = usize>) -> Top {
        let mut part = Top { count: self.count, ..Top::default() };
        for row in rows {
            let of_row = row * self.count..(row + 1) * self.count;
            part.tokens.extend(&self.tokens[of_row.clone()]);
            part.logs.extend(&self.logs[of_row]);
            part.rest.push(self.rest[row]);
        }
        part
    }
}

fn top_of_row(row: &[f32], count: usize) -> (Vec<u32>, Vec<f32>, f32) {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    let first = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, first);
        order.truncate(count);
    }
    order.sort_unstable_by(first);
    let offset = f64::from(max(row));
    let all: f64 = row.iter().map(|z| (f64::from(*z) - offset).exp()).sum();
    let log_sum = offset + all.ln();
    let logs: Vec<f64> = order.iter().map(|token| f64::from(row[*token as usize]) - log_sum).collect();
    let rest = if count == row.len() { 0.0 } else { (1.0 - logs.iter().map(|log| log.exp()).sum::<f64>()).max(0.0) };
    (order, logs.into_iter().map(|log| log as f32).collect(), rest as f32)
}

/// What [`Wanted::compare`] found.
pub struct Compared {
    /// The sum of the rows' divergences from the teacher.
    pub divergence: f64,
    /// The sum of the rows' cross-entropies with the labels.
    pub entropy: f64,
    /// The gradient of the weighted sum of both.
    pub gradient: Tensor,
}

impl Wanted {
    /// Holds `student` against it.
    pub fn compare(&self, student: &Tensor) -> Result<Compared> {
        let vocabulary = student.dim(D::Minus1)?.max(1);
        let mut gradient = with_f32(student, <[f32]>::to_vec)?;
        let teacher = match &self.teacher {
            Some((Taught::Logits(teacher), _)) => Some(with_f32(teacher, <[f32]>::to_vec)?),
            Some((Taught::Top(_), _)) | None => None,
        };
        let row_of = |row: usize| teacher.as_ref().map(|teacher| teacher[row * vocabulary..][..vocabulary].to_vec());
        let each = gradient.par_chunks_mut(vocabulary).enumerate();
        let sums: Vec<[f64; 2]> = each.map(|(row, student)| self.compare_row(row, row_of(row), student)).collect();
        let [divergence, entropy] = sums.iter().fold([0.0; 2], |sum, row| [sum[0] + row[0], sum[1] + row[1]]);
        Ok(Compared { divergence, entropy, gradient: Tensor::from_vec(gradient, student.shape(), student.device())? })
    }

    /// Replaces a row of logits by the gradient; returns the divergence and the cross-entropy.
    fn compare_row(&self, row: usize, teacher: Option<Vec<f32>>, student: &mut [f32]) -> [f64; 2] {
        let label = self.labels.as_ref().and_then(|(labels, _)| labels[row]).map(|label| label as usize);
        let of_label = self.labels.as_ref().filter(|_| label.is_some()).map_or(0.0, |(_, weight)| *weight);
        let logit = label.map(|label| f64::from(student[label]));
        let (divergence, log_sum) = match (teacher, &self.teacher) {
            (Some(mut teacher), Some((_, of_teacher))) => {
                let (divergence, sum, log_sum) = divergence_row(&mut teacher, student);
                let of_teacher = of_teacher * self.slope(divergence);
                scale(student, of_teacher + of_label);
                if of_label != 0.0 {
                    add_scaled(student, &teacher, of_label / sum);
                }
                (divergence, log_sum)
            }
            (None, Some((Taught::Top(top), of_teacher))) => {
                top_row(top, row, student, &|divergence| *of_teacher * self.slope(divergence), of_label)
            }
            _ => {
                let offset = max(student);
                let sum = exp_sum(student, offset);
                scale(student, of_label / sum);
                (0.0, f64::from(offset) + f64::from(sum).ln())
            }
        };
        if let Some(label) = label {
            student[label] -= of_label;
        }
        [divergence, logit.map_or(0.0, |logit| log_sum - logit)]
    }

    /// The derivative of a row's loss by its divergence.
    fn slope(&self, divergence: f64) -> f32 {
        self.soften.map_or(1.0, |c| (f64::from(c) / (f64::from(c) + divergence.max(0.0))).sqrt() as f32)
    }
}

/// With the teacher's `p` of the top tokens and `r` of the rest, and the student's `q` and `s`: the divergence is
/// `sum p ln (p / q) + r ln (r / s)`, its gradient `q - p` at the top and `q (1 - r / s)` elsewhere.
fn top_row(top: &Top, row: usize, student: &mut [f32], of_teacher: &dyn Fn(f64) -> f32, of_label: f32) -> (f64, f64) {
    let tokens = &top.tokens[row * top.count..][..top.count];
    let (logs, rest) = (&top.logs[row * top.count..][..top.count], f64::from(top.rest[row]));
    let logits: Vec<f64> = tokens.iter().map(|token| f64::from(student[*token as usize])).collect();
    let offset = max(student);
    let sum = exp_sum(student, offset);
    let log_sum = f64::from(offset) + f64::from(sum).ln();
    let mine: Vec<f64> = logits.iter().map(|z| (z - log_sum).exp()).collect();
    // Without the top, not less the top: what is left may be smaller than the rounding of the sum.
    let of_top: Vec<f32> = tokens.iter().map(|token| std::mem::take(&mut student[*token as usize])).collect();
    let others: f64 = student.iter().map(|x| f64::from(*x)).sum::<f64>() / f64::from(sum);
    let others = others.max(f64::from(f32::MIN_POSITIVE));
    tokens.iter().zip(of_top).for_each(|(token, x)| student[*token as usize] = x);
    let of_top = logs.iter().zip(&logits).map(|(log, z)| f64::from(*log).exp() * (f64::from(*log) - (z - log_sum)));
    let mut divergence: f64 = of_top.sum();
    if rest > 0.0 {
        divergence += rest * (rest / others).ln();
    }
    let elsewhere = rest / others;
    let of_teacher = of_teacher(divergence);
    scale(student, (f64::from(of_teacher) * (1.0 - elsewhere) + f64::from(of_label)) as f32 / sum);
    for ((token, log), q) in tokens.iter().zip(logs).zip(&mine) {
        student[*token as usize] += (f64::from(of_teacher) * (elsewhere * q - f64::from(*log).exp())) as f32;
    }
    (divergence, log_sum)
}
