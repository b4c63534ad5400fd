//! What measures: the machine, and how much of it others took meanwhile.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

/// A machine, as far as it says what it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: Option<String>,
    /// Logical cores.
    pub cores: usize,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// The kernel's name and version.
    pub system: Option<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let line = |path: &str, key: &str| {
            let text = fs::read_to_string(path).ok()?;
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'))?.1.trim().to_owned();
            Some(value)
        };
        let memory = line("/proc/meminfo", "MemTotal").and_then(|text| kibibytes(&text));
        let system = fs::read_to_string("/proc/version").ok();
        Machine {
            processor: line("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            memory,
            system: system.map(|text| text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")),
        }
    }
}

/// `12 kB` in bytes.
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Peak bytes of resident memory of a process, and bytes now.
pub(crate) fn resident(process: u32) -> [Option<u64>; 2] {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    ["VmHWM:", "VmRSS:"].map(|key| kibibytes(text.lines().find_map(|line| line.strip_prefix(key))?.trim()))
}

/// Time that processors spent, in ticks of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Ticks {
    /// By anybody.
    busy: u64,
    /// That a host took for other machines.
    stolen: u64,
    all: u64,
}

impl Ticks {
    /// Of all processors since the start.
    pub(crate) fn now() -> Option<Ticks> {
        Ticks::of(&fs::read_to_string("/proc/stat").ok()?)
    }

    fn of(text: &str) -> Option<Ticks> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|tick| tick.parse().ok()).collect();
        let [user, nice, system, idle, waiting, interrupts, soft, stolen, ..] = ticks[..] else { return None };
        let busy = user + nice + system + interrupts + soft;
        Some(Ticks { busy, stolen, all: busy + idle + waiting + stolen })
    }

    /// Of a process and its threads.
    pub(crate) fn of_process(process: u32) -> Option<u64> {
        let text = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).ok()?;
        // The name in parentheses may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    }

    /// Shares of the processors' time since `before` that went to others than those who took `own` ticks, and that a host took.
    pub(crate) fn since(self, before: Ticks, own: u64) -> [f64; 2] {
        let all = self.all.saturating_sub(before.all).max(1) as f64;
        let others = self.busy.saturating_sub(before.busy).saturating_sub(own) as f64;
        [others / all, self.stolen.saturating_sub(before.stolen) as f64 / all]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_others() {
        let before = Ticks::of("cpu  100 0 50 800 50 0 0 10 0 0\ncpu0 1 2\n").expect("a line of the kernel");
        let after = Ticks::of("cpu  180 0 70 860 60 0 0 30 0 0\n").expect("a line of the kernel");
        assert_eq!(after.since(before, 60), [40.0 / 190.0, 20.0 / 190.0]);
        assert_eq!(Ticks::of("cpu 1 2 3"), None);
    }

    #[test]
    fn a_process_has_memory_and_time() {
        let [peak, now] = resident(std::process::id());
        assert!(peak.expect("Linux says it") >= now.expect("Linux says it"));
        assert!(Ticks::of_process(std::process::id()).is_some() && Ticks::now().is_some());
        assert!(Machine::here().cores > 0);
    }
}
