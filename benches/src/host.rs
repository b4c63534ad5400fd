//! The machine, the checkout and the binary that is measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Failure;

/// Processor and threads.
pub(crate) fn description() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")).map(|line| line.trim_start_matches([' ', '\t', ':']));
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    format!("{}, {threads} threads", model.unwrap_or(std::env::consts::ARCH))
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("benches lie in the repository")
}

/// The folder that this program was built into, two above it.
pub(crate) fn target() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path");
    program.ancestors().nth(2).expect("it lies in target/release").into()
}

/// An empty folder for what a benchmark writes.
pub(crate) fn scratch(name: &str) -> Result<PathBuf, Failure> {
    let folder = target().join("bench").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The binary of users, as the sources are now.
pub(crate) fn attar() -> Result<PathBuf, Failure> {
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--release", "--quiet", "--package", "attar"]).current_dir(root()).env("CARGO_TARGET_DIR", target());
    if !build.status()?.success() {
        return Err("attar does not build".into());
    }
    Ok(target().join("release/attar"))
}

/// Bytes free where `path` is.
pub(crate) fn free_bytes(path: &Path) -> Result<f64, Failure> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` ends in a zero, `found` has room for one, and plain numbers may be zeros.
    let (answer, found) = unsafe { (libc::statvfs(path.as_ptr(), found.as_mut_ptr()), found.assume_init()) };
    if answer != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(found.f_bavail as f64 * found.f_frsize as f64)
}

/// Copies every file of a folder, as a baseline of moving the bytes once.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<u64, Failure> {
    fs::create_dir_all(to)?;
    let mut bytes = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (mut input, mut output) = (fs::File::open(entry.path())?, fs::File::create(to.join(entry.file_name()))?);
        // Through a buffer, as any program must that looks at the bytes; the kernel alone could share them.
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = std::io::Read::read(&mut input, &mut buffer)?;
            if count == 0 {
                break;
            }
            std::io::Write::write_all(&mut output, &buffer[..count])?;
            bytes += count as u64;
        }
    }
    Ok(bytes)
}
