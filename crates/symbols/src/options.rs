//! What the caller decides.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use leakscope_model::ModuleId;

/// How and where to look for names.
#[derive(Clone, Debug)]
pub struct Options {
    /// False: no file is opened, frames are module and offset only.
    pub enabled: bool,
    /// Names of variables are wanted, besides those of functions.
    pub variables: bool,
    /// Where separate debug files are looked for, in this order and before
    /// `/usr/lib/debug`, which is always tried.
    pub debug_dirs: Vec<PathBuf>,
    /// When given, a source path of the debug information is shown as the
    /// file below this folder that matches the longest tail of it, if any.
    pub source_root: Option<PathBuf>,
    /// Root folder of the target's mount namespace, such as `/proc/PID/root`.
    /// Module paths are looked up below it, and no symbolic link leads out of
    /// it. `None`: our own root.
    pub root: Option<PathBuf>,
    /// Other ways to a module's file, such as `/proc/PID/exe` or an entry of
    /// `/proc/PID/map_files`: used when the recorded path is deleted, gone or
    /// holds another file. In our own mount namespace.
    pub alternatives: HashMap<ModuleId, PathBuf>,
    /// Servers to ask for debug files that this machine lacks.
    pub debuginfod: Option<Debuginfod>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            enabled: true,
            variables: false,
            debug_dirs: Vec::new(),
            source_root: None,
            root: None,
            alternatives: HashMap::new(),
            debuginfod: None,
        }
    }
}

/// Debuginfod servers and how patient to be with them.
///
/// A server that could not be reached is not asked again by the same
/// [`crate::Symbolizer`], so that being offline costs one failed connection.
#[derive(Clone, Debug)]
pub struct Debuginfod {
    /// Base addresses (`http://` or `https://`), asked in order.
    pub urls: Vec<String>,
    /// Where downloads are kept as `BUILDID/debuginfo`, the layout of
    /// elfutils' client, whose cache can be shared. `None`: not kept.
    pub cache_dir: Option<PathBuf>,
    /// Longest wait for a connection, TLS handshake included.
    pub connect_timeout: Duration,
    /// Longest time that all requests together may take.
    pub total_timeout: Duration,
    /// At most this many modules are asked for.
    pub max_modules: usize,
    /// Larger answers are refused, bytes.
    pub max_bytes: u64,
}

impl Debuginfod {
    /// The servers of `urls`, as `DEBUGINFOD_URLS` lists them (separated by
    /// white space), with the default patience: 1 s to connect, 30 s in all,
    /// 31 modules, 2 GiB each. `None` when the list names no server.
    pub fn from_list(urls: &str, cache_dir: Option<PathBuf>) -> Option<Debuginfod> {
        let urls: Vec<String> = urls
            .split_whitespace()
            .filter(|u| u.starts_with("http://") || u.starts_with("https://"))
            .map(|u| u.trim_end_matches('/').to_owned())
            .collect();
        if urls.is_empty() {
            return None;
        }
        Some(Debuginfod {
            urls,
            cache_dir,
            connect_timeout: Duration::from_secs(1),
            total_timeout: Duration::from_secs(30),
            max_modules: 31,
            max_bytes: 2 << 30,
        })
    }
}
