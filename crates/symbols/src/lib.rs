//! Return addresses become functions, files and lines.
//!
//! Lazily: a module's files are opened when the first of its addresses is
//! asked for, a compilation unit is decoded when an address falls into it,
//! and answers are kept. Robustly: the files belong to whoever owns the
//! program under examination, so every offset in them is checked, no work or
//! memory grows faster than the file, and whatever is wrong with them costs
//! names, never an error.
//!
//! What it never does: read the environment, ask a server without being
//! handed one, trust a file whose build id is not that of the module in
//! memory, or map a file that somebody but root could cut short (reading a
//! cut mapping kills the reader).
//!
//! Begin with [`Symbolizer::resolve`]. Inside, `module` joins what the files
//! hold: `locate` and `open` find them, `elf` and `sections` take them apart,
//! `symtab` and `dwarf` look addresses up, `demangle` and `source` make names
//! and paths readable.

mod bytes;
mod compress;
mod debuginfod;
mod demangle;
mod dwarf;
mod elf;
mod fuzz;
mod locate;
mod map;
mod module;
mod open;
mod options;
mod sections;
mod source;
mod symbolizer;
mod symtab;

pub use demangle::type_name;
pub use fuzz::lookup_everything;
pub use open::regular_file;
pub use options::{Debuginfod, Options};
pub use symbolizer::{Symbolizer, Variable};
