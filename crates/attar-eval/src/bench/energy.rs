//! Joules: from the counters that a machine has, or from a user's own meter.
//!
//! A counter only ever counts; power is what it counts in a time. The idle machine's is taken first and subtracted, and both numbers are told. A counter that is there and stays at zero
//! counts nothing, and is not taken for a measurement.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// How long the idle machine is looked at.
pub(super) const IDLE: Duration = Duration::from_secs(1);

/// Where Linux has the counters of packages (Intel's and AMD's RAPL).
pub(super) const POWERCAP: &str = "/sys/class/powercap";

/// What was used, and by which count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// What counted: zones of powercap, or the command.
    pub meter: String,
    /// While requests were answered.
    pub joules: f64,
    /// Of the idle machine, in watts.
    pub idle_watts: f64,
    /// Per token that was written, with what the idle machine would have used as well.
    pub joules_per_token: f64,
    /// Per token, without that.
    pub joules_per_token_above_idle: f64,
}

/// Something that counts joules.
pub(super) trait Meter {
    /// What it is.
    fn name(&self) -> String;
    /// The count now, in joules.
    fn joules(&mut self) -> io::Result<f64>;
}

/// Zones of powercap that count, such as processor packages, added up. They begin again at their ranges.
pub(super) struct Powercap {
    zones: Vec<Zone>,
}

struct Zone {
    folder: PathBuf,
    name: String,
    /// Microjoules after which it begins again.
    range: f64,
    last: f64,
    sum: f64,
}

impl Powercap {
    /// The zones of a folder such as [`POWERCAP`]; nothing, if none of them counts.
    pub(super) fn at(folder: &Path) -> Option<Powercap> {
        let entries = fs::read_dir(folder).ok()?.flatten();
        // `intel-rapl:0` is a package; `intel-rapl:0:1` is a part of it, and counted with it.
        let whole = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().matches(':').count() == 1);
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(whole).collect();
        folders.sort();
        let zone = |folder: PathBuf| {
            let last = number(&folder.join("energy_uj")).ok().filter(|count| *count > 0.0)?;
            let name = fs::read_to_string(folder.join("name")).unwrap_or_default().trim().to_owned();
            let range = number(&folder.join("max_energy_range_uj")).unwrap_or(f64::INFINITY);
            Some(Zone { folder, name, range, last, sum: 0.0 })
        };
        let zones: Vec<Zone> = folders.into_iter().filter_map(zone).collect();
        (!zones.is_empty()).then_some(Powercap { zones })
    }
}

fn number(path: &Path) -> io::Result<f64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("`{}` holds no number", path.display())))
}

impl Meter for Powercap {
    fn name(&self) -> String {
        self.zones.iter().map(|zone| zone.name.as_str()).collect::<Vec<_>>().join(" + ")
    }

    fn joules(&mut self) -> io::Result<f64> {
        for zone in &mut self.zones {
            let now = number(&zone.folder.join("energy_uj"))?;
            zone.sum += if now >= zone.last { now - zone.last } else { now + zone.range - zone.last };
            zone.last = now;
        }
        Ok(self.zones.iter().map(|zone| zone.sum).sum::<f64>() / 1e6)
    }
}

/// A command that prints the joules that its own counter has counted so far.
pub(super) struct Told {
    pub(super) command: String,
}

impl Meter for Told {
    fn name(&self) -> String {
        self.command.clone()
    }

    fn joules(&mut self) -> io::Result<f64> {
        let output = within(Command::new("sh").arg("-c").arg(&self.command), METER_LIMIT)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let joules = said.trim().parse::<f64>().ok().filter(|joules| joules.is_finite() && output.status.success());
        joules.ok_or_else(|| {
            let said: String = said.chars().take(80).collect();
            io::Error::new(io::ErrorKind::InvalidData, format!("the meter printed {said:?} ({}), expected joules", output.status))
        })
    }
}

/// How long a user's meter may take to say its count.
const METER_LIMIT: Duration = Duration::from_secs(10);

/// What a command says, if it ends in time. One that does not is killed.
fn within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).process_group(0).spawn()?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > limit {
            // The group: what the command began ends with it.
            let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&child), rustix::process::Signal::KILL);
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("the meter said nothing for {} s", limit.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output()
}

