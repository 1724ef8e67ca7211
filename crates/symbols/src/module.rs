//! One module's files, opened when its first address is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use leakscope_model::{Notice, RecordedModule};

use crate::bytes::hex;
use crate::compress;
use crate::debuginfod::Client;
use crate::demangle::{self, Names};
use crate::dwarf::{Debug, FindSplit, Found};
use crate::elf::Elf;
use crate::locate::{Finder, Located, path};
use crate::map::Contents;
use crate::symtab::Symbols;

/// What the kernel appends to the path of a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";
/// Largest symbol table in `.gnu_debugdata`, unpacked, bytes.
const MAX_MINI: u64 = 256 << 20;

/// A function around an address, ready to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub function: Option<String>,
    pub linkage: Option<String>,
    pub file: Option<Arc<str>>,
    pub line: Option<u32>,
}

/// Symbol tables and debug information that belong to one module.
#[derive(Default)]
pub(crate) struct Files {
    symbols: Symbols,
    /// Where they are wanted.
    variables: Option<Symbols>,
    debug: Option<Debug>,
    names: Names,
    /// True when there is a full symbol table.
    symtab: bool,
}

impl Files {
    /// All that one file has, without looking for others.
    pub(crate) fn from_single(elf: Elf) -> Files {
        let mut files = Files::default();
        files.add_symbols(&elf);
        files.symbols.finish();
        if elf.has_dwarf() {
            files.debug = Some(Debug::new(elf, None, None));
        }
        files
    }

    fn add_symbols(&mut self, elf: &Elf) {
        self.symtab |= elf.has_symtab();
        self.symbols.add(elf);
        if let Some(variables) = &mut self.variables {
            variables.add(elf);
        }
        // Fedora's stripped files keep a packed ELF file with the symbols
        // that `.dynsym` lacks.
        let mini = elf
            .section(".gnu_debugdata")
            .and_then(|s| elf.data(s).ok())
            .and_then(|packed| compress::xz(&packed, MAX_MINI).ok())
            .and_then(|plain| Elf::parse(Contents::from_vec(plain)).ok());
        if let Some(mini) = mini {
            self.symtab |= mini.has_symtab();
            self.symbols.add(&mini);
        }
    }

    fn finish(&mut self) {
        self.symbols.finish();
        if let Some(variables) = &mut self.variables {
            variables.finish();
        }
    }

    fn memory(&self) -> u64 {
        let variables = self.variables.as_ref().map_or(0, Symbols::memory);
        self.symbols.memory() + variables
    }

    /// Readable name of the variable around `at`, and how far inside it `at`
    /// is.
    pub(crate) fn variable(&mut self, at: u64) -> Option<(String, u64)> {
        let (name, inside) = self.variables.as_ref()?.within(at)?;
        let (readable, _) = self.names.of(name);
        Some((readable, inside))
    }

    /// The functions around `at`, inlined ones first; at least one entry,
    /// which may be empty.
    pub(crate) fn lookup(&mut self, at: u64, find_split: FindSplit<'_>) -> Vec<Named> {
        let found = match &mut self.debug {
            Some(debug) => debug.lookup(at, find_split),
            None => Vec::new(),
        };
        let names = &mut self.names;
        let mut named: Vec<Named> = found.into_iter().map(|f| named(f, names)).collect();
        let symbol = self.symbols.containing(at);
        if named.is_empty() {
            named.push(Named::default());
        }
        // Debug information leaves out the mangled names of lambdas and local
        // classes. And a function that it has only lines for, such as one in
        // assembly, has a symbol.
        if let (Some(outer), Some(symbol)) = (named.last_mut(), symbol) {
            let is_mangled = |name: &str| demangle::is_mangled(name.as_bytes());
            let plain = !outer.linkage.as_deref().is_some_and(is_mangled);
            // Inside its library a C function may have a reserved name that
            // no caller knows it by.
            let reserved = outer.linkage.as_deref().is_some_and(|n| n.starts_with('_'));
            let better = if outer.function.is_none() || plain && demangle::is_mangled(symbol) {
                Some(symbol)
            } else if plain && reserved {
                self.symbols.exported(at)
            } else {
                None
            };
            if let Some(symbol) = better {
                let (function, linkage) = names.of(symbol);
                (outer.function, outer.linkage) = (Some(function), Some(linkage));
            }
        }
        for named in &mut named {
            for name in [&mut named.function, &mut named.linkage] {
                without_internal_prefix(name);
            }
        }
        named
    }

