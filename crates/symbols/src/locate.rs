//! Where the files are: the module's own, its separate debug file, the
//! supplementary one of dwz, and split units.
//!
//! A file counts only if it proves that it belongs to the module: by build
//! id, by the CRC that the module recorded, or (split units) by unit id.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::bytes::hex;
use crate::dwarf::SplitRequest;
use crate::elf::Elf;
use crate::map::Contents;
use crate::open;

/// An opened file and where it was.
pub(crate) struct Located {
    pub elf: Elf,
    pub path: PathBuf,
}

/// Looks in the target's root, then in ours.
pub(crate) struct Finder {
    root: Option<PathBuf>,
    debug_dirs: Vec<PathBuf>,
}

/// The system's folder for separate debug files.
const SYSTEM_DEBUG_DIR: &str = "/usr/lib/debug";

/// The path in `bytes`.
pub(crate) fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

impl Finder {
    pub(crate) fn new(root: Option<PathBuf>, debug_dirs: &[PathBuf]) -> Finder {
        let mut debug_dirs = debug_dirs.to_vec();
        let system = PathBuf::from(SYSTEM_DEBUG_DIR);
        if !debug_dirs.contains(&system) {
            debug_dirs.push(system);
        }
        Finder { root, debug_dirs }
    }

    /// The ELF file that the target knows by this path.
    pub(crate) fn target_file(&self, path: &Path) -> io::Result<Elf> {
        let file = open::regular_file(self.root.as_deref(), path)?;
        Elf::parse(Contents::new(file)?)
    }

    /// The ELF file at a path of our own mount namespace.
    pub(crate) fn own_file(&self, path: &Path) -> io::Result<Elf> {
        let file = open::regular_file(None, path)?;
        Elf::parse(Contents::new(file)?)
    }

    /// Both views of a path, ours first: debug files are installed where the
    /// examination happens.
    fn both(&self, path: &Path) -> impl Iterator<Item = Elf> + '_ {
        let own = self.own_file(path).ok();
        let target = match self.root {
            Some(_) => self.target_file(path).ok(),
            None => None,
        };
        own.into_iter().chain(target)
    }

    /// The separate debug file of a module: by build id, then by the link in
    /// the module's file.
    pub(crate) fn debug_file(
        &self,
        module: &Path,
        build_id: Option<&[u8]>,
        elf: Option<&Elf>,
    ) -> Option<Located> {
        build_id
            .and_then(|id| self.by_build_id(id, "debug"))
            .or_else(|| self.by_debuglink(module, build_id, elf?))
    }

    /// `DIR/.build-id/xx/yyyy.SUFFIX`, whose contents must have that id.
    fn by_build_id(&self, id: &[u8], suffix: &str) -> Option<Located> {
        let digits = hex(id);
        let (first, rest) = digits.split_at_checked(2)?;
        if rest.is_empty() {
            return None;
        }
        let tail = format!(".build-id/{first}/{rest}.{suffix}");
        self.debug_dirs.iter().find_map(|dir| {
            let path = dir.join(&tail);
            let elf = self
                .both(&path)
                .find(|e| e.build_id.as_deref() == Some(id))?;
            Some(Located { elf, path })
        })
    }

    fn by_debuglink(&self, module: &Path, id: Option<&[u8]>, elf: &Elf) -> Option<Located> {
        let (name, crc) = elf.debuglink()?;
        let name = path(&name);
        let dir = module.parent()?;
        let mut candidates = vec![dir.join(name), dir.join(".debug").join(name)];
        let relative = dir.strip_prefix("/").unwrap_or(dir);
        for debug_dir in &self.debug_dirs {
            candidates.push(debug_dir.join(relative).join(name));
            // Where /lib is a link to /usr/lib, packages use either.
            match relative.strip_prefix("usr") {
                Ok(short) => candidates.push(debug_dir.join(short).join(name)),
                Err(_) => candidates.push(debug_dir.join("usr").join(relative).join(name)),
            }
        }
        candidates
            .into_iter()
            .filter(|c| c != module)
            .find_map(|path| {
                let matches = |found: &Elf| match (id, found.build_id.as_deref()) {
                    (Some(want), Some(has)) => want == has,
                    _ => found.contents.crc32().is_ok_and(|c| c == crc),
                };
                // First as the target sees it: the link lies beside the module.
                let target = self.target_file(&path).ok();
                let elf = target
                    .into_iter()
                    .chain(self.own_file(&path).ok())
                    .find(matches)?;
                Some(Located { elf, path })
            })
    }

    /// The supplementary file that dwz shared out of several debug files.
    pub(crate) fn supplement(&self, debug: &Elf, debug_path: &Path) -> Option<Elf> {
        let (link, id) = debug.debugaltlink()?;
        let at = debug_path.parent().unwrap_or(debug_path).join(path(&link));
        self.both(&at)
            .find(|e| e.build_id.as_deref() == Some(&id))
            .or_else(|| Some(self.by_build_id(&id, "debug")?.elf))
    }

    /// The package of split units beside the module or its debug file.
    pub(crate) fn package(&self, paths: &[&Path]) -> Option<Elf> {
        paths.iter().find_map(|path| {
            let mut whole = path.as_os_str().to_owned();
            whole.push(".dwp");
            [PathBuf::from(whole), path.with_extension("dwp")]
                .iter()
                .find_map(|p| self.both(p).next())
                .filter(|e| e.section(".debug_cu_index").is_some())
        })
    }

    /// Files that may hold a split unit: where the compiler put it, beside
    /// the module, and in the debug folders. The caller checks the id.
    pub(crate) fn split_unit(&self, module: &Path, request: &SplitRequest<'_>) -> Vec<Elf> {
        let name = path(request.name);
        let Some(file_name) = name.file_name() else {
            return Vec::new();
        };
        let dir = module.parent().unwrap_or(Path::new("/"));
        let mut candidates = vec![
            path(request.comp_dir).join(name),
            dir.join(name),
            dir.join(file_name),
        ];
        candidates.extend(self.debug_dirs.iter().map(|d| d.join(file_name)));
        candidates.retain(|c| c.is_absolute());
        candidates.dedup();
        candidates.iter().flat_map(|c| self.both(c)).collect()
    }
}
