//! Where an engine is installed, and which version it is: as wheels of PyPI lay themselves out, or as a program on the search path.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use attar_tensor::Digest;

use super::kind::{Engine, Home, Package, Program, Worker};
use crate::{Error, Result};

/// Where a machine may have engines, in the order in which they are tried: for an engine `NAME`, its flag `--NAME`, the
/// variable `ATTAR_NAME`, the folder `NAME` of `ATTAR_ENGINES`, `ATTAR_ENGINES` itself, and `VIRTUAL_ENV`; for a program its flag,
/// `ATTAR_NAME`, [`Program::variable`] and `PATH`.
///
/// A path is a shared library, a Python interpreter, a virtual environment, a `site-packages` folder, or the folder of
/// the package; for a program the program or its folder.
#[derive(Clone, Debug, Default)]
pub struct Places {
    named: Vec<(&'static str, Looked)>,
    shared: Vec<Looked>,
    /// Folders of programs.
    path: Vec<PathBuf>,
    /// See [`Installation::runner`].
    runner: Vec<String>,
}

/// One place where an engine was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The flag or the variable.
    pub name: String,
    /// Its value, if it is given.
    pub path: Option<PathBuf>,
}

/// The variable that names the folder of all engines.
const ALL: &str = "ATTAR_ENGINES";

/// The variable that holds words in front of the command line of every engine's process: an emulator's.
const RUNNER: &str = "ATTAR_ENGINE_RUNNER";

/// The variable that Python sets in an active environment.
const ACTIVE: &str = "VIRTUAL_ENV";

impl Places {
    /// For `engines`, with the caller's ways to read a flag (`--NAME`) and an environment variable.
    pub fn read(
        engines: impl IntoIterator<Item = &'static Engine>,
        flag: impl Fn(&str) -> Option<PathBuf>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Places {
        let of_variable =
            |name: String| Looked { path: variable(&name).filter(|value| !value.is_empty()).map(PathBuf::from), name };
        let named = engines.into_iter().flat_map(|engine| {
            let given = flag(engine.name).map(|path| Looked { name: format!("--{}", engine.name), path: Some(path) });
            let usual = match &engine.home {
                Home::Wheel(_) => None,
                Home::Program(program) => Some(of_variable(program.variable.into())),
            };
            [given, Some(of_variable(engine.variable())), usual].into_iter().flatten().map(|looked| (engine.name, looked))
        });
        let words = variable(RUNNER).map(|words| words.to_string_lossy().into_owned()).unwrap_or_default();
        let runner = words.split_whitespace().map(str::to_owned).collect();
        let path = variable("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        Places { named: named.collect(), shared: vec![of_variable(ALL.into()), of_variable(ACTIVE.into())], path, runner }
    }

    /// The installation of `engine`. A flag or a variable of its own that names none is an error, whatever the other places have.
    pub fn find(&self, engine: &'static Engine) -> Result<Installation> {
        let looked = self.of(engine);
        let found = looked.iter().filter_map(|looked| looked.path.as_deref()).find_map(|path| self.at(engine, path));
        let found = found.map(|found| Installation { runner: self.runner.clone(), ..found });
        found.ok_or_else(|| Error::EngineMissing { title: engine.title, way_in: engine.home.way_in(), looked })
    }

    /// A program that is named without a folder is on the search path.
    fn at(&self, engine: &'static Engine, path: &Path) -> Option<Installation> {
        let bare = matches!(engine.home, Home::Program(_)) && path.components().count() == 1;
        let on_path = || self.path.iter().map(|folder| folder.join(path)).find(|path| path.is_file());
        let path = if bare { on_path().unwrap_or_else(|| path.into()) } else { path.into() };
        Installation::at(engine, &path)
    }

    fn of(&self, engine: &Engine) -> Vec<Looked> {
        let own = self.named.iter().filter(|(name, _)| *name == engine.name).map(|(_, looked)| looked.clone());
        let own: Vec<Looked> = own.collect();
        let decides =
            |looked: &&Looked| looked.path.is_some() && (looked.name.starts_with("--") || looked.name == engine.variable());
        if let Some(looked) = own.iter().find(decides) {
            return vec![looked.clone()];
        }
        if let Home::Program(_) = engine.home {
            let folders = self.path.iter().map(|folder| Looked { name: "PATH".into(), path: Some(folder.clone()) });
            return own.into_iter().chain(folders).collect();
        }
        let folder = self.shared.iter().filter(|looked| looked.name == ALL && looked.path.is_some());
        let folder = folder.map(|looked| Looked {
            name: format!("{ALL}/{}", engine.name),
            path: looked.path.as_ref().map(|path| path.join(engine.name)),
        });
        own.into_iter().chain(folder).chain(self.shared.iter().cloned()).collect()
    }
}

impl Engine {
    /// The environment variable that says where this engine is.
    pub fn variable(&self) -> String {
        format!("ATTAR_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// The environment variables that are read to find engines.
    pub fn variables(engines: impl IntoIterator<Item = &'static Engine>) -> Vec<String> {
        let usual = |engine: &Engine| match &engine.home {
            Home::Wheel(_) => None,
            Home::Program(program) => Some(program.variable.to_owned()),
        };
        engines
            .into_iter()
            .flat_map(|engine| [Some(engine.variable()), usual(engine)])
            .flatten()
            .chain([ALL.into(), ACTIVE.into()])
            .collect()
    }
}

/// An engine that is installed on this machine.
#[derive(Clone)]
pub struct Installation {
    /// Which one.
    pub engine: &'static Engine,
    /// Its shared library, or the program.
    pub library: PathBuf,
    /// The interpreter of the environment that holds it; only sought if the engine's worker is a script.
    pub interpreter: Option<PathBuf>,
    /// The version of its package, the numbers in the library's name, or what the program says; empty if none tells.
    pub version: String,
    /// Words in front of the command line of its process: an emulator of another processor. Mostly empty.
    pub runner: Vec<String>,
}

impl std::fmt::Debug for Installation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} at {}", self.engine.name, self.version, self.library.display())
    }
}

impl Installation {
    /// What `path` leads to, if it is an installation of `engine`.
    pub fn at(engine: &'static Engine, path: &Path) -> Option<Installation> {
        let package = match &engine.home {
            Home::Wheel(package) => package,
            Home::Program(program) => {
                let library = executable(program, path)?;
                let version = says(&library, "-dumpversion");
                return Some(Installation { engine, library, interpreter: None, version, runner: Vec::new() });
            }
        };
        let library = library(package, path)?;
        let interpreter = match engine.worker {
            Worker::Library(_) => None,
            Worker::Python(_) => Some(interpreter(&library)?),
        };
        let version = wheel(package, &library).map_or_else(|| numbers(&library), |(_, version)| version);
        Some(Installation { engine, library, interpreter, version, runner: Vec::new() })
    }

