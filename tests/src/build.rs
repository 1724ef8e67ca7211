//! Compiling fixture programs, once for each content.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::Fixture;

/// A program that is ready to run.
#[derive(Clone, Debug)]
pub struct Built {
    /// The executable.
    pub path: PathBuf,
}

/// `fixtures/programs` of this checkout.
pub fn programs() -> PathBuf {
    root().join("fixtures/programs")
}

/// The checkout.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Builds the program, and the libraries that it names, in `folder`.
///
/// # Errors
/// What the compiler said. A warning is an error.
pub fn build(fixture: &Fixture, folder: &Path) -> Result<Built, String> {
    build_with(fixture, folder, &[])
}

/// The same with further arguments of the compiler.
///
/// # Errors
/// What the compiler said. A warning is an error.
pub fn build_with(fixture: &Fixture, folder: &Path, further: &[String]) -> Result<Built, String> {
    for name in words(fixture.get("libs"), folder) {
        library_with(&name, folder, further)?;
    }
    let mut all = words(fixture.get("build"), folder);
    all.extend_from_slice(further);
    program(&fixture.source, &folder.join(&fixture.name), &all)
}

/// Builds the program `source` as `out`, with these arguments of the compiler.
///
/// # Errors
/// What the compiler said. A warning is an error.
pub fn program(source: &Path, out: &Path, further: &[String]) -> Result<Built, String> {
    let folder = out.parent().unwrap_or(Path::new("/"));
    compile(source, out, folder, further)?;
    Ok(Built {
        path: out.to_owned(),
    })
}

/// Builds the library `name` in `folder`.
///
/// # Errors
/// What the compiler said. A warning is an error.
pub fn library(name: &str, folder: &Path) -> Result<PathBuf, String> {
    library_with(name, folder, &[])
}

/// The same with further arguments of the compiler.
///
/// # Errors
/// What the compiler said. A warning is an error.
pub fn library_with(name: &str, folder: &Path, further: &[String]) -> Result<PathBuf, String> {
    let source = programs().join("lib").join(format!("{name}.c"));
    let out = folder.join("lib").join(format!("{name}.so"));
    let mut all = vec!["-shared".into(), "-fPIC".into()];
    all.extend_from_slice(further);
    compile(&source, &out, folder, &all)?;
    Ok(out)
}

fn words(value: Option<&str>, folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    value
        .unwrap_or_default()
        .split_whitespace()
        .map(|w| w.replace("{dir}", &folder))
        .collect()
}

fn compile(source: &Path, out: &Path, folder: &Path, further: &[String]) -> Result<(), String> {
    // One at a time for each output: libraries are shared by programs, and
    // tests run in parallel.
    static OUTPUTS: OnceLock<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>> = OnceLock::new();
    let lock = OUTPUTS
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(out.to_owned())
        .or_default()
        .clone();
    let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);

    let mut command = compiler(source, folder);
    command.arg(source).args(further);
    let key = format!("{command:?}\n{}", contents(source)?);
    let key_path = out.with_extension("key");
    if out.exists() && fs::read(&key_path).is_ok_and(|k| k == key.as_bytes()) {
        return Ok(());
    }
    let parent = out.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(|e| format!("create {parent:?}: {e}"))?;
    // Built under another name and renamed, so that a half-written or
    // running program is never in the way.
    let fresh = out.with_extension("new");
    let output = command
        .arg("-o")
        .arg(&fresh)
        .current_dir(folder)
        .output()
        .map_err(|e| format!("run {command:?}: {e}"))?;
    if !output.status.success() || !output.stderr.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}:\n{said}"));
    }
    fs::rename(&fresh, out).map_err(|e| format!("rename {fresh:?}: {e}"))?;
    fs::write(&key_path, key).map_err(|e| format!("write {key_path:?}: {e}"))
}

/// The source and every header beside it.
fn contents(source: &Path) -> Result<String, String> {
    let mut paths = vec![source.to_owned()];
    let entries = fs::read_dir(programs()).map_err(|e| format!("read the programs: {e}"))?;
    paths.extend(
        entries
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "h")),
    );
    paths[1..].sort();
    let mut all = String::new();
    for path in paths {
        all += &fs::read_to_string(&path).map_err(|e| format!("read {path:?}: {e}"))?;
    }
    Ok(all)
}

fn compiler(source: &Path, folder: &Path) -> Command {
    let extension = source.extension().unwrap_or_default();
    if extension == "rs" {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(rustc);
        command.args(["-g", "--edition", "2024", "-D", "warnings"]);
        // The folder of the manifest decides the toolchain, the working
        // directory is the output's.
        command.env("RUSTUP_TOOLCHAIN", toolchain());
        return command;
    }
    let (name, standard) = match extension == "cc" {
        true => ("g++", "-std=gnu++17"),
        false => ("gcc", "-std=gnu17"),
    };
    let mut command = Command::new(name);
    let mut folder_macro = OsString::from("-DFIXTURE_DIR=\"");
    folder_macro.push(folder);
    folder_macro.push("\"");
    command
        .args(["-g", "-O0", standard, "-Wall", "-Wextra", "-D_GNU_SOURCE"])
        .arg(folder_macro)
        .arg("-I")
        .arg(programs());
    command
}

/// The toolchain that `rust-toolchain.toml` pins, unless rustup chose one.
fn toolchain() -> OsString {
    std::env::var_os("RUSTUP_TOOLCHAIN").unwrap_or_else(|| {
        let text = fs::read_to_string(root().join("rust-toolchain.toml")).unwrap_or_default();
        text.split("channel = \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .unwrap_or("stable")
            .into()
    })
}

/// The `leakscope` under test: `LEAKSCOPE_BIN`, or built by cargo with the
/// profile of this test (nothing to do when it is up to date).
///
/// # Errors
/// When it cannot be built.
pub fn leakscope() -> Result<PathBuf, String> {
    static PATH: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PATH.get_or_init(find_leakscope).clone()
}

fn find_leakscope() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("LEAKSCOPE_BIN") {
        return Ok(path.into());
    }
    // TARGET/PROFILE/deps/it-HASH
    let own = std::env::current_exe().map_err(|e| format!("find this test: {e}"))?;
    let profile_folder = own.ancestors().nth(2).ok_or("no profile folder")?;
    let target = profile_folder.parent().ok_or("no target folder")?;
    let profile = match profile_folder.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", "leakscope-cli"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(root())
        .output()
        .map_err(|e| format!("run cargo: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(profile_folder.join("leakscope"))
}
