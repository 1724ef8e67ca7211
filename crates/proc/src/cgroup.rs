//! Control groups: which ones a process is in (`/proc/PID/cgroup`,
//! cgroups(7)), and how much their limits leave (`memory.*` and `pids.*` of
//! `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`).

use std::path::{Path, PathBuf};

use crate::number::{decimal, words};
use crate::root::{ProcRoot, Process, read_small};

/// One line: a hierarchy and the process's place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Names of its controllers; none for version 2.
    pub controllers: Vec<Vec<u8>>,
    /// Path below the hierarchy's root, beginning with a slash.
    pub path: Vec<u8>,
}

/// Where the process is, one path for each hierarchy, without repetition.
pub fn paths(text: &[u8]) -> Vec<Vec<u8>> {
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for Membership { path, .. } in parse(text) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// Takes the lines it understands (`ID:CONTROLLERS:PATH`, of which only the
/// path may hold colons).
pub fn parse(text: &[u8]) -> Vec<Membership> {
    // 0::/user.slice/user-1000.slice
    // 4:memory:/docker/0123
    let lines = text.split(|&b| b == b'\n');
    lines
        .filter_map(|line| {
            let mut parts = line.splitn(3, |&b| b == b':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let controllers = controllers.split(|&b| b == b',');
            // A group that was removed while processes are in it.
            let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
            path.starts_with(b"/").then(|| Membership {
                controllers: controllers
                    .filter(|name| !name.is_empty())
                    .map(<[u8]>::to_vec)
                    .collect(),
                path: path.to_vec(),
            })
        })
        .collect()
}

/// How much room is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes of memory, in the tightest of all groups and on the machine.
    pub memory: Option<u64>,
    /// Processes and threads, in the tightest of all groups.
    pub tasks: Option<u64>,
}

/// How much room `process` has, with the groups' hierarchies below `groups`
/// (usually `/sys/fs/cgroup`). What cannot be read does not limit.
pub fn room(root: &ProcRoot, process: &Process, groups: &Path) -> Room {
    let mut room = Room {
        memory: read_small(&root.path().join("meminfo"))
            .ok()
            .and_then(|text| available(&text)),
        tasks: None,
    };
    let memberships = read_small(&process.file("cgroup")).unwrap_or_default();
    for membership in parse(&memberships) {
        for (controller, take) in [
            ("memory", memory as fn(&Path) -> Option<u64>),
            ("pids", tasks as fn(&Path) -> Option<u64>),
        ] {
            let is_second = membership.controllers.is_empty();
            let named = |name: &Vec<u8>| name == controller.as_bytes();
            let top = if is_second {
                groups.to_owned()
            } else if membership.controllers.iter().any(named) {
                groups.join(controller)
            } else {
                continue;
            };
            let groups = upwards(&top, &membership.path);
            let tightest = groups.iter().filter_map(|group| take(group));
            let field = match controller {
                "memory" => &mut room.memory,
                _ => &mut room.tasks,
            };
            *field = tightest.chain(*field).min();
        }
    }
    room
}

/// The group's folder and all above it. Of a group that is outside of what can
/// be seen (another namespace), the root is what is left.
fn upwards(top: &Path, path: &[u8]) -> Vec<PathBuf> {
    let text = String::from_utf8_lossy(path).into_owned();
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    let inside = !parts.contains(&"..");
    let most = if inside { parts.len() } else { 0 };
    (0..=most)
        .map(|n| top.join(parts.get(..n).unwrap_or_default().join("/")))
        .collect()
}

/// `MemAvailable` of `/proc/meminfo`, bytes.
fn available(text: &[u8]) -> Option<u64> {
    let mut lines = text.split(|&b| b == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(b"MemAvailable:"))?;
    words(value).next().and_then(decimal)?.checked_mul(1024)
}

fn number(path: PathBuf) -> Option<u64> {
    decimal(read_small(&path).ok()?.trim_ascii())
}

/// What a group's memory limits leave, counting files that the kernel can drop
/// as free. `None` without a limit.
fn memory(group: &Path) -> Option<u64> {
    let number = |name: &str| number(group.join(name));
    // Above memory.high the kernel slows the group's processes down.
    let limits = ["memory.max", "memory.high", "memory.limit_in_bytes"];
    let limit = limits.into_iter().filter_map(number).min()?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = read_small(&group.join("memory.stat")).unwrap_or_default();
    let dropped = [&b"total_inactive_file "[..], b"inactive_file "]
        .into_iter()
        .find_map(|key| {
            let mut lines = stat.split(|&b| b == b'\n');
            decimal(lines.find_map(|line| line.strip_prefix(key))?.trim_ascii())
        });
    Some(limit.saturating_sub(used.saturating_sub(dropped.unwrap_or(0))))
}

/// What a group's limit of processes leaves; `None` without one.
fn tasks(group: &Path) -> Option<u64> {
    let number = |name: &str| number(group.join(name));
    Some(number("pids.max")?.saturating_sub(number("pids.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn lines_of_both_versions() {
        let found =
            parse(b"5:cpu,cpuacct:/a:b\n1:name=systemd:/x\n0::/user.slice\n\nodd\n3::rel\n");
        let shown: Vec<(usize, &[u8])> = found
            .iter()
            .map(|m| (m.controllers.len(), &m.path[..]))
            .collect();
        assert_eq!(shown, [(2, &b"/a:b"[..]), (1, b"/x"), (0, b"/user.slice")]);
    }

    #[test]
    fn each_path_once() {
        let text = b"12:cpu,cpuacct:/docker/0a1b\n3:name=systemd:/docker/0a1b\n\
                     1:pids:/a:b\n0::/system.slice/x.service (deleted)\nodd\n7:x\n";
        let want: [&[u8]; 3] = [b"/docker/0a1b", b"/a:b", b"/system.slice/x.service"];
        assert_eq!(paths(text), want);
        assert!(paths(b"").is_empty());
    }

    #[test]
    fn the_tightest_limit_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (proc, groups) = (folder.path().join("proc"), folder.path().join("groups"));
        write(
            &proc.join("meminfo"),
            "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
        );
        write(&proc.join("7/cgroup"), "0::/a/b\n");
        let room = || {
            let root = ProcRoot::new(&proc);
            super::room(&root, &root.process(7), &groups)
        };
        assert_eq!(room().memory, Some(8000 << 10));
        assert_eq!(room().tasks, None);
        write(&groups.join("a/b/memory.max"), "max\n");
        write(&groups.join("a/b/memory.current"), "5000\n");
        write(&groups.join("a/memory.max"), "9000\n");
        write(&groups.join("a/memory.current"), "6000\n");
        write(
            &groups.join("a/memory.stat"),
            "anon 1\ninactive_file 500\nactive_file 7\n",
        );
        write(&groups.join("a/pids.max"), "10\n");
        write(&groups.join("a/pids.current"), "11\n");
        assert_eq!(room().memory, Some(3500));
        assert_eq!(room().tasks, Some(0));
        write(&groups.join("a/b/memory.high"), "5100\n");
        assert_eq!(room().memory, Some(100));
        // A group of another namespace: only what is seen.
        write(&proc.join("7/cgroup"), "0::/../../a/b\n");
        assert_eq!(room().memory, Some(8000 << 10));
    }

    #[test]
    fn version_one() {
        let folder = tempfile::tempdir().unwrap();
        let (proc, groups) = (folder.path().join("proc"), folder.path().join("groups"));
        write(
            &proc.join("7/cgroup"),
            "4:memory:/m\n3:pids:/p\n2:cpu:/c\n0::/\n",
        );
        write(&groups.join("memory/m/memory.limit_in_bytes"), "1000\n");
        write(&groups.join("memory/m/memory.usage_in_bytes"), "900\n");
        write(
            &groups.join("memory/m/memory.stat"),
            "inactive_file 1\ntotal_inactive_file 300\n",
        );
        write(&groups.join("pids/p/pids.max"), "100\n");
        write(&groups.join("pids/p/pids.current"), "98\n");
        let root = ProcRoot::new(&proc);
        let room = super::room(&root, &root.process(7), &groups);
        assert_eq!((room.memory, room.tasks), (Some(400), Some(2)));
    }
}
