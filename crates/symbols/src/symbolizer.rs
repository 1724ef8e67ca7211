//! The entry: frames in, names out.

use std::collections::HashMap;
use std::sync::Arc;

use leakscope_model::{Addr, Frame, ModuleId, Notice, RawFrame, RecordedModule};

use crate::debuginfod::Client;
use crate::locate::Finder;
use crate::module::{Module, Named, Opener};
use crate::options::Options;
use crate::source::SourceRoot;

/// Modules named in the notice about missing symbols.
const MAX_LISTED: usize = 7;

/// Memory for symbol tables and for copies of debug sections that cannot be
/// mapped, over all modules, bytes.
const MAX_COPIED: u64 = 2 << 30;

/// Turns return addresses of one process into functions, files and lines.
///
/// Files are opened when the first address in them is asked for, and answers
/// are kept, so a frame that many stacks share costs once. It needs as much
/// memory as the debug sections of the files that it opened, where they could
/// not be mapped, and a bounded amount per file for decoded tables.
pub struct Symbolizer {
    options: Options,
    recorded: Vec<RecordedModule>,
    finder: Finder,
    server: Option<Client>,
    source_root: Option<SourceRoot>,
    /// Opened modules; a file that was loaded twice is opened once.
    modules: Vec<Module>,
    by_file: HashMap<FileKey, usize>,
    by_id: HashMap<ModuleId, usize>,
    cache: HashMap<(ModuleId, Addr), Arc<[Frame]>>,
    notices: Vec<Notice>,
    unnamed: Vec<String>,
    room: u64,
}

/// Path and build id.
type FileKey = (Vec<u8>, Option<Vec<u8>>);

/// A variable around an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Demangled name.
    pub name: String,
    /// How far inside it the address is, bytes.
    pub inside: u64,
}

impl Symbolizer {
    /// For the modules of a [`leakscope_model::LiveTable`]; `RawFrame::module`
    /// is an index into them. Opens nothing yet.
    pub fn new(options: Options, modules: &[RecordedModule]) -> Symbolizer {
        Symbolizer {
            finder: Finder::new(options.root.clone(), &options.debug_dirs),
            server: options.debuginfod.clone().map(Client::new),
            source_root: options.source_root.clone().map(SourceRoot::new),
            recorded: modules.to_vec(),
            modules: Vec::new(),
            by_file: HashMap::new(),
            by_id: HashMap::new(),
            cache: HashMap::new(),
            notices: Vec::new(),
            unnamed: Vec::new(),
            room: MAX_COPIED,
            options,
        }
    }

    /// The functions at a return address, the innermost inlined one first and
    /// the one that was really called last (`inlined` is false in it alone).
    ///
    /// Never empty and never fails: what is not known is `None`.
    /// `module_offset` is the address that was looked up, one before the
    /// return address: where the call is. A zero address gives the one frame
    /// that marks a cut.
    pub fn resolve(&mut self, frame: RawFrame) -> Vec<Frame> {
        self.resolve_shared(frame).to_vec()
    }

    /// All frames of a stack.
    pub fn resolve_stack(&mut self, frames: impl Iterator<Item = RawFrame>) -> Vec<Frame> {
        let mut out = Vec::new();
        for frame in frames {
            out.extend_from_slice(&self.resolve_shared(frame));
        }
        out
    }

    /// The variable at an address of the running process, which lies in that
    /// module. Needs [`Options::variables`].
    pub fn variable(&mut self, module: ModuleId, at: Addr) -> Option<Variable> {
        let recorded = self.recorded.get(usize::from(module.0))?;
        let offset = at.0.wrapping_sub(recorded.bias);
        if !self.options.enabled {
            return None;
        }
        let index = self.open_module(module);
        let (name, inside) = self.modules.get_mut(index)?.variable(offset)?;
        Some(Variable { name, inside })
    }

