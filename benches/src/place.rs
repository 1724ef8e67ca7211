//! The folder of one measurement: built programs, inputs, outputs.

use crate::options::Options;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder; removed at the end.
pub struct Place {
    /// Where everything is.
    pub folder: PathBuf,
    /// The leakscope binary.
    pub leakscope: PathBuf,
}

impl Place {
    /// Makes the folder and finds the binary.
    ///
    /// # Errors
    /// When either is impossible.
    pub fn new(options: &Options) -> Result<Place, String> {
        let leakscope = match &options.leakscope {
            Some(path) => PathBuf::from(path),
            None => beside()?,
        };
        let leakscope = leakscope.canonicalize().map_err(|e| {
            format!(
                "failed to find leakscope at {}: {e} (build it with `cargo build --release`, or name it with --leakscope)",
                leakscope.display()
            )
        })?;
        let name = format!("leakscope-bench-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder)
            .map_err(|e| format!("failed to make {}: {e}", folder.display()))?;
        let folder = folder.canonicalize().unwrap_or(folder);
        Ok(Place { folder, leakscope })
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Builds a program of `benches/programs` and says where it is.
    ///
    /// # Errors
    /// When the compiler cannot be run or refuses.
    pub fn build(&self, source: &str, flags: &[&str]) -> Result<PathBuf, String> {
        let (name, suffix) = source.split_once('.').unwrap_or((source, ""));
        let built = self.file(name);
        if built.exists() {
            return Ok(built);
        }
        let compiler = if suffix == "cc" { "c++" } else { "cc" };
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
        let status = Command::new(compiler)
            .args(["-O2", "-g", "-o"])
            .arg(&built)
            .arg(programs.join(source))
            .args(flags)
            .stdin(Stdio::null())
            .status();
        match status {
            Ok(status) if status.success() => Ok(built),
            Ok(status) => Err(format!("{compiler} failed to build {source}: {status}")),
            Err(e) => Err(format!("failed to run {compiler}: {e}")),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays behind is only a temporary folder.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn beside() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("failed to find myself: {e}"))?;
    Ok(own.with_file_name("leakscope"))
}
