//! Where ONNX Runtime's shared library lies: as in the wheels of PyPI.

use std::path::{Path, PathBuf};

/// The shared library of ONNX Runtime under the first root that has one. A root is the library itself, a virtual
/// environment, a `site-packages` folder, or the folder of the `onnxruntime` package.
pub fn find(roots: &[PathBuf]) -> Option<PathBuf> {
    roots.iter().find_map(|root| {
        if root.is_file() {
            return is_library(root).then(|| root.clone());
        }
        folders(root).iter().find_map(|folder| newest(folder))
    })
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let pythons = sorted(&root.join("lib")).into_iter().filter(|path| name(path).starts_with("python"));
    let mut packages: Vec<PathBuf> = pythons.map(|python| python.join("site-packages/onnxruntime/capi")).collect();
    packages.push(root.join("Lib/site-packages/onnxruntime/capi"));
    packages.push(root.join("onnxruntime/capi"));
    packages.push(root.join("capi"));
    packages.push(root.into());
    packages
}

fn newest(folder: &Path) -> Option<PathBuf> {
    sorted(folder).into_iter().filter(|path| path.is_file() && is_library(path)).max_by_key(|path| version(path))
}

fn is_library(path: &Path) -> bool {
    let name = name(path);
    let of_engine = name.starts_with("libonnxruntime.") || name == "onnxruntime.dll";
    of_engine && (name.contains(".so") || name.ends_with(".dylib") || name.ends_with(".dll"))
}

/// The numbers in `libonnxruntime.so.1.32.0`.
fn version(path: &Path) -> Vec<u32> {
    name(path).split('.').filter_map(|part| part.parse().ok()).collect()
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

    #[test]
    fn every_kind_of_root_leads_to_the_newest_library() {
        let folder = tempfile::tempdir().unwrap();
        let packages = folder.path().join("lib/python3.11/site-packages");
        let capi = packages.join("onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so", "x.py"] {
            std::fs::write(capi.join(name), "").unwrap();
        }
        let wanted = capi.join("libonnxruntime.so.1.32.0");
        for root in [folder.path(), &packages, &packages.join("onnxruntime"), &capi, &wanted] {
            assert_eq!(find(&[PathBuf::from("/nowhere"), root.into()]).as_ref(), Some(&wanted), "{}", root.display());
        }
        assert_eq!(find(&[capi.join("x.py"), folder.path().join("lib"), "/nowhere".into()]), None);
    }
}
