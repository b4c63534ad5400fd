//! Bounds on metrics.

use attar_settings::Share;
use attar_tensor::nearest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Better, DEFAULT_TASK, DEVICE, Error, Estimate, Measurements, Metric, Mode, PREDICTED, Prediction, REFERENCE, Result, Task,
    device_metric, statistics::normal_quantile, task,
};

/// A bound on a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "WrittenGate", into = "WrittenGate")]
pub struct Gate {
    /// The name of the eval that measures.
    pub eval: String,
    /// The metric's name.
    pub metric: String,
    /// Judge this variant only; every variant, if not given.
    pub variant: Option<String>,
    /// Judge the measurement of this runner.
    pub runner: String,
    /// Judge this mode only; every mode, if not given.
    pub mode: Option<Mode>,
    /// The bound.
    pub bound: Bound,
    /// How sure the answer must be, as a probability; what was measured is taken as it is, if not given.
    pub confidence: Option<f64>,
}

/// The bound of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most this much worse than the base, as a share of its value; the base is measured in the same run.
    WorseAtMost(f64),
    /// The same, as it is called where more is better.
    DropAtMost(f64),
}

/// A measurement that was made, or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The eval's name.
    pub eval: String,
    /// What was measured, one of [`crate::TASKS`].
    #[serde(default = "default_task", skip_serializing_if = "is_default_task")]
    pub task: String,
    /// The variant, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The runner's name.
    pub runner: String,
    /// The engine's mode; the reference has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The engine's device, where the eval names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The numbers, or why there are none.
    pub outcome: Outcome,
}

/// What came of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The numbers.
    Measured(Measurements),
    /// A compiler's predictions for a device.
    Predicted(Prediction),
    /// No numbers.
    Skipped {
        /// Why not.
        reason: String,
    },
}

/// Whether a bound holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// What was measured is too uncertain to tell, which is no pass.
    CannotTell,
    /// It was not measured, which is no pass.
    NotRun,
}

/// A gate's answer for one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The question.
    pub gate: Gate,
    /// The variant that was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The mode that was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The engine's device, where the eval names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The answer.
    pub status: Status,
    /// What the bound was held against: the metric, or for [`Bound::WorseAtMost`] the share that was lost.
    pub measured: Option<f64>,
    /// The bound's number.
    pub limit: f64,
    /// The answer in words.
    pub reason: String,
}

/// A gate as recipes write it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WrittenGate {
    /// `EVAL/METRIC`, such as `shakespeare/perplexity`.
    metric: String,
    /// Judge this variant only; without it, every variant is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    /// Judge the measurement of this runner.
    #[serde(default = "reference", skip_serializing_if = "is_reference")]
    runner: String,
    /// Judge this mode of the runner only; without it, every mode is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    /// The metric is at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
    /// The metric is at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
    /// At most this much worse than the baseline, measured in the same run: `"3%"` or `0.03`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    worse_at_most: Option<Share>,
    /// The same as `worse_at_most`, for a metric where more is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drop_at_most: Option<Share>,
    /// How sure the answer must be, such as `0.95`: the gate then passes or fails only if the measurement's standard error leaves no more doubt, and
    /// else says how much it takes to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
}

fn default_task() -> String {
    DEFAULT_TASK.into()
}

fn is_default_task(task: &str) -> bool {
    task == DEFAULT_TASK
}

fn reference() -> String {
    REFERENCE.into()
}

fn is_reference(runner: &String) -> bool {
    runner == REFERENCE
}

impl TryFrom<WrittenGate> for Gate {
    type Error = Error;

