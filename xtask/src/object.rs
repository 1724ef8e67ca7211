//! The built preload object: what it exports, imports and brings with it.
//!
//! Its hooks are a promise about which functions are watched
//! (`preload/hooks.txt`), its imports what must exist in every process that
//! it is loaded into (`preload/imports.txt`).

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol};

use crate::Findings;

/// Largest object, bytes: it is mapped into every process of the tree.
const MAX_BYTES: usize = 256 * 1024;
/// Most thread-local storage, bytes. A library that is injected later must
/// fit into glibc's surplus of static TLS.
const MAX_TLS: u64 = 64;

/// What the object says of itself.
#[derive(Debug, Default)]
struct Facts {
    bytes: usize,
    exports: BTreeSet<String>,
    imports: BTreeSet<String>,
    needed: usize,
    tls: u64,
    executable_stack: bool,
    text_relocations: bool,
    writable_code: bool,
    panic_words: Vec<String>,
}

/// Everything that is not as the lists and limits say.
pub fn check() -> Findings {
    let facts = facts(leakscope_preload_embed::object())?;
    let hooks = list("hooks.txt")?;
    let imports = list("imports.txt")?;
    Ok(compare(&facts, &hooks, &imports))
}

/// Writes both lists from the built object, under the comments they have.
pub fn bless() -> Result<(), String> {
    let facts = facts(leakscope_preload_embed::object())?;
    for (name, words) in [
        ("hooks.txt", &facts.exports),
        ("imports.txt", &facts.imports),
    ] {
        let path = path(name);
        let old = fs::read_to_string(&path).unwrap_or_default();
        let comments = old.lines().filter(|l| l.starts_with('#'));
        let lines: Vec<&str> = comments.chain(words.iter().map(String::as_str)).collect();
        fs::write(&path, lines.join("\n") + "\n").map_err(|e| format!("write {path:?}: {e}"))?;
    }
    Ok(())
}

fn path(name: &str) -> PathBuf {
    crate::root().join("preload").join(name)
}

/// The lines of a list; `#` begins a comment line.
fn list(name: &str) -> Result<BTreeSet<String>, String> {
    let path = path(name);
    let text = fs::read_to_string(&path).map_err(|e| format!("read {path:?}: {e}"))?;
    let words = text.lines().map(str::trim);
    Ok(words
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

fn compare(facts: &Facts, hooks: &BTreeSet<String>, imports: &BTreeSet<String>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut differ = |what: &str, names: Vec<&String>| {
        if !names.is_empty() {
            findings.push(format!("{what}: {names:?}"));
        }
    };
    differ(
        "exported, not in hooks.txt",
        facts.exports.difference(hooks).collect(),
    );
    differ(
        "in hooks.txt, not exported",
        hooks.difference(&facts.exports).collect(),
    );
    differ(
        "imported, not in imports.txt",
        facts.imports.difference(imports).collect(),
    );
    differ(
        "in imports.txt, not imported",
        imports.difference(&facts.imports).collect(),
    );
    differ("panic machinery", facts.panic_words.iter().collect());
    let limits = [
        (
            facts.bytes > MAX_BYTES,
            format!("{} bytes, limit {MAX_BYTES}", facts.bytes),
        ),
        (
            facts.tls > MAX_TLS,
            format!("{} bytes of TLS, limit {MAX_TLS}", facts.tls),
        ),
        (
            facts.needed > 0,
            format!("{} libraries needed", facts.needed),
        ),
        (
            facts.executable_stack,
            "asks for an executable stack".to_owned(),
        ),
        (facts.text_relocations, "relocates its code".to_owned()),
        (facts.writable_code, "has code that is writable".to_owned()),
    ];
    findings.extend(
        limits
            .into_iter()
            .filter(|(bad, _)| *bad)
            .map(|(_, text)| text),
    );
    findings
}

fn facts(bytes: &[u8]) -> Result<Facts, String> {
    let failed = |e: object::Error| format!("read the preload object: {e}");
    let file: ElfFile64<'_, LittleEndian> = ElfFile64::parse(bytes).map_err(failed)?;
    let mut facts = Facts {
        bytes: bytes.len(),
        panic_words: panic_words(bytes),
        ..Facts::default()
    };
    for symbol in file.dynamic_symbols() {
        let name = symbol.name().map_err(failed)?.to_owned();
        if name.is_empty() {
            continue;
        }
        if symbol.is_undefined() {
            facts.imports.insert(name);
        } else {
            facts.exports.insert(name);
        }
    }
    let endian = LittleEndian;
    let header: &FileHeader64<LittleEndian> = file.elf_header();
    for segment in header.program_headers(endian, bytes).map_err(failed)? {
        let flags = segment.p_flags(endian);
        match segment.p_type(endian) {
            elf::PT_TLS => facts.tls += segment.p_memsz(endian),
            elf::PT_GNU_STACK => facts.executable_stack |= flags.contains(elf::PF_X),
            elf::PT_LOAD => facts.writable_code |= flags.contains(elf::PF_X | elf::PF_W),
            _ => {}
        }
        if let Some(entries) = segment.dynamic(endian, bytes).map_err(failed)? {
            for entry in entries {
                match entry.tag(endian) {
                    elf::DT_NEEDED => facts.needed += 1,
                    elf::DT_TEXTREL => facts.text_relocations = true,
                    _ => {}
                }
            }
        }
    }
    Ok(facts)
}

/// Words that only panics bring in: their functions' names and messages.
fn panic_words(bytes: &[u8]) -> Vec<String> {
    const WORDS: [&str; 6] = [
        "panicking",
        "rust_begin_unwind",
        "rust_eh_personality",
        "index out of bounds",
        "called `Option::unwrap()`",
        "attempt to ",
    ];
    let present = |word: &&&str| bytes.windows(word.len()).any(|w| w == word.as_bytes());
    WORDS
        .iter()
        .filter(present)
        .map(|w| (*w).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn differences_are_named() {
        let good = Facts {
            exports: set(&["free", "malloc"]),
            imports: set(&["dlsym"]),
            ..Facts::default()
        };
        assert!(compare(&good, &set(&["free", "malloc"]), &set(&["dlsym"])).is_empty());
        let bad = Facts {
            bytes: MAX_BYTES + 1,
            tls: 65,
            needed: 1,
            panic_words: vec!["panicking".to_owned()],
            ..good
        };
        let findings = compare(&bad, &set(&["malloc", "calloc"]), &set(&[])).join("\n");
        for part in [
            "[\"free\"]",
            "[\"calloc\"]",
            "dlsym",
            "panicking",
            "TLS",
            "limit 262144",
        ] {
            assert!(findings.contains(part), "{findings}");
        }
    }

    #[test]
    fn panics_are_seen_in_bytes() {
        assert_eq!(panic_words(b"\0core::panicking::panic\0"), ["panicking"]);
        assert!(panic_words(b"calm").is_empty());
    }
}