    /// The address to look up for the return address `pc`: the call is
    /// before it. But nothing calls the kernel's way back from a signal
    /// handler: that return address is the first instruction.
    pub(crate) fn call_site(&self, pc: u64) -> u64 {
        match self.symbols.starting(pc) {
            Some(b"__restore_rt" | b"__restore") => pc,
            _ => pc.wrapping_sub(1),
        }
    }
}

/// glibc refers to its own functions by hidden aliases, made by putting
/// `__GI_` in front of the name.
fn without_internal_prefix(name: &mut Option<String>) {
    let plain = name.as_deref().and_then(|n| n.strip_prefix("__GI_"));
    if let Some(plain) = plain.filter(|n| !n.is_empty()) {
        *name = Some(plain.to_owned());
    }
}

fn named(found: Found, names: &mut Names) -> Named {
    let name = found.name.linkage.or(found.name.plain);
    let (function, linkage) = name.map(|n| names.of(&n)).unzip();
    Named {
        function,
        linkage,
        file: found.file,
        line: found.line,
    }
}

/// What a module needs from outside while it is opened.
pub(crate) struct Opener<'o> {
    pub finder: &'o Finder,
    pub server: Option<&'o mut Client>,
    pub notices: &'o mut Vec<Notice>,
    /// Bytes left for symbol tables and copies of debug sections.
    pub room: &'o mut u64,
    /// Names of variables are wanted.
    pub variables: bool,
}

/// A module and what was found for it.
pub(crate) struct Module {
    /// Path to show, without the kernel's mark.
    pub shown: String,
    path: PathBuf,
    files: Files,
    told_limit: bool,
}

impl Module {
    /// True for what has no file: the vdso and its like.
    pub(crate) fn is_fileless(recorded: &RecordedModule) -> bool {
        recorded.path.is_empty() || recorded.path.first() == Some(&b'[')
    }

    /// The module's path as it is shown.
    pub(crate) fn shown_path(recorded: &RecordedModule) -> String {
        let bytes = recorded.path.strip_suffix(DELETED);
        String::from_utf8_lossy(bytes.unwrap_or(&recorded.path)).into_owned()
    }

    /// Opens what there is. Never fails: what is missing is said in a notice.
    pub(crate) fn open(
        recorded: &RecordedModule,
        alternative: Option<&Path>,
        opener: &mut Opener<'_>,
    ) -> Module {
        let shown = Module::shown_path(recorded);
        let stripped = recorded.path.strip_suffix(DELETED);
        let own_path = path(stripped.unwrap_or(&recorded.path)).to_owned();
        let mut module = Module {
            shown,
            path: own_path,
            files: Files {
                variables: opener.variables.then(Symbols::variables),
                ..Files::default()
            },
            told_limit: false,
        };
        if Module::is_fileless(recorded) {
            return module;
        }
        let main = module.main_file(recorded, alternative, opener);
        let build_id = recorded
            .build_id
            .clone()
            .or_else(|| main.as_ref().and_then(|e| e.build_id.clone()));
        if let Some(main) = main.as_ref().filter(|_| *opener.room > 0) {
            module.files.add_symbols(main);
        }
        let mut debug = None;
        let mut main = main;
        if let Some(elf) = main.take_if(|e| e.has_dwarf()) {
            debug = Some(Located {
                elf,
                path: module.path.clone(),
            });
        } else if let Some(found) =
            opener
                .finder
                .debug_file(&module.path, build_id.as_deref(), main.as_ref())
        {
            module.files.add_symbols(&found.elf);
            debug = Some(found).filter(|f| f.elf.has_dwarf());
        }
        if debug.is_none()
            && let Some(id) = &build_id
            && let Some(server) = &mut opener.server
            && let Some(found) = server.fetch(id, &module.shown)
        {
            module.files.add_symbols(&found.elf);
            debug = Some(found).filter(|f| f.elf.has_dwarf());
        }
        if let Some(found) = debug.take_if(|d| d.elf.debug_size() > *opener.room) {
            opener.notices.push(Notice {
                code: "symbols-limited",
                message: format!(
                    "{}: its debug information is {} MiB, more than there is room for; only its symbol table is used",
                    module.shown,
                    found.elf.debug_size() >> 20
                ),
            });
        }
        if let Some(Located { elf, path }) = debug {
            let room = *opener.room;
            let fits = |elf: &Elf| elf.debug_size() <= room;
            let supplement = opener.finder.supplement(&elf, &path).filter(fits);
            if supplement.is_none() && elf.debugaltlink().is_some() {
                opener.notices.push(Notice {
                    code: "symbols-incomplete",
                    message: format!(
                        "{}: the supplementary file of its debug information (made by dwz) was not found; some names are missing",
                        module.shown
                    ),
                });
            }
            let package = opener.finder.package(&[&module.path, &path]).filter(fits);
            let debug = Debug::new(elf, supplement, package);
            *opener.room = opener.room.saturating_sub(debug.copied());
            module.files.debug = Some(debug);
        }
        module.files.finish();
        *opener.room = opener.room.saturating_sub(module.files.memory());
        module
    }

