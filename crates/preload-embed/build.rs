//! Builds `preload/` with its own profile and hands its object to the crate.
//!
//! `LEAKSCOPE_PRELOAD` names a prebuilt object instead, for builds without
//! the nested cargo (distributions, sanitizers).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = out.join("libleakscope.so");
    println!("cargo:rerun-if-env-changed=LEAKSCOPE_PRELOAD");
    if let Some(prebuilt) = env::var_os("LEAKSCOPE_PRELOAD") {
        let prebuilt = PathBuf::from(prebuilt);
        println!("cargo:rerun-if-changed={}", prebuilt.display());
        fs::copy(&prebuilt, &target)
            .unwrap_or_else(|e| panic!("copy the prebuilt {}: {e}", prebuilt.display()));
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for part in ["preload", "crates/recorder-core", "crates/wire"] {
        let part = root.join(part);
        println!(
            "cargo:rerun-if-changed={}",
            part.join("Cargo.toml").display()
        );
        println!("cargo:rerun-if-changed={}", part.join("src").display());
    }
    println!(
        "cargo:rerun-if-changed={}",
        root.join("preload/Cargo.lock").display()
    );
    println!(
        "cargo:rerun-if-changed={}",
        root.join("preload/build.rs").display()
    );

    let build = out.join("preload");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(root.join("preload/Cargo.toml"))
        .arg("--target-dir")
        .arg(&build);
    // Settings for the outer build (coverage, sanitizers, another target
    // directory, clippy's wrapper) are not for the object.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let outer = text.starts_with("CARGO_ENCODED_")
            || text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_BUILD_")
            || matches!(
                &*text,
                "RUSTFLAGS" | "CARGO_TARGET_DIR" | "RUSTC_WORKSPACE_WRAPPER" | "RUSTC_WRAPPER"
            );
        if outer {
            command.env_remove(&name);
        }
    }
    let status = command.status().expect("start cargo for preload/");
    assert!(
        status.success(),
        "building preload/ failed; see the messages above"
    );
    let object = build.join("release/libleakscope_preload.so");
    fs::copy(&object, &target).unwrap_or_else(|e| panic!("copy {}: {e}", object.display()));
}