    fn try_from(written: WrittenGate) -> Result<Gate> {
        let bound = written.bound()?;
        if let Some(found) = written.confidence.filter(|confidence| !(*confidence >= 0.5 && *confidence < 1.0)) {
            return Err(Error::GateLimit { key: "confidence", found: found.to_string() });
        }
        let Some((eval, metric)) = written.metric.split_once('/').filter(|(eval, metric)| !eval.is_empty() && !metric.is_empty())
        else {
            return Err(Error::GateMetric { found: written.metric });
        };
        let (eval, metric): (String, String) = (eval.into(), metric.into());
        let runner = if eval == DEVICE && is_reference(&written.runner) { PREDICTED.into() } else { written.runner };
        let WrittenGate { variant, mode, confidence, .. } = written;
        Ok(Gate { eval, metric, variant, runner, mode, bound, confidence })
    }
}

impl From<Gate> for WrittenGate {
    fn from(gate: Gate) -> WrittenGate {
        let metric = format!("{}/{}", gate.eval, gate.metric);
        let mut written = WrittenGate {
            metric,
            variant: gate.variant,
            runner: gate.runner,
            mode: gate.mode,
            at_most: None,
            at_least: None,
            worse_at_most: None,
            drop_at_most: None,
            confidence: gate.confidence,
        };
        match gate.bound {
            Bound::AtMost(limit) => written.at_most = Some(limit),
            Bound::AtLeast(limit) => written.at_least = Some(limit),
            Bound::WorseAtMost(limit) => written.worse_at_most = Some(Share::Number(limit)),
            Bound::DropAtMost(limit) => written.drop_at_most = Some(Share::Number(limit)),
        }
        written
    }
}

impl WrittenGate {
    fn bound(&self) -> Result<Bound> {
        let limit = |key, number: Option<f64>, found: String, lowest: f64| match number {
            Some(number) if number.is_finite() && number >= lowest => Ok(number),
            _ => Err(Error::GateLimit { key, found }),
        };
        let share = |key, share: &Share| limit(key, share.number(), share.to_string(), 0.0);
        match (self.at_most, self.at_least, &self.worse_at_most, &self.drop_at_most) {
            (Some(n), None, None, None) => Ok(Bound::AtMost(limit("at_most", Some(n), n.to_string(), f64::MIN)?)),
            (None, Some(n), None, None) => Ok(Bound::AtLeast(limit("at_least", Some(n), n.to_string(), f64::MIN)?)),
            (None, None, Some(worse), None) => Ok(Bound::WorseAtMost(share("worse_at_most", worse)?)),
            (None, None, None, Some(drop)) => Ok(Bound::DropAtMost(share("drop_at_most", drop)?)),
            _ => Err(Error::GateBound { found: self.bounds_given() }),
        }
    }