    /// The file that is (or was) mapped, if it can still be had.
    fn main_file(
        &self,
        recorded: &RecordedModule,
        alternative: Option<&Path>,
        opener: &mut Opener<'_>,
    ) -> Option<Elf> {
        let deleted = recorded.path.ends_with(DELETED);
        let want = recorded.build_id.as_deref();
        let fits = |elf: &Elf| want.is_none() || elf.build_id.as_deref() == want;
        let (code, what) = match opener.finder.target_file(&self.path) {
            // Without an id to compare, a file at the path of a deleted one
            // is most likely its successor.
            Ok(elf) if fits(&elf) && (want.is_some() || !deleted) => return Some(elf),
            Ok(_) => (
                "module-replaced",
                "was replaced since it was loaded".to_owned(),
            ),
            Err(_) if deleted => (
                "module-deleted",
                "was deleted since it was loaded".to_owned(),
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                ("module-deleted", "is not there any more".to_owned())
            }
            Err(e) => ("module-unreadable", format!("cannot be read ({e})")),
        };
        // A name may really end like that.
        let literal = (deleted && want.is_some())
            .then(|| opener.finder.target_file(path(&recorded.path)).ok())
            .flatten()
            .filter(fits);
        if literal.is_some() {
            return literal;
        }
        let still = alternative
            .and_then(|p| opener.finder.own_file(p).ok())
            .filter(fits);
        let and = match (&still, want) {
            (Some(_), _) => "its names come from the copy that the process still has".to_owned(),
            (None, Some(id)) => format!(
                "no file with its build id {} is there, so its names may be missing",
                hex(id)
            ),
            (None, None) => "its names are missing".to_owned(),
        };
        opener.notices.push(Notice {
            code,
            message: format!("{} {what}; {and}", self.shown),
        });
        still
    }

    /// True when neither debug information nor a full symbol table was found.
    pub(crate) fn lacks_symbols(&self) -> bool {
        self.files.debug.is_none() && !self.files.symtab
    }

    /// The variable around `at`, an address in the ELF file.
    pub(crate) fn variable(&mut self, at: u64) -> Option<(String, u64)> {
        self.files.variable(at)
    }

    /// The functions around the call that returns to `pc`, an address in the
    /// ELF file, and the address that was looked up.
    pub(crate) fn lookup(
        &mut self,
        pc: u64,
        finder: &Finder,
        notices: &mut Vec<Notice>,
    ) -> (u64, Vec<Named>) {
        let at = self.files.call_site(pc);
        let own_path = &self.path;
        let named = self
            .files
            .lookup(at, &mut |request| finder.split_unit(own_path, request));
        if !self.told_limit && self.files.debug.as_ref().is_some_and(Debug::exhausted) {
            self.told_limit = true;
            notices.push(Notice {
                code: "symbols-limited",
                message: format!(
                    "{}: its debug information asks for more work than its size justifies; the rest of its frames have no lines",
                    self.shown
                ),
            });
        }
        (at, named)
    }
}
