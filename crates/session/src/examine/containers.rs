//! A container or service by its name, as control groups tell it.
//!
//! ```text
//! /docker/ID                           Docker, cgroupfs
//! /system.slice/docker-ID.scope        Docker, systemd
//! …/libpod-ID.scope  …/cri-containerd-ID.scope  …/crio-ID.scope
//! /lxc/NAME  /lxc.payload.NAME         LXC
//! /machine.slice/machine-NAME.scope    systemd-nspawn
//! /system.slice/NAME.service           a service
//! ```
//! ID is 64 hexadecimal digits, of which any beginning will do.

use std::collections::BTreeMap;

use leakscope_proc::{ProcRoot, Process};

use super::{CheckError, error};

/// Digits of an id that are enough to mean one.
const LEAST_DIGITS: usize = 4;
const ID_DIGITS: usize = 64;
/// Processes or containers that a refusal lists.
const LISTED: usize = 12;

/// The process to check in the container or service `name`: the only one, or
/// the one that is the first in its process namespace. `None` when there is
/// no such container.
///
/// # Errors
/// When several containers or processes are meant: these are listed.
pub fn find_container(name: &str) -> Result<Option<u32>, CheckError> {
    find(&ProcRoot::default(), name)
}

fn find(root: &ProcRoot, name: &str) -> Result<Option<u32>, CheckError> {
    let own = std::process::id();
    // By the component of the path that is meant.
    let mut groups: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    for pid in root.pids().map_err(error)? {
        let process = root.process(pid);
        let paths = process.cgroups().unwrap_or_default();
        let component = paths.iter().find_map(|path| component(path, name));
        let lives = process.stat().is_ok_and(|stat| !stat.is_dead());
        if let Some(component) = component.filter(|_| pid != own && lives) {
            groups.entry(component).or_default().push(process);
        }
    }
    let exact = groups.keys().find(|c| c.as_str() == name).cloned();
    if let Some(exact) = exact {
        groups.retain(|c, _| *c == exact);
    }
    let mut all = groups.iter();
    let Some((_, processes)) = all.next() else {
        return Ok(None);
    };
    if all.next().is_some() {
        let named = groups.keys().map(String::clone).collect();
        return Err(error(format!(
            "'{name}' may be any of {} containers or services: {}",
            groups.len(),
            list(named)
        )));
    }
    if let [only] = processes.as_slice() {
        return Ok(Some(only.id()));
    }
    let first = |process: &&Process| {
        let ids = process.status().map(|s| s.namespace_pids);
        ids.is_ok_and(|ids| ids.len() > 1 && ids.last() == Some(&1))
    };
    let firsts: Vec<&Process> = processes.iter().filter(first).collect();
    if let [only] = firsts.as_slice() {
        return Ok(Some(only.id()));
    }
    let named = processes.iter().map(|process| {
        let comm = process.stat().map(|s| s.comm).unwrap_or_default();
        format!("{} ({})", process.id(), String::from_utf8_lossy(&comm))
    });
    Err(error(format!(
        "{} processes are in '{name}': check one of {}",
        processes.len(),
        list(named.collect())
    )))
}

fn list(mut all: Vec<String>) -> String {
    if all.len() > LISTED {
        all.truncate(LISTED);
        all.push("…".to_owned());
    }
    all.join(", ")
}

/// The component of a control group's path that `name` means.
fn component(path: &[u8], name: &str) -> Option<String> {
    let path = String::from_utf8_lossy(path);
    let components = path.split('/').map(unescaped);
    components
        .filter(|component| !component.is_empty())
        .find(|component| means(component, name))
}

fn means(component: &str, name: &str) -> bool {
    if component == name {
        return true;
    }
    let unit = component
        .strip_suffix(".service")
        .or(component.strip_suffix(".scope"));
    let bare = unit.unwrap_or(component);
    let is_id = |id: &str| id.len() == ID_DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit());
    if unit == Some(name)
        || component.strip_prefix("lxc.payload.") == Some(name)
        || unit.and_then(|u| u.strip_prefix("machine-")) == Some(name)
    {
        return true;
    }
    // ENGINE-ID, or the id alone.
    let id = bare.rsplit('-').next().unwrap_or(bare);
    is_id(id) && (bare == name || name.len() >= LEAST_DIGITS && id.starts_with(name))
}