    fn bounds_given(&self) -> Vec<&'static str> {
        let given = [
            ("at_most", self.at_most.is_some()),
            ("at_least", self.at_least.is_some()),
            ("worse_at_most", self.worse_at_most.is_some()),
            ("drop_at_most", self.drop_at_most.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

impl Bound {
    /// The bound's number.
    pub fn limit(&self) -> f64 {
        match self {
            Bound::AtMost(limit) | Bound::AtLeast(limit) | Bound::WorseAtMost(limit) | Bound::DropAtMost(limit) => *limit,
        }
    }

    /// Whether a number is within the bound. NaN is not.
    pub fn holds(&self, measured: f64) -> bool {
        match self {
            Bound::AtMost(limit) | Bound::WorseAtMost(limit) | Bound::DropAtMost(limit) => measured <= *limit,
            Bound::AtLeast(limit) => measured >= *limit,
        }
    }

    /// The key in a recipe.
    pub fn key(&self) -> &'static str {
        match self {
            Bound::AtMost(_) => "at_most",
            Bound::AtLeast(_) => "at_least",
            Bound::WorseAtMost(_) => "worse_at_most",
            Bound::DropAtMost(_) => "drop_at_most",
        }
    }

    /// Whether it is on the share that was lost against the base, not on the metric.
    pub fn is_relative(&self) -> bool {
        matches!(self, Bound::WorseAtMost(_) | Bound::DropAtMost(_))
    }
}

/// The variant, mode and device of what is judged.
type Judged = (Option<String>, Option<Mode>, Option<String>);

impl Gate {
    /// Whether it can be judged at all: its metric and its eval exist, and the bound has a meaning for the metric.
    /// `evals` are the names of all evals with their tasks; predictions have none.
    pub fn check(&self, evals: &[(&str, Option<&Task>)]) -> Result<()> {
        let Some((_, task)) = evals.iter().find(|(name, _)| *name == self.eval) else {
            return Err(Error::UnknownEval {
                found: self.eval.clone(),
                nearest: nearest(&self.eval, evals.iter().map(|(name, _)| *name)).map(Into::into),
                known: evals.iter().map(|(name, _)| name.to_string()).collect(),
            });
        };
        let Some(task) = task else {
            let metric = device_metric(&self.metric)?;
            return if self.bound.is_relative() { Err(self.meaningless(metric.name)) } else { Ok(()) };
        };
        let metric = task.metric(&self.metric)?;
        if self.bound.is_relative() && metric.loss.is_none() { Err(self.meaningless(metric.name)) } else { Ok(()) }
    }

    fn meaningless(&self, metric: &'static str) -> Error {
        Error::NoLoss { key: self.bound.key(), metric }
    }

    /// What may not be meant, if `task` is the one of its eval.
    pub fn note(&self, task: &Task) -> Option<String> {
        let metric = task.metric(&self.metric).ok()?;
        let (name, key, limit) = (format!("{}/{}", self.eval, self.metric), self.bound.key(), self.bound.limit());
        if self.bound.is_relative() && limit > 1.0 {
            return Some(format!("`{key} = {limit}` of `{name}` allows {}%; shares are written `\"{limit}%\"`", 100.0 * limit));
        }
        let misnamed = matches!(self.bound, Bound::DropAtMost(_)) && metric.better == Better::Lower;
        misnamed.then(|| format!("less is better in `{name}`: write `worse_at_most` in place of `drop_at_most`"))
    }

    /// An answer for every evaluation that the gate is about; one answer, [`Status::NotRun`], if it is about none.
    pub fn judge(&self, evaluations: &[Evaluation]) -> Vec<Verdict> {
        let about = evaluations.iter().filter(|evaluation| self.is_about(evaluation));
        let verdicts: Vec<Verdict> = about.map(|evaluation| self.judge_one(evaluation)).collect();
        if verdicts.is_empty() {
            let reason = format!("nothing was measured by `{}` for `{}`", self.runner, self.eval);
            return vec![self.verdict((self.variant.clone(), self.mode, None), None, reason)];
        }
        verdicts
    }

    fn is_about(&self, evaluation: &Evaluation) -> bool {
        evaluation.eval == self.eval
            && evaluation.runner == self.runner
            && self.variant.as_ref().is_none_or(|variant| evaluation.variant.as_ref() == Some(variant))
            && self.mode.is_none_or(|mode| evaluation.mode == Some(mode))
    }

    fn judge_one(&self, evaluation: &Evaluation) -> Verdict {
        let judged = (evaluation.variant.clone(), evaluation.mode, evaluation.device.clone());
        let (measured, reason) = match &evaluation.outcome {
            Outcome::Skipped { reason } => (None, reason.clone()),
            Outcome::Measured(measurements) => {
                let (measured, reason) = self.measured(&evaluation.task, measurements);
                return match (measured, self.confidence) {
                    (Some(measured), Some(confidence)) => self.sure(judged, confidence, measured, &evaluation.task, measurements),
                    (measured, _) => self.verdict(judged, measured.map(|measured| measured.value), reason),
                };
            }
            Outcome::Predicted(prediction) => self.predicted(prediction),
        };
        self.verdict(judged, measured, reason)
    }

    fn measured(&self, of: &str, measurements: &Measurements) -> (Option<Estimate>, String) {
        let metric = match task(of).and_then(|task| task.metric(&self.metric)) {
            Ok(metric) => metric,
            Err(error) => return (None, error.to_string()),
        };
        let measured = self.number(metric, measurements);
        match measured {
            Some(number) => (measured, self.words(number.value)),
            None => (None, format!("`{}` was not measured", metric.name)),
        }
    }

    /// The verdict that holds with `confidence`: one-sided, by the normal distribution around what was measured.
    fn sure(&self, judged: Judged, confidence: f64, measured: Estimate, of: &str, measurements: &Measurements) -> Verdict {
        let plain = self.verdict(judged, Some(measured.value), self.words(measured.value));
        let Some(error) = measured.standard_error else {
            let reason = format!("{}; how sure that is cannot be told: it has no standard error here", plain.reason);
            return Verdict { status: Status::CannotTell, reason, ..plain };
        };
        let reach = normal_quantile(confidence) * error;
        let away = (measured.value - self.bound.limit()).abs();
        let percent = 100.0 * confidence;
        let task = task(of).ok();
        let count = task.and_then(|task| measurements.number(task.count)).unwrap_or(0.0);
        // Samples that are all alike have no spread to judge by: so many of them leave room for a rare other one (the rule of three).
        let alike = match away {
            0.0 => f64::INFINITY,
            away => (1.0 - confidence).ln() / (1.0 - away.min(1.0 - f64::EPSILON)).ln(),
        };
        let enough = if error == 0.0 { count >= alike } else { away > reach };
        if enough {
            return Verdict { reason: format!("{}, with {percent}% confidence", plain.reason), ..plain };
        }
        let needed = if error == 0.0 { alike.ceil() } else { (count * (reach / away).powi(2)).ceil() };
        let counted = task.map_or("samples", |task| task.counted);
        let enough = match needed.is_finite() && needed < 1e12 {
            true => format!("about {needed:.0} would do"),
            false => "no number would do".into(),
        };
        let reason = format!(
            "{:.4} ± {error:.4} against a bound of {}: {count:.0} {counted} cannot tell with {percent}% confidence, {enough}",
            measured.value,
            self.bound.limit()
        );
        Verdict { status: Status::CannotTell, reason, ..plain }
    }

    fn predicted(&self, prediction: &Prediction) -> (Option<f64>, String) {
        match device_metric(&self.metric).map(|metric| (metric, (metric.value)(prediction))) {
            Ok((metric, Some(number))) => {
                let assumed = prediction.assumed.iter().any(|name| name == metric.name);
                let from = match prediction.tokens.filter(|_| metric.computed) {
                    Some(tokens) => format!(" on {tokens} tokens"),
                    None if assumed => " from assumed numbers of the device".into(),
                    None => String::new(),
                };
                (Some(number), format!("{}, {}{from}", self.words(number), metric.known()))
            }
            Ok((metric, None)) if metric.computed => {
                (None, format!("`{}` was not computed: the plans end before the logits, or `quality` is 0", self.metric))
            }
            Ok((_, None)) => (None, format!("`{}` was not predicted", self.metric)),
            Err(error) => (None, error.to_string()),
        }
    }

    fn number(&self, metric: &Metric, measurements: &Measurements) -> Option<Estimate> {
        match self.bound {
            Bound::WorseAtMost(_) | Bound::DropAtMost(_) => metric.loss.and_then(|loss| loss(measurements)),
            Bound::AtMost(_) | Bound::AtLeast(_) => measurements.estimate(metric.at),
        }
    }

    fn words(&self, measured: f64) -> String {
        let kept = self.bound.holds(measured);
        let small = measured != 0.0 && measured.abs() < 1e-3;
        let number = if small { format!("{measured:.3e}") } else { format!("{measured:.4}") };
        match self.bound {
            Bound::AtMost(limit) if kept => format!("{number} is at most {limit}"),
            Bound::AtMost(limit) => format!("{number} is not at most {limit}"),
            Bound::AtLeast(limit) if kept => format!("{number} is at least {limit}"),
            Bound::AtLeast(limit) => format!("{number} is not at least {limit}"),
            Bound::WorseAtMost(limit) | Bound::DropAtMost(limit) => {
                format!("{:.2}% worse than the baseline; at most {}% allowed", 100.0 * measured, 100.0 * limit)
            }
        }
    }

    fn verdict(&self, (variant, mode, device): Judged, measured: Option<f64>, reason: String) -> Verdict {
        let status = match measured {
            None => Status::NotRun,
            Some(number) if self.bound.holds(number) => Status::Passed,
            Some(_) => Status::Failed,
        };
        Verdict { gate: self.clone(), variant, mode, device, status, measured, limit: self.bound.limit(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        TASKS,
        perplexity::{AgainstBase, Agreement, Scores},
    };

    fn gate(toml: &str) -> Gate {
        toml::from_str(&format!("metric = \"text/{}", toml.replacen(' ', "\"\n", 1))).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refusal(toml: &str) -> String {
        toml::from_str::<Gate>(toml).unwrap_err().message().to_owned()
    }

    fn scores(perplexity: f64, base: f64) -> Scores {
        let sure = |value| Estimate { value, standard_error: None };
        Scores {
            tokens: 10,
            windows: 1,
            perplexity: sure(perplexity),
            against_base: Some(AgainstBase {
                perplexity: sure(base),
                perplexity_ratio: sure(perplexity / base),
                kl_mean: sure(0.1),
                kl_p99: sure(0.4),
                top1_agreement: sure(0.9),
            }),
            agreement: None,
        }
    }

    fn evaluation(outcome: Outcome) -> Evaluation {
        Evaluation {
            eval: "text".into(),
            task: DEFAULT_TASK.into(),
            variant: None,
            runner: "reference".into(),
            mode: None,
            device: None,
            outcome,
        }
    }

    fn measured(perplexity: f64, base: f64) -> Evaluation {
        evaluation(Outcome::Measured(Measurements::of(&scores(perplexity, base))))
    }

    fn statuses(gate: &Gate, evaluations: &[Evaluation]) -> Vec<Status> {
        gate.judge(evaluations).into_iter().map(|verdict| verdict.status).collect()
    }

    #[test]
    fn bounds_hold_at_their_limit_and_break_beyond() {
        use Status::{Failed, Passed};
        for (text, perplexity, wanted) in [
            ("perplexity at_most = 24", 24.0, Passed),
            ("perplexity at_most = 24", 24.1, Failed),
            ("perplexity at_least = 24", 24.0, Passed),
            ("perplexity at_least = 24", 23.9, Failed),
            ("perplexity drop_at_most = \"3%\"", 20.5, Passed),
            ("perplexity drop_at_most = \"3%\"", 20.7, Failed),
            ("perplexity worse_at_most = \"3%\"", 20.5, Passed),
            ("perplexity worse_at_most = \"3%\"", 20.7, Failed),
            ("perplexity worse_at_most = 0.03", 19.0, Passed),
            ("perplexity-ratio drop_at_most = \"3 %\"", 20.7, Failed),
            ("perplexity-ratio at_most = 1.03", 20.5, Passed),
            ("top1 drop_at_most = \"11%\"", 20.0, Passed),
            ("top1 drop_at_most = \"9%\"", 20.0, Failed),
            ("kl at_most = 0.1", 20.0, Passed),
            ("kl-p99 at_most = 0.39", 20.0, Failed),
        ] {
            assert_eq!(statuses(&gate(text), &[measured(perplexity, 20.0)]), [wanted], "{text}, {perplexity}");
        }
    }

    #[test]
    fn what_is_not_a_number_fails_every_bound() {
        for text in ["perplexity at_most = 1e300", "perplexity at_least = -1e300", "perplexity drop_at_most = \"100%\""] {
            let verdict = &gate(text).judge(&[measured(f64::NAN, 20.0)])[0];
            assert_eq!(verdict.status, Status::Failed, "{text}");
            assert!(verdict.measured.unwrap().is_nan());
        }
    }

    #[test]
    fn what_was_not_measured_is_not_run() {
        let mut without_base = scores(20.0, 20.0);
        without_base.against_base = None;
        let without_base = evaluation(Outcome::Measured(Measurements::of(&without_base)));
        let skipped = evaluation(Outcome::Skipped { reason: "onnxruntime is not installed here".into() });
        let verdict = &gate("kl at_most = 1").judge(std::slice::from_ref(&without_base))[0];
        assert_eq!((verdict.status, verdict.reason.as_str()), (Status::NotRun, "`kl` was not measured"));
        let verdict = &gate("perplexity drop_at_most = 1").judge(&[without_base])[0];
        assert_eq!(verdict.status, Status::NotRun);
        let verdict = &gate("kl at_most = 1").judge(&[skipped])[0];
        assert_eq!((verdict.status, verdict.reason.as_str()), (Status::NotRun, "onnxruntime is not installed here"));
        let verdict = &gate("kl at_most = 1").judge(&[])[0];
        assert_eq!((verdict.status, verdict.measured), (Status::NotRun, None));
    }

    #[test]
    fn a_gate_judges_every_evaluation_it_is_about_and_no_other() {
        let with = |variant: &str, runner: &str, mode| Evaluation {
            variant: Some(variant.into()),
            runner: runner.into(),
            mode,
            ..measured(20.0, 20.0)
        };
        let all = [
            with("int4", "reference", None),
            with("int8", "reference", None),
            with("int4", "onnxruntime", Some(Mode::Exact)),
            with("int4", "onnxruntime", Some(Mode::Default)),
        ];
        let count = |text: &str| gate(text).judge(&all).iter().filter(|verdict| verdict.status == Status::Passed).count();
        assert_eq!(count("perplexity at_most = 20"), 2);
        assert_eq!(count("perplexity at_most = 20\nvariant = \"int4\""), 1);
        assert_eq!(count("perplexity at_most = 20\nrunner = \"onnxruntime\""), 2);
        assert_eq!(count("perplexity at_most = 20\nrunner = \"onnxruntime\"\nmode = \"default\""), 1);
        assert_eq!(count("perplexity at_most = 20\nvariant = \"int3\""), 0);
        let other = Gate { eval: "other".into(), ..gate("perplexity at_most = 20") };
        assert_eq!(statuses(&other, &all), [Status::NotRun]);
    }

    #[test]
    fn agreement_can_be_bound() {
        let mut both = scores(20.0, 20.0);
        both.agreement = Some(Agreement { perplexity_gap: 0.002, max_logit_difference: 0.5, relative: 0.01 });
        let both = [evaluation(Outcome::Measured(Measurements::of(&both)))];
        assert_eq!(statuses(&gate("agreement-perplexity at_most = 0.001"), &both), [Status::Failed]);
        assert_eq!(statuses(&gate("agreement-logits at_most = 0.01"), &both), [Status::Passed]);
    }

    #[test]
    fn one_bound_is_one_bound() {
        assert_eq!(
            refusal("metric = \"a/kl\""),
            "a gate has exactly one of `at_most`, `at_least`, `worse_at_most` and `drop_at_most`; this one has none"
        );
        let two = refusal("metric = \"a/kl\"\nat_most = 1\ndrop_at_most = \"1%\"");
        assert_eq!(
            two,
            "a gate has exactly one of `at_most`, `at_least`, `worse_at_most` and `drop_at_most`; this one has `at_most` and `drop_at_most`"
        );
    }

    #[test]
    fn limits_are_numbers() {
        assert_eq!(refusal("metric = \"a/kl\"\nat_most = nan"), "`at_most = NaN` is not a bound");
        assert_eq!(refusal("metric = \"a/kl\"\nat_least = inf"), "`at_least = inf` is not a bound");
        assert_eq!(refusal("metric = \"a/kl\"\ndrop_at_most = \"3\""), "`drop_at_most = \"3\"` is not a bound");
        assert_eq!(refusal("metric = \"a/kl\"\ndrop_at_most = -0.1"), "`drop_at_most = -0.1` is not a bound");
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(refusal("metric = \"kl\"\nat_most = 1"), "`metric = \"kl\"` is not `EVAL/METRIC`");
        assert!(refusal("metric = \"a/kl\"\nat_mots = 1").starts_with("unknown field `at_mots`"));
        let evals = [("text", Some(TASKS[0])), (DEVICE, None)];
        assert!(gate("perplexity at_most = 1").check(&evals).is_ok());
        assert!(matches!(
            gate("perplexity at_most = 1").check(&[("txet", Some(TASKS[0]))]),
            Err(Error::UnknownEval { nearest: Some(_), .. })
        ));
        assert!(matches!(gate("perplexty at_most = 1").check(&evals), Err(Error::UnknownMetric { nearest: Some(_), .. })));
        assert!(matches!(gate("kl drop_at_most = 1").check(&evals), Err(Error::NoLoss { key: "drop_at_most", metric: "kl" })));
    }

    /// The ratio is 1.05 with a standard error of .01.
    fn uncertain(toml: &str) -> Verdict {
        let mut scores = scores(10.5, 10.0);
        let against = scores.against_base.as_mut().unwrap();
        against.perplexity_ratio.standard_error = Some(0.01);
        gate(toml).judge(&[evaluation(Outcome::Measured(Measurements::of(&scores)))]).remove(0)
    }

    #[test]
    fn what_is_too_uncertain_cannot_be_told() {
        // The 95% quantile of the normal distribution is 1.645.
        let sure = |limit: &str| uncertain(&format!("perplexity worse_at_most = \"{limit}%\"\nconfidence = 0.95"));
        let status = ["6.7", "6.6", "3.4", "3.3"].map(|limit| sure(limit).status);
        assert_eq!(status, [Status::Passed, Status::CannotTell, Status::CannotTell, Status::Failed]);
        let reason = sure("6").reason;
        assert!(reason.ends_with("10 tokens scored cannot tell with 95% confidence, about 28 would do"), "{reason}");
        assert_eq!(uncertain("perplexity worse_at_most = \"6%\"").status, Status::Passed, "it was not asked to be sure");
        let alike = |limit: &str, tokens: u64| {
            let mut scores = scores(10.0, 10.0);
            scores.tokens = tokens;
            scores.against_base.as_mut().unwrap().top1_agreement = Estimate { value: 1.0, standard_error: Some(0.0) };
            let gate = gate(&format!("top1 at_least = {limit}\nconfidence = 0.95"));
            gate.judge(&[evaluation(Outcome::Measured(Measurements::of(&scores)))]).remove(0)
        };
        // By the rule of three, 299 that are alike leave room for less than one in a hundred.
        assert_eq!([alike("0.99", 298).status, alike("0.99", 299).status], [Status::CannotTell, Status::Passed]);
        assert!(alike("0.99", 2).reason.ends_with("about 299 would do") && alike("1", 2).status == Status::CannotTell);
        let unknown = uncertain("kl at_most = 1\nconfidence = 0.9");
        assert!(unknown.status == Status::CannotTell && unknown.reason.contains("no standard error"), "{unknown:?}");
        assert_eq!(refusal("metric = \"text/kl\"\nat_most = 1\nconfidence = 95"), "`confidence = 95` is not a bound");
    }

    #[test]
    fn the_schema_is_that_of_recipes() {
        let schema = schemars::schema_for!(Gate).to_value().to_string();
        assert!(schema.contains("drop_at_most") && schema.contains("EVAL/METRIC") && !schema.contains("\"bound\""), "{schema}");
    }

    #[test]
    fn gates_survive_being_written() {
        for text in
            ["perplexity at_most = 1", "top1 at_least = 0.5\nvariant = \"x\"", "top1 drop_at_most = \"2%\"\nmode = \"exact\""]
        {
            let gate = gate(text);
            assert_eq!(serde_json::from_str::<Gate>(&serde_json::to_string(&gate).unwrap()).unwrap(), gate);
        }
    }
}
