//! `/proc/PID/cgroup`: the control groups that a process is in.

/// Their paths, one for each hierarchy, without repetition (cgroups(7):
/// `ID:CONTROLLERS:PATH`, of which only the path may hold colons).
pub fn parse(text: &[u8]) -> Vec<Vec<u8>> {
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let path = line.splitn(3, |b| *b == b':').nth(2);
        if let Some(path) = path.filter(|path| path.starts_with(b"/")) {
            // A group that was removed while processes are in it.
            let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
            if !paths.iter().any(|known| known == path) {
                paths.push(path.to_vec());
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let text = b"12:cpu,cpuacct:/docker/0a1b\n3:name=systemd:/docker/0a1b\n\
                     1:pids:/a:b\n0::/system.slice/x.service (deleted)\nodd\n7:x\n";
        let paths: [&[u8]; 3] = [b"/docker/0a1b", b"/a:b", b"/system.slice/x.service"];
        assert_eq!(parse(text), paths);
        assert!(parse(b"").is_empty());
    }
}
