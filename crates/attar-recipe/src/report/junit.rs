//! Gates as test cases, in the XML that CI systems read (JUnit's, as Jenkins and GitLab define it).

use std::fmt::Write;

use attar_compile::report::markup::escaped;
use attar_eval::{Status, Verdict};

use super::{Report, evals::runner};

impl Report {
    /// One test case for each verdict. What was not run is an error, as it is no pass.
    pub fn junit(&self) -> String {
        let verdicts: Vec<&Verdict> = self.verdicts().collect();
        let count = |status: Status| verdicts.iter().filter(|verdict| verdict.status == status).count();
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            text,
            "<testsuites>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\">",
            escaped(&self.recipe),
            verdicts.len(),
            count(Status::Failed) + count(Status::CannotTell),
            count(Status::NotRun)
        );
        for verdict in verdicts {
            let gate = &verdict.gate;
            let who = runner(&gate.runner, verdict.mode, verdict.device.as_deref());
            let class =
                verdict.variant.as_deref().filter(|name| !name.is_empty()).map_or(who.clone(), |name| format!("{name}, {who}"));
            let name = format!("{}/{} {} {}", gate.eval, gate.metric, gate.bound.key(), verdict.limit);
            let _ = write!(text, "<testcase classname=\"{}\" name=\"{}\"", escaped(&class), escaped(&name));
            let reason = escaped(&verdict.reason);
            let _ = match verdict.status {
                Status::Passed => writeln!(text, "/>"),
                Status::Failed | Status::CannotTell => writeln!(text, "><failure message=\"{reason}\"/></testcase>"),
                Status::NotRun => writeln!(text, "><error message=\"not run: {reason}\"/></testcase>"),
            };
        }
        text + "</testsuite>\n</testsuites>\n"
    }
}
