//! Readable names: C++ and Rust, by what the name itself looks like.

use std::collections::HashMap;
use std::fmt::{self, Write};

/// Longer mangled names are shown as they are, bytes.
const MAX_MANGLED: usize = 4096;
/// Longest readable name; a mangled one can be made to expand without end.
const MAX_READABLE: usize = 16 << 10;

/// What the compiler appends to a function's name when it clones or splits
/// it: the function in the source is the one before the suffix.
const CLONES: [&str; 8] = [
    ".cold",
    ".part",
    ".isra",
    ".constprop",
    ".lto_priv",
    ".llvm",
    ".clone",
    ".localalias",
];

/// A symbol's name as a person writes it: C++ without parameters and return
/// type, Rust without the hash, C without the suffix of a clone. Unknown
/// manglings come back as they are.
fn readable(symbol: &str) -> String {
    let plain = without_clone(symbol);
    if plain.len() > MAX_MANGLED {
        return symbol.to_owned();
    }
    let name = if is_rust(plain) {
        rust(plain)
    } else if plain.starts_with("_Z") || plain.starts_with("__Z") {
        cpp(plain)
    } else {
        None
    };
    name.filter(|n| !n.is_empty())
        .unwrap_or_else(|| plain.to_owned())
}

/// Readable names already made; inlined functions recur a lot.
#[derive(Default)]
pub(crate) struct Names {
    known: HashMap<Vec<u8>, String>,
}

/// Names kept at a time.
const MAX_NAMES: usize = 1 << 16;

impl Names {
    /// Readable and linkage name of a symbol.
    pub(crate) fn of(&mut self, symbol: &[u8]) -> (String, String) {
        let linkage = String::from_utf8_lossy(symbol).into_owned();
        if let Some(known) = self.known.get(symbol) {
            return (known.clone(), linkage);
        }
        let name = readable(&linkage);
        if self.known.len() >= MAX_NAMES {
            self.known.clear();
        }
        self.known.insert(symbol.to_vec(), name.clone());
        (name, linkage)
    }
}

/// The readable name of a C++ type, from the mangled name that its
/// `std::type_info` holds (`N2ui6WidgetE`); as it is where it cannot be read.
pub fn type_name(mangled: &str) -> String {
    const PREFIX: &str = "typeinfo for ";
    let readable = (mangled.len() <= MAX_MANGLED)
        .then(|| cpp(&format!("_ZTI{mangled}")))
        .flatten();
    match readable.as_deref().and_then(|n| n.strip_prefix(PREFIX)) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => mangled.to_owned(),
    }
}

/// True for names that only a mangling compiler makes.
pub(crate) fn is_mangled(symbol: &[u8]) -> bool {
    symbol.starts_with(b"_Z") || symbol.starts_with(b"_R")
}

fn without_clone(symbol: &str) -> &str {
    if !symbol.contains('.') {
        return symbol;
    }
    let at = CLONES
        .iter()
        .filter_map(|clone| {
            let at = symbol.find(clone)?;
            let behind = symbol.get(at + clone.len()..)?;
            (behind.is_empty() || behind.starts_with('.')).then_some(at)
        })
        .min();
    match at {
        Some(at) if at > 0 => symbol.get(..at).unwrap_or(symbol),
        _ => symbol,
    }
}

/// `_R…`, or the older `_ZN…17h<16 hex digits>E`, which C++ cannot make
/// because it puts parameters behind the `E`.
fn is_rust(symbol: &str) -> bool {
    if symbol.starts_with("_R") {
        return true;
    }
    let Some(hash) = symbol
        .strip_suffix('E')
        .and_then(|s| s.get(s.len().checked_sub(19)?..))
    else {
        return false;
    };
    symbol.starts_with("_ZN")
        && hash
            .strip_prefix("17h")
            .is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn rust(symbol: &str) -> Option<String> {
    let name = rustc_demangle::try_demangle(symbol).ok()?;
    let mut out = Bounded(String::new());
    write!(out, "{name:#}").ok()?;
    Some(out.0)
}

fn cpp(symbol: &str) -> Option<String> {
    let name = cpp_demangle::BorrowedSymbol::new(symbol.as_bytes()).ok()?;
    let options = cpp_demangle::DemangleOptions::new()
        .no_params()
        .no_return_type();
    let mut out = Bounded(String::new());
    name.structured_demangle(&mut out, &options).ok()?;
    let mut name = out.0;
    // What qualifies `this` stood behind the parameters.
    for qualifier in [" &&", " &", " volatile", " const"] {
        if let Some(shorter) = name.strip_suffix(qualifier) {
            name.truncate(shorter.len());
        }
    }
    Some(name)
}

/// A string that refuses to grow beyond [`MAX_READABLE`].
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_READABLE {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable() {
        for (mangled, want) in [
            ("malloc", "malloc"),
            ("grow.part.0", "grow"),
            ("grow.constprop.0.isra.0", "grow"),
            ("grow.cold", "grow"),
            ("a.coldest", "a.coldest"),
            (".cold", ".cold"),
            ("_ZN2ns5Cache3putEiPKc", "ns::Cache::put"),
            ("_ZN2ns5Cache3putEiPKc.cold", "ns::Cache::put"),
            ("_ZN2ns4BoxTIiE3setERKi", "ns::BoxT<int>::set"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back",
            ),
            ("_ZZ4mainENKUlvE_clEv", "main::{lambda()#1}::operator()"),
            ("_ZN12_GLOBAL__N_15localEv", "(anonymous namespace)::local"),
            ("_Z4makeIiET_v", "make<int>"),
            ("_Znwm", "operator new"),
            (
                "_ZN5alloc5alloc8allocate17h0123456789abcdefE",
                "alloc::alloc::allocate",
            ),
            (
                "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$LT$Test$GT$$GT$3bar17h930b740aa94f1d3aE",
                "<Test + 'static as foo::Bar<Test>>::bar",
            ),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_Zgarbage", "_Zgarbage"),
            ("_R", "_R"),
        ] {
            assert_eq!(readable(mangled), want, "{mangled}");
        }
    }

    #[test]
    fn names_made_to_expand_stay_small() {
        // Each substitution doubles the one before.
        let mut name = String::from("_Z1fP1A");
        for i in 0..60u32 {
            let s = std::char::from_digit(i % 36, 36)
                .unwrap()
                .to_ascii_uppercase();
            name.push_str(&format!("FS{s}_S{s}_E"));
        }
        assert!(readable(&name).len() <= MAX_READABLE);
        assert_eq!(readable(&format!("_Z{}", "1a".repeat(9000))).len(), 18002);
    }
}