    /// What the reader of the names should know; grows as frames are
    /// resolved. Codes: `module-replaced`, `module-deleted`,
    /// `module-unreadable`, `no-symbols`, `symbols-incomplete`,
    /// `symbols-limited`, `debuginfod`.
    pub fn notices(&self) -> Vec<Notice> {
        let mut out = self.notices.clone();
        if let Some(notice) = self.no_symbols() {
            out.push(notice);
        }
        out.extend(self.server.iter().flat_map(Client::notices));
        out
    }

    fn no_symbols(&self) -> Option<Notice> {
        if self.unnamed.is_empty() {
            return None;
        }
        let listed: Vec<&str> = self
            .unnamed
            .iter()
            .take(MAX_LISTED)
            .map(String::as_str)
            .collect();
        let more = match self.unnamed.len() - listed.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        Some(Notice {
            code: "no-symbols",
            message: format!(
                "neither debug information nor a symbol table was found for {}{more}: \
                 only exported names are shown for them; install their debug symbols, \
                 name a folder with --debug-dir, or set DEBUGINFOD_URLS",
                listed.join(", "),
            ),
        })
    }

    fn resolve_shared(&mut self, frame: RawFrame) -> Arc<[Frame]> {
        let key = (frame.module, frame.pc);
        if let Some(known) = self.cache.get(&key) {
            return known.clone();
        }
        let frames: Arc<[Frame]> = self.look_up(frame).into();
        self.cache.insert(key, frames.clone());
        frames
    }

    fn look_up(&mut self, frame: RawFrame) -> Vec<Frame> {
        if frame.pc == Addr(0) {
            return vec![Frame {
                cut: true,
                ..Frame::default()
            }];
        }
        let Some(recorded) = self.recorded.get(usize::from(frame.module.0)) else {
            return vec![Frame::default()];
        };
        // A hostile bias may wrap; the address is then in no function.
        let pc = frame.pc.0.wrapping_sub(recorded.bias);
        if !self.options.enabled {
            return vec![Frame {
                module: Some(Module::shown_path(recorded)),
                module_offset: Some(pc.wrapping_sub(1)),
                ..Frame::default()
            }];
        }
        let index = self.open_module(frame.module);
        let Some(module) = self.modules.get_mut(index) else {
            return vec![Frame::default()];
        };
        let (at, named) = module.lookup(pc, &self.finder, &mut self.notices);
        let shown = module.shown.clone();
        let last = named.len().saturating_sub(1);
        named
            .into_iter()
            .enumerate()
            .map(|(i, named)| self.frame(named, &shown, at, i < last))
            .collect()
    }

    fn frame(&mut self, named: Named, module: &str, at: u64, inlined: bool) -> Frame {
        let file = named.file.map(|file| match &mut self.source_root {
            Some(root) => root.find(&file),
            None => file.to_string(),
        });
        Frame {
            function: named.function,
            linkage_name: named.linkage,
            line: named.line.filter(|_| file.is_some()),
            file,
            module: Some(module.to_owned()),
            module_offset: Some(at),
            inlined,
            cut: false,
        }
    }

    /// Index of the opened module.
    fn open_module(&mut self, id: ModuleId) -> usize {
        if let Some(index) = self.by_id.get(&id) {
            return *index;
        }
        let Some(recorded) = self.recorded.get(usize::from(id.0)) else {
            return usize::MAX;
        };
        let key = (recorded.path.clone(), recorded.build_id.clone());
        let index = match self.by_file.get(&key) {
            Some(index) => *index,
            None => {
                let module = Module::open(
                    recorded,
                    self.options.alternatives.get(&id).map(|p| p.as_path()),
                    &mut Opener {
                        finder: &self.finder,
                        server: self.server.as_mut(),
                        notices: &mut self.notices,
                        room: &mut self.room,
                        variables: self.options.variables,
                    },
                );
                if module.lacks_symbols() && !Module::is_fileless(recorded) {
                    self.unnamed.push(module.shown.clone());
                }
                self.modules.push(module);
                let index = self.modules.len() - 1;
                self.by_file.insert(key, index);
                index
            }
        };
        self.by_id.insert(id, index);
        index
    }
}