    /// The engine in messages: with both versions, if this is not the one that attar is tested with.
    pub fn title(&self) -> String {
        let (title, tested) = (self.engine.title, self.engine.tested());
        match (self.version.as_str(), tested) {
            ("", _) | (_, None) => title.into(),
            (version, Some(tested)) if version == tested => title.into(),
            (version, Some(tested)) => format!("{title} {version} (attar is tested with {tested})"),
        }
    }

    /// What decides the engine's results: the library and, for a wheel, the digests of all its files, and the words that
    /// choose another processor. Paths do not count, so that two environments with the same wheel are one.
    pub fn digest(&self) -> Result<Digest> {
        let library = Digest::of_file(&self.library).map_err(attar_model::Error::from)?;
        let files = match &self.engine.home {
            Home::Wheel(package) => wheel(package, &self.library).map(|(folder, _)| recorded(package, &folder)),
            Home::Program(_) => Some(self.version.clone()),
        };
        let rest = files.unwrap_or_default() + &self.runner.join(" ");
        Ok(Digest::of_parts([library.as_bytes().as_slice(), rest.as_bytes()]))
    }
}

/// The program at a path, or in that folder.
fn executable(program: &Program, path: &Path) -> Option<PathBuf> {
    let inside = program.names.iter().map(|name| path.join(name));
    std::iter::once(path.to_path_buf()).chain(inside).find(|path| path.is_file())
}

/// What a program prints of itself; empty if it cannot be run.
fn says(program: &Path, flag: &str) -> String {
    let said = std::process::Command::new(program).arg(flag).stdin(std::process::Stdio::null()).output();
    said.ok()
        .filter(|said| said.status.success())
        .map_or_else(String::new, |said| String::from_utf8_lossy(&said.stdout).trim().into())
}

/// The newest library of the package under `root`.
fn library(package: &Package, root: &Path) -> Option<PathBuf> {
    if !root.is_file() {
        return folders(package, root).iter().find_map(|folder| newest(package, folder));
    }
    if is_library(package, root) {
        return Some(root.into());
    }
    let environment = name(root).starts_with("python").then(|| root.parent().and_then(Path::parent)).flatten()?;
    folders(package, environment).iter().find_map(|folder| newest(package, folder))
}

fn folders(package: &Package, root: &Path) -> Vec<PathBuf> {
    let inside = Path::new(package.module).join(package.folder);
    let pythons = sorted(&root.join("lib")).into_iter().filter(|path| name(path).starts_with("python"));
    let mut folders: Vec<PathBuf> =
        pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|folder| python.join(folder).join(&inside))).collect();
    folders.push(root.join("Lib/site-packages").join(&inside));
    folders.push(root.join(inside));
    folders.push(root.join(package.folder));
    folders.push(root.into());
    folders
}