/// systemd writes unusual bytes of a unit's name as `\x2d` (systemd.unit(5)).
fn unescaped(component: &str) -> String {
    let mut parts = component.split("\\x");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte.filter(u8::is_ascii) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(part.get(2..).unwrap_or_default());
            }
            None => {
                out.push_str("\\x");
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
    const OTHER: &str = "0a1b99994e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

    #[test]
    fn what_engines_call_them() {
        let rows = [
            (format!("/docker/{ID}"), "0a1b2c", true),
            (format!("/docker/{ID}/init.scope"), ID, true),
            (
                format!("/system.slice/docker-{ID}.scope"),
                "0a1b2c3d4e5f",
                true,
            ),
            (format!("/system.slice/docker-{ID}.scope"), "0a1b99", false),
            (
                format!("/kubepods.slice/x/cri-containerd-{ID}.scope"),
                ID,
                true,
            ),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                "0a1b",
                true,
            ),
            (format!("/machine.slice/libpod-{ID}.scope"), "0a1", false),
            ("/system.slice/docker.service".to_owned(), "docker", true),
            (
                "/system.slice/nginx.service".to_owned(),
                "nginx.service",
                true,
            ),
            ("/system.slice/nginx.service".to_owned(), "ngin", false),
            ("/lxc/web-1/init".to_owned(), "web-1", true),
            ("/lxc.payload.web-1".to_owned(), "web-1", true),
            (
                r"/machine.slice/machine-web\x2d1.scope".to_owned(),
                "web-1",
                true,
            ),
            ("/".to_owned(), "", false),
            (r"/a\xzz".to_owned(), r"a\xzz", true),
        ];
        for (path, name, meant) in rows {
            let found = component(path.as_bytes(), name).is_some();
            assert_eq!(found, meant, "{name} in {path}");
        }
    }

    /// (pid, the last of its ids, its group)
    fn machine(processes: &[(u32, u32, &str)]) -> (tempfile::TempDir, ProcRoot) {
        let folder = tempfile::tempdir().unwrap();
        for (pid, inner, group) in processes {
            let dir = folder.path().join(pid.to_string());
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("cgroup"), format!("0::{group}\n")).unwrap();
            let stat = format!("{pid} (p{inner}) S 1 1 1 0 -1 0{}\n", " 0".repeat(44));
            fs::write(dir.join("stat"), stat).unwrap();
            let ids = if inner == pid {
                format!("{pid}")
            } else {
                format!("{pid}\t{inner}")
            };
            fs::write(dir.join("status"), format!("NSpid:\t{ids}\n")).unwrap();
        }
        let root = ProcRoot::new(folder.path());
        (folder, root)
    }

    #[test]
    fn the_first_of_its_namespace_or_a_list() {
        let (docker, other) = (format!("/docker/{ID}"), format!("/docker/{OTHER}"));
        let (_folder, root) = machine(&[
            (7, 7, "/system.slice/web.service"),
            (8, 8, "/system.slice/web.service/worker"),
            (11, 11, "/system.slice/one.service"),
            (21, 4, &docker),
            (22, 1, &docker),
            (23, 5, &docker),
            (31, 1, &other),
        ]);
        let found = |name: &str| find(&root, name).map_err(|e| e.text);
        assert_eq!(found("one"), Ok(Some(11)));
        assert_eq!(found("0a1b2c3d"), Ok(Some(22)));
        assert_eq!(found("0a1b9999"), Ok(Some(31)));
        assert_eq!(found("none"), Ok(None));
        let several = found("web").unwrap_err();
        assert_eq!(
            several,
            "2 processes are in 'web': check one of 7 (p7), 8 (p8)"
        );
        let which = found("0a1b").unwrap_err();
        assert!(
            which.contains("2 containers") && which.contains(OTHER),
            "{which}"
        );
    }
}
