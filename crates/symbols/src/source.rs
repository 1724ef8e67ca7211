//! Source paths: joined, tidied, and found again below `--source-root`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Appends `part` to `path`; an absolute part replaces it.
pub(crate) fn join(path: &mut String, part: &str) {
    if part.starts_with('/') {
        path.clear();
    } else if !path.is_empty() && !path.ends_with('/') {
        path.push('/');
    }
    path.push_str(part);
}

/// Takes out empty, `.` and `..` components, so that one file has one path.
/// Leading `..` of a relative path stay. (`a/../b` is taken for `b` even if
/// `a` was a symbolic link on the machine that compiled it.)
pub(crate) fn tidy(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&"..") | None if !absolute => parts.push(".."),
                _ => {
                    parts.pop();
                }
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if absolute {
        format!("/{joined}")
    } else {
        joined
    }
}

/// Components of a path that are tried below the root.
const MAX_PARTS: usize = 61;

/// Finds source files below a folder of the user.
pub(crate) struct SourceRoot {
    root: PathBuf,
    known: HashMap<String, String>,
}

impl SourceRoot {
    pub(crate) fn new(root: PathBuf) -> SourceRoot {
        SourceRoot {
            root,
            known: HashMap::new(),
        }
    }

    /// The file below the root with the longest tail of `path` as its path
    /// there; `path` itself when there is none.
    pub(crate) fn find(&mut self, path: &str) -> String {
        if let Some(known) = self.known.get(path) {
            return known.clone();
        }
        let found = search(&self.root, path).unwrap_or_else(|| path.to_owned());
        self.known.insert(path.to_owned(), found.clone());
        found
    }
}

fn search(root: &Path, path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    // The path comes from the target: it must not climb out of the root.
    if parts.contains(&"..") {
        return None;
    }
    let first = parts.len().saturating_sub(MAX_PARTS);
    (first..parts.len()).find_map(|i| {
        let candidate = root.join(parts.get(i..)?.join("/"));
        let is_file = std::fs::metadata(&candidate).is_ok_and(|m| m.is_file());
        is_file.then(|| candidate.to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_tidied() {
        for (parts, want) in [
            (&["/b/x", ".", "a.c"][..], "/b/x/a.c"),
            (&["/b/x", "../y", "a.c"], "/b/y/a.c"),
            (&["/b", "/usr/include", "a.h"], "/usr/include/a.h"),
            (&["", "src/../../a.rs"], "../a.rs"),
            (&["/..", "a"], "/a"),
            (&["a//b/./", "c"], "a/b/c"),
            (&[""], ""),
        ] {
            let mut path = String::new();
            parts.iter().for_each(|p| join(&mut path, p));
            assert_eq!(tidy(&path), want, "{parts:?}");
        }
    }

    #[test]
    fn the_longest_tail_below_the_root_wins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p).to_string_lossy().into_owned();
        std::fs::create_dir_all(dir.path().join("sub/b")).unwrap();
        for file in ["sub/b/x.c", "x.c"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let mut root = SourceRoot::new(dir.path().to_owned());
        assert_eq!(root.find("/build/sub/b/x.c"), at("sub/b/x.c"));
        assert_eq!(root.find("/build/other/x.c"), at("x.c"));
        assert_eq!(root.find("/build/other/y.c"), "/build/other/y.c");
        assert_eq!(root.find("../../x.c"), "../../x.c");
        // A folder is not a source file.
        assert_eq!(root.find("/build/sub"), "/build/sub");
    }
}