fn newest(package: &Package, folder: &Path) -> Option<PathBuf> {
    let libraries = sorted(folder).into_iter().filter(|path| path.is_file() && is_library(package, path));
    libraries.max_by_key(|path| numbers(path).split('.').filter_map(|part| part.parse().ok()).collect::<Vec<u32>>())
}

fn is_library(package: &Package, path: &Path) -> bool {
    let name = name(path);
    let stem = package.library;
    // The last is a module of Python's.
    let of_engine = name.starts_with(&format!("lib{stem}."))
        || name == format!("{stem}.dll")
        || name.starts_with(&format!("{stem}.cpython-"));
    of_engine && (name.contains(".so") || name.ends_with(".dylib") || name.ends_with(".dll"))
}

/// The numbers in `libonnxruntime.so.1.32.0`.
fn numbers(path: &Path) -> String {
    name(path).split('.').filter(|part| part.parse::<u32>().is_ok()).collect::<Vec<_>>().join(".")
}

/// The `*.dist-info` folder of the wheel that a library came with, and the wheel's version.
fn wheel(package: &Package, library: &Path) -> Option<(PathBuf, String)> {
    let site = library.ancestors().nth(2 + Path::new(package.folder).components().count())?;
    distribution(site, package.module)
}

/// The `*.dist-info` folder of a module, and its version.
fn distribution(site: &Path, module: &str) -> Option<(PathBuf, String)> {
    sorted(site).into_iter().find_map(|path| {
        let version = name(&path).strip_suffix(".dist-info")?.strip_prefix(module)?.strip_prefix('-')?.to_owned();
        Some((path, version))
    })
}

/// The lines of a wheel's `RECORD` that give digests of the package's own files. Scripts that the installer wrote name
/// the environment, and compiled Python files the moment of their making.
fn recorded(package: &Package, wheel: &Path) -> String {
    let others = package.needs.iter().filter_map(|module| Some((*module, distribution(wheel.parent()?, module)?.0)));
    let mut lines = Vec::new();
    for (module, folder) in std::iter::once((package.module, wheel.to_path_buf())).chain(others) {
        let text = std::fs::read_to_string(folder.join("RECORD")).unwrap_or_default();
        let own = text.lines().filter(|line| line.starts_with(&format!("{module}/")) && line.contains("sha256="));
        lines.extend(own.map(str::to_owned));
    }
    lines.sort_unstable();
    lines.join("\n")
}