/// A count under way.
pub(super) struct Counting {
    meter: Box<dyn Meter>,
    idle_watts: f64,
    begun: f64,
    since: Instant,
}

impl Counting {
    /// Looks at the idle machine for a while, and begins.
    pub(super) fn begin(mut meter: Box<dyn Meter>, idle: Duration) -> io::Result<Counting> {
        let (before, start) = (meter.joules()?, Instant::now());
        std::thread::sleep(idle);
        let (begun, since) = (meter.joules()?, Instant::now());
        let idle_watts = (begun - before) / since.duration_since(start).as_secs_f64().max(f64::MIN_POSITIVE);
        Ok(Counting { meter, idle_watts, begun, since })
    }

    /// What `tokens` tokens took; an error where the count did not move, for no work takes nothing.
    pub(super) fn end(mut self, tokens: usize) -> io::Result<Energy> {
        let joules = self.meter.joules()? - self.begun;
        let seconds = self.since.elapsed().as_secs_f64();
        if joules <= 0.0 || tokens == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the count of {} did not move", self.meter.name())));
        }
        Ok(Energy {
            meter: self.meter.name(),
            joules,
            idle_watts: self.idle_watts,
            joules_per_token: joules / tokens as f64,
            joules_per_token_above_idle: (joules - self.idle_watts * seconds).max(0.0) / tokens as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn zone(root: &Path, zone: &str, name: &str, count: &str) {
        let folder = root.join(zone);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        fs::write(folder.join("energy_uj"), count).unwrap();
        fs::write(folder.join("max_energy_range_uj"), "10000000\n").unwrap();
    }

    #[test]
    fn packages_are_added_up_and_go_on_after_their_range() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), "intel-rapl:0", "package-0", "9000000\n");
        zone(root.path(), "intel-rapl:0:0", "core", "1000000\n");
        zone(root.path(), "intel-rapl:1", "package-1", "500000\n");
        let counting = Counting::begin(Box::new(Powercap::at(root.path()).unwrap()), NOW).unwrap();
        // One goes on for two joules, beyond its range; its core is a part of it.
        zone(root.path(), "intel-rapl:0", "package-0", "1000000\n");
        zone(root.path(), "intel-rapl:0:0", "core", "9000000\n");
        zone(root.path(), "intel-rapl:1", "package-1", "1500000\n");
        let found = counting.end(6).unwrap();
        assert_eq!((found.meter.as_str(), found.joules, found.joules_per_token), ("package-0 + package-1", 3.0, 0.5));
        assert_eq!((found.idle_watts, found.joules_per_token_above_idle), (0.0, 0.5));
    }

    #[test]
    fn a_counter_that_counts_nothing_is_none() {
        let root = tempfile::tempdir().unwrap();
        assert!(Powercap::at(root.path()).is_none() && Powercap::at(Path::new("/nonexistent")).is_none());
        zone(root.path(), "intel-rapl:0", "package-0", "0\n");
        assert!(Powercap::at(root.path()).is_none(), "it reads 0");
        zone(root.path(), "intel-rapl:0", "package-0", "5\n");
        let counting = Counting::begin(Box::new(Powercap::at(root.path()).unwrap()), NOW).unwrap();
        assert!(counting.end(10).unwrap_err().to_string().contains("did not move"));
    }

    #[test]
    fn a_users_own_meter_is_a_command() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        fs::write(&count, "100.0").unwrap();
        let command = format!("cat '{}'", count.display());
        let counting = Counting::begin(Box::new(Told { command: command.clone() }), NOW).unwrap();
        fs::write(&count, "104.5").unwrap();
        assert_eq!(counting.end(9).unwrap().joules_per_token, 0.5);
        let silent = within(Command::new("sleep").arg("5"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        for nonsense in ["printf lots", "echo nan", "echo 3; exit 1", "true"] {
            let error = Counting::begin(Box::new(Told { command: nonsense.into() }), NOW).err().unwrap().to_string();
            assert!(error.contains("expected joules"), "{nonsense}: {error}");
        }
    }
}
