//! Golden files: what a person would see, command by command.

use std::{fs, path::PathBuf};

use crate::room::{Said, repository};

/// A session as it would stand on a terminal, to be compared with `testdata/cli/NAME.txt`.
pub(crate) struct Session {
    name: &'static str,
    text: String,
}

impl Session {
    pub(crate) fn new(name: &'static str) -> Session {
        Session { name, text: String::new() }
    }

    /// Notes a command under a title.
    pub(crate) fn note(&mut self, title: &str, said: &Said) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        let code = said.code.map_or("a signal".into(), |code| code.to_string());
        let streams = [&said.stdout, &said.stderr].map(|text| text.trim_end().lines().map(|line| line.trim_end().to_owned()));
        let lines: Vec<String> = streams.into_iter().flatten().collect();
        self.text += &format!("# {title}\n$ {}\n{}\n[exit code {code}]\n", said.command, without_chance(&lines.join("\n")));
    }

    /// Compares with the golden file, or rewrites it under `BLESS=1`.
    #[track_caller]
    pub(crate) fn check(self) {
        let path = golden(self.name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("testdata can be written");
            fs::write(&path, &self.text).expect("testdata can be written");
            return;
        }
        let wanted = fs::read_to_string(&path).unwrap_or_default();
        let at = wanted.lines().zip(self.text.lines()).take_while(|(wanted, found)| wanted == found).count();
        assert!(
            wanted == self.text,
            "{} disagrees from line {} on; `BLESS=1` rewrites it. Found:\n{}",
            path.display(),
            at + 1,
            self.text.lines().skip(at.saturating_sub(3)).collect::<Vec<_>>().join("\n"),
        );
    }
}

fn golden(name: &str) -> PathBuf {
    repository().join("testdata/cli").join(format!("{name}.txt"))
}

/// Names of temporary files are drawn by lot; digests move with every format.
fn without_chance(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric();
    let mut quiet = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(word) {
        let end = rest[start..].find(|c| !word(c)).map_or(rest.len(), |length| start + length);
        quiet += &rest[..start];
        quiet += match &rest[start..end] {
            digest if digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()) => "DIGEST",
            name if name.len() == 9 && name.starts_with("tmp") && quiet.ends_with('.') => "tmpRANDOM",
            name if name.len() == 6 && quiet.ends_with(".partial-") => "RANDOM",
            _ if quiet.ends_with("partial/") => "PID",
            _ if quiet.ends_with("partial/PID-") => "RANDOM",
            other => other,
        };
        rest = &rest[end..];
    }
    quiet + rest
}