/// The interpreter of the environment that holds a library in its `site-packages`.
fn interpreter(library: &Path) -> Option<PathBuf> {
    let roots = library.ancestors().skip(4);
    let names = ["bin/python", "bin/python3", "Scripts/python.exe"];
    roots.take(3).flat_map(|root| names.map(|name| root.join(name))).find(|path| path.is_file())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ENGINES;

    /// Engines that are wheels, and these.
    fn wheels() -> impl Iterator<Item = (&'static Engine, &'static Package)> {
        let wheel = |engine: &&'static Engine| match &engine.home {
            Home::Wheel(package) => Some((*engine, package)),
            Home::Program(_) => None,
        };
        ENGINES.iter().filter_map(wheel)
    }

    /// An environment with a wheel under `root`, and the library that counts.
    fn environment(package: &Package, root: &Path) -> PathBuf {
        let site = root.join("lib/python3.11/site-packages");
        let folder = site.join(package.module).join(package.folder);
        let wheel = site.join(format!("{}-7.8.9.dist-info", package.module));
        let bin = root.join("bin");
        [&folder, &wheel, &bin].into_iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        let library = format!("lib{}.so", package.library);
        for file in
            [format!("{library}.1.9.0"), format!("{library}.1.32.0"), format!("lib{}_c.so.2.0.0", package.library), "x.py".into()]
        {
            std::fs::write(folder.join(file), "code").unwrap();
        }
        std::fs::write(bin.join("python"), "").unwrap();
        let record = format!("../../../bin/x,sha256={},1\n{}/a.so,sha256=abc,1\n", root.display(), package.module);
        std::fs::write(wheel.join("RECORD"), record).unwrap();
        folder.join(format!("{library}.1.32.0"))
    }

    #[test]
    fn every_kind_of_path_leads_to_the_newest_library_and_its_version() {
        for (engine, package) in wheels() {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            let library = environment(package, root);
            let site = root.join("lib/python3.11/site-packages");
            let own = site.join(package.module);
            for path in [root, &root.join("bin/python"), &site, &own, library.parent().unwrap(), &library] {
                let found = Installation::at(engine, path).unwrap_or_else(|| panic!("{}", path.display()));
                assert_eq!((&found.library, found.version.as_str()), (&library, "7.8.9"), "{}", path.display());
            }
            for path in [&root.join("lib"), Path::new("/nowhere"), &own.join("x.py")] {
                assert!(Installation::at(engine, path).is_none(), "{}", path.display());
            }
        }
    }

    #[test]
    fn the_digest_is_that_of_the_files_and_not_of_the_place() {
        for (engine, package) in wheels() {
            let [one, two] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let libraries = [&one, &two].map(|folder| environment(package, folder.path()));
            let digest = |folder: &tempfile::TempDir| Installation::at(engine, folder.path()).unwrap().digest().unwrap();
            assert_eq!(digest(&one), digest(&two));
            std::fs::write(&libraries[1], "other code").unwrap();
            assert_ne!(digest(&one), digest(&two));
        }
    }

    #[test]
    fn flags_come_before_variables_and_variables_before_environments() {
        for (engine, package) in wheels() {
            let [flag, own, all, active] = [(); 4].map(|()| tempfile::tempdir().unwrap());
            for root in [flag.path(), own.path(), &all.path().join(engine.name), active.path()] {
                environment(package, root);
            }
            let find = |with_flag: bool, set: &[(&str, &Path)]| {
                let variable = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, path)| path.as_os_str().to_owned());
                let places = Places::read(
                    ENGINES.iter().copied(),
                    |name| (with_flag && name == engine.name).then(|| flag.path().into()),
                    variable,
                );
                places.find(engine).map(|found| found.library)
            };
            let variable = engine.variable();
            let set = [(variable.as_str(), own.path()), (ALL, all.path()), (ACTIVE, active.path())];
            assert!(find(true, &set).unwrap().starts_with(flag.path()));
            for (first, wanted) in [own.path(), all.path(), active.path()].into_iter().enumerate() {
                assert!(find(false, &set[first..]).unwrap().starts_with(wanted));
            }
            assert!(find(false, &[(ALL, active.path())]).unwrap().starts_with(active.path()), "one environment for all engines");
        }
    }

    #[test]
    fn an_engine_that_is_missing_says_where_it_was_looked_for() {
        for (engine, _) in wheels() {
            let variable = |name: &str| (name == ALL).then(|| "/nowhere".into());
            let error = Places::read(ENGINES.iter().copied(), |_| None, variable).find(engine).unwrap_err();
            assert_eq!(error.to_string(), format!("{} is not installed", engine.title));
            let hint = error.hint().unwrap();
            let wanted = format!(
                "`/nowhere/{}` (ATTAR_ENGINES/{}) and `/nowhere` (ATTAR_ENGINES) do not have it; {} and VIRTUAL_ENV are unset",
                engine.name,
                engine.name,
                engine.variable()
            );
            assert!(hint.ends_with(&wanted), "{hint}");
            let flagged = Places::read(ENGINES.iter().copied(), |_| Some("/nowhere".into()), variable).find(engine).unwrap_err();
            assert!(
                flagged.hint().unwrap().ends_with(&format!("`/nowhere` (--{}) does not have it", engine.name)),
                "{flagged:?}"
            );
        }
    }

    #[test]
    fn programs_are_named_by_flags_and_variables_or_are_on_the_path() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let program = |at: usize, name: &str| {
            let path = folders[at].path().join(name);
            std::fs::write(&path, "").unwrap();
            path
        };
        let (own, cc, gcc) = (program(0, "own"), program(1, "cc"), program(2, "gcc"));
        let engine = ENGINES.iter().find(|engine| matches!(engine.home, Home::Program(_))).unwrap();
        let path = std::env::join_paths([folders[2].path(), folders[1].path()]).unwrap();
        let find = |set: &[(&str, &std::ffi::OsStr)]| {
            let variable = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, value)| value.to_os_string());
            Places::read([*engine], |_| None, variable).find(engine).map(|found| found.library)
        };
        let both = [("PATH", path.as_os_str()), ("ATTAR_C", own.as_os_str())];
        assert_eq!(find(&both).unwrap(), own);
        assert_eq!(find(&both[..1]).unwrap(), gcc);
        assert_eq!(find(&[("PATH", &path), ("CC", "cc".as_ref())]).unwrap(), cc);
        let hint = find(&[]).unwrap_err().hint().unwrap();
        assert!(hint.ends_with("name it in ATTAR_C; ATTAR_C and CC are unset"), "{hint}");
        assert!(find(&[("PATH", folders[0].path().as_ref())]).unwrap_err().hint().unwrap().contains("(PATH) does not have it"));
    }
}
